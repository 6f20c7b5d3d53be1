"""An observer that keeps what a reader reported."""

from peterrec.model.data.observer import FilesRead
from peterrec.model.progress import Progress


class Recorder:
    """Keeps files, notices and progress in the order in which they came."""

    def __init__(self) -> None:
        self.read: list[FilesRead] = []
        self.notices: list[str] = []
        self.steps: list[Progress] = []

    def files(self, read: FilesRead) -> None:
        self.read.append(read)

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def progress(self, progress: Progress) -> None:
        self.steps.append(progress)
