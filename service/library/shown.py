"""What the library shows while it works: what the commands show, where somebody looks at it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from peterrec.model.data.observer import SILENT, ReadingObserver, SilentObserver
from peterrec.service.jobs.reading import observing


class _Notes(SilentObserver):
    """Prints notices on stderr, each once, and nothing else."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def notice(self, text: str) -> None:
        """Print a sentence that a person should know, unless it was printed before."""
        if text not in self._told:
            self._told.add(text)
            print(f"note: {text}", file=sys.stderr)


@contextmanager
def watched(progress: bool | None) -> Iterator[ReadingObserver]:
    """The observer of one call, which shows progress and notices for the length of the block.

    True shows what the commands show: bars on a terminal and in a notebook, elsewhere a line now
    and then. None does the same on a terminal and in a notebook, and shows notices only elsewhere.
    False shows nothing.
    """
    console = Console(stderr=True)
    if progress or (progress is None and (console.is_jupyter or console.is_terminal)):
        with observing() as observer:
            yield observer
    else:
        yield SILENT if progress is False else _Notes()
