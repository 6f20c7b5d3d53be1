"""What long steps report while they work: progress, and sentences for a person."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` units of a named phase; ``note`` is the latest figure to show."""

    phase: str
    done: int
    total: int
    note: str = ""


OnProgress = Callable[[Progress], None]
"""Called with every progress report."""


def no_progress(progress: Progress) -> None:
    """Ignore a progress report."""


Notice = Callable[[str], None]
"""Called with a sentence that a person should know: what data are, or what is doubtful."""


def no_notice(text: str) -> None:
    """Ignore a sentence."""
