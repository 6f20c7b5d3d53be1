"""Progress bars for long steps, on stderr."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from peterrec.model.progress import Progress


class ProgressBars:
    """One bar per phase; an instance can be passed as an ``OnProgress``."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a sentence that a person should know."""
        self.line(f"note: {text}")

    def __call__(self, progress: Progress) -> None:
        """Move the bar of a phase."""
        if progress.phase not in self._tasks:
            task = self._bars.add_task(progress.phase, total=progress.total, note="")
            self._tasks[progress.phase] = task
        task = self._tasks[progress.phase]
        self._bars.update(task, completed=progress.done, note=progress.note)
