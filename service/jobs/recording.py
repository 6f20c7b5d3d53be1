"""What follows a training: its ``training.jsonl``, and a tracker if one is asked for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from peterrec.model.training.events import TrainingEvent, TrainingListener
from peterrec.model.training.training_file import TrainingFile
from peterrec.service.jobs.tracking.options import TrackOptions
from peterrec.service.jobs.tracking.tracker import SafeTracker, open_tracker


def print_nothing(text: str) -> None:
    """Ignore a notice."""


@dataclass(frozen=True, slots=True)
class Recording:
    """How trainings are recorded: by which tracker, and who is told of what goes wrong.

    ``warnings`` are the sentences that reading the data gave so far; the first line of
    ``training.jsonl`` has those that are there when the training starts.
    """

    options: TrackOptions = field(default_factory=TrackOptions)
    on_notice: Callable[[str], None] = print_nothing
    warnings: Sequence[str] = field(default_factory=list)

    @contextmanager
    def of(self, path: Path | None, name: str) -> Iterator[TrainingListener]:
        """A listener that writes a run's events to ``path``, if given, and tells the tracker.

        Refused here if the file can't be written or the tracker can't be reached: open it before
        the data are read. Afterwards nothing that goes wrong with either ends the training.
        """
        file = None if path is None else TrainingFile(path, self.warnings, self.on_notice)
        tracker = None
        failed = True
        try:
            tracker = self._tracker(name)

            def hear(event: TrainingEvent) -> None:
                if file is not None:
                    file.hear(event)
                if tracker is not None:
                    tracker.hear(event)

            yield hear
            failed = False
        finally:
            if file is not None:
                file.close()
            if tracker is not None:
                tracker.close([] if path is None else [path], failed)

    def _tracker(self, name: str) -> SafeTracker | None:
        kind = self.options.track
        if kind is None:
            return None
        return SafeTracker(open_tracker(kind, self.options.track_to, name), kind, self.on_notice)
