"""Progress reports of long steps."""

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
