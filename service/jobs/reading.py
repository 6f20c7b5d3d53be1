"""What commands say while they read tables: files, notices and progress, on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager

from peterrec.model.data.observer import FilesRead
from peterrec.model.progress import Progress
from peterrec.service.jobs.progress_bar import ProgressBars, size_text

MOST_NAMED = 8
"""Files that were left out and are named; of others, only the number is told."""


class ConsoleObserver:
    """Prints what the readers report, each line once; a ``ReadingObserver``.

    ``progress`` can be passed as an ``OnProgress`` to the steps that follow the reading. What was
    told is kept in ``files_read`` and ``notices``, in order, for commands that show it elsewhere.
    """

    def __init__(self, bars: ProgressBars) -> None:
        self.files_read: list[FilesRead] = []
        self.notices: list[str] = []
        self._bars = bars

    def files(self, read: FilesRead) -> None:
        """Say how many files are read, and which are not."""
        if read in self.files_read:
            return
        self.files_read.append(read)
        self._bars.line(files_line(read))
        if read.left_out:
            self._bars.line(f"left out: {left_out_text(read.left_out)}")

    def notice(self, text: str) -> None:
        """Print a sentence, unless it was printed before."""
        if text not in self.notices:
            self.notices.append(text)
            self._bars.line(f"note: {text}")

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._bars.line(text)

    def progress(self, progress: Progress) -> None:
        """Move the bar of a step."""
        self._bars(progress)


@contextmanager
def observing(is_quiet: bool = False) -> Iterator[ConsoleObserver]:
    """The observer of one command, with its bars on stderr for the length of the block."""
    with ProgressBars(is_quiet) as bars:
        yield ConsoleObserver(bars)


def files_line(read: FilesRead) -> str:
    """The files of one source in a line."""
    files = "1 file" if read.files == 1 else f"{read.files:,} files"
    return f"read {files}, {size_text(read.size)}: {read.source}"


def left_out_text(left_out: tuple[str, ...]) -> str:
    """The files that were not read; of a long list, the first ones and the number of others."""
    others = len(left_out) - MOST_NAMED
    more = [f"and {others:,} others"] if others > 0 else []
    return ", ".join([*left_out[:MOST_NAMED], *more])
