"""What the library shows while it works: progress bars, and notices as warnings."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from peterrec.model.data.observer import FilesRead
from peterrec.model.progress import Progress
from peterrec.service.jobs.progress_bar import ProgressBars


class DataNotice(UserWarning):
    """Something that a person should know about the data that were read."""


@dataclass(frozen=True, slots=True)
class WarningObserver:
    """Shows progress as bars, and what a person should know of the data as warnings."""

    bars: ProgressBars

    def files(self, read: FilesRead) -> None:
        """Ignore the list of files, which the caller knows."""

    def notice(self, text: str) -> None:
        """Warn of what was decided, or looks doubtful."""
        warn(text)

    def progress(self, progress: Progress) -> None:
        """Move the bar of a step."""
        self.bars(progress)


@contextmanager
def bars_if(progress: bool | None) -> Iterator[WarningObserver]:
    """Bars on stderr or in the notebook; None shows them there and on a terminal, not in a file."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    wanted = progress if progress is not None else is_watched(console)
    with ProgressBars(is_quiet=not wanted) as bars:
        yield WarningObserver(bars)


def is_watched(console: Console) -> bool:
    """True in a notebook and on a terminal, where somebody sees a bar move."""
    return console.is_jupyter or sys.stderr.isatty()


def warn(text: str) -> None:
    """Show a notice where Python shows warnings; each text once for each place."""
    warnings.warn(text, DataNotice, stacklevel=2)
