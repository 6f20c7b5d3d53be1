"""What long steps report while they work: progress, and sentences for a person."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` units of a named phase; ``note`` is the latest figure to show.

    A total of 0 means that it is not known; a phase of which nothing is counted is reported once,
    as ``Progress(name)``, when it begins. ``unit`` names what is counted, in the plural; ``bytes``
    are shown as kB, MB and GB. A phase ends when all is done or another phase begins.
    """

    phase: str
    done: int = 0
    total: int = 0
    note: str = ""
    unit: str = ""


OnProgress = Callable[[Progress], None]
"""Called with every progress report."""


def no_progress(progress: Progress) -> None:
    """Ignore a progress report."""


Notice = Callable[[str], None]
"""Called with a sentence that a person should know: what data are, or what is doubtful."""


def no_notice(text: str) -> None:
    """Ignore a sentence."""
