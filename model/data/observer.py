"""What readers of data report while they work: files, notices and progress."""

from dataclasses import dataclass
from typing import Protocol

from peterrec.model.progress import Progress


@dataclass(frozen=True, slots=True)
class FilesRead:
    """The files of one source of data.

    ``source`` is the path that was given, ``size`` the files' size in bytes, and ``left_out``
    describes every file below the path that was not read, with the reason.
    """

    source: str
    files: int
    size: int
    left_out: tuple[str, ...] = ()


class ReadingObserver(Protocol):
    """Receives the reports of a reader. The readers of every table take one."""

    def files(self, read: FilesRead) -> None:
        """Receive the list of files, before they are read."""

    def notice(self, text: str) -> None:
        """Receive one sentence that a person should know: a choice, or a doubtful value."""

    def progress(self, progress: Progress) -> None:
        """Receive progress in bytes or rows."""


class SilentObserver:
    """Ignores every report."""

    def files(self, read: FilesRead) -> None:
        """Ignore the list of files."""

    def notice(self, text: str) -> None:
        """Ignore a sentence."""

    def progress(self, progress: Progress) -> None:
        """Ignore progress."""


SILENT = SilentObserver()
"""The observer of callers that show nothing."""
