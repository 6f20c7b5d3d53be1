"""How long steps tell whoever waits how far they are."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` units of a named phase; ``note`` is the latest figure worth seeing."""

    phase: str
    done: int
    total: int
    note: str = ""


OnProgress = Callable[[Progress], None]


def no_progress(progress: Progress) -> None:
    """For callers who do not want to see progress."""
