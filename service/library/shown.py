"""What the library shows while it works: progress bars, and notices as warnings."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from peterrec.service.jobs.progress_bar import ProgressBars


class DataNotice(UserWarning):
    """Something that a person should know about the data that were read."""


@contextmanager
def bars_if(progress: bool | None) -> Iterator[ProgressBars]:
    """Bars on stderr or in the notebook; None shows them there and on a terminal, not in a file."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    wanted = progress if progress is not None else is_watched(console)
    with ProgressBars(is_quiet=not wanted) as bars:
        yield bars


def is_watched(console: Console) -> bool:
    """True in a notebook and on a terminal, where somebody sees a bar move."""
    return console.is_jupyter or sys.stderr.isatty()


def warn(text: str) -> None:
    """Show a notice where Python shows warnings; each text once for each place."""
    warnings.warn(text, DataNotice, stacklevel=2)
