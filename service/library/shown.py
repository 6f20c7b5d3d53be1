"""What the library shows while it works: what the commands show, where somebody looks at it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from peterrec.service.jobs.progress_bar import ProgressBars
from peterrec.service.jobs.reading import ConsoleObserver


class _Notes(ConsoleObserver):
    """Prints notices on stderr, each once, and nothing else."""

    def notice(self, text: str) -> None:
        """Print a sentence that a person should know, unless it was printed before."""
        if text not in self.notices:
            super().notice(text)
            print(f"note: {text}", file=sys.stderr)


@contextmanager
def watched(progress: bool | None) -> Iterator[ConsoleObserver]:
    """The observer of one call, which shows progress and notices for the length of the block.

    True shows what the commands show: bars on a terminal and in a notebook, elsewhere a line now
    and then. None does the same on a terminal and in a notebook, and shows notices only elsewhere.
    False shows nothing.
    """
    console = Console(stderr=True)
    is_seen = progress or (progress is None and (console.is_jupyter or console.is_terminal))
    with ProgressBars(is_quiet=not is_seen) as bars:
        yield _Notes(bars) if progress is None and not is_seen else ConsoleObserver(bars)
