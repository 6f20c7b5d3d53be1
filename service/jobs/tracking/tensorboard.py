"""TensorBoard: a folder of event files for each run, below the folder that TensorBoard is given."""

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from peterrec.model.training.events import (
    PartMeasured,
    PartsChosen,
    TrainingEnded,
    TrainingEvent,
    TrainingStarted,
)
from peterrec.service.errors import TrackerUnavailable
from peterrec.service.jobs.tracking.tracker import missing, place_of, scalars_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def open_tracker(target: str, name: str) -> "TensorBoardRun":
    """A new folder ``TARGET/NAME-TIME`` with the event file of a run."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing("tensorboard", error) from error
    folder = Path(target) / f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    try:
        return TensorBoardRun(SummaryWriter(folder))
    except OSError as error:
        raise TrackerUnavailable(
            f"{folder} can't be written: {error.strerror}.",
            hint="Give another `track_to`.",
        ) from error


class TensorBoardRun:
    """Scalars by part and epoch, such as ``train/loss``; what was trained and tried is a text."""

    def __init__(self, writer: "SummaryWriter") -> None:
        self._writer = writer

    def hear(self, event: TrainingEvent) -> None:
        if isinstance(event, TrainingStarted):
            about = {**event.settings, "data": event.data, "machine": event.machine}
            self._add_text("training", json.dumps(about, indent=1))
        elif isinstance(event, PartMeasured):
            for name, value in scalars_of(event).items():
                self._writer.add_scalar(f"{place_of(event)}/{name}", value, event.epoch)
        elif isinstance(event, PartsChosen):
            self._add_text("parts", json.dumps(list(event.trials), indent=1))
        elif isinstance(event, TrainingEnded):
            self._add_text("end", f"best epoch {event.best_epoch} of {event.epochs}")
        self._writer.flush()

    def keep_files(self, files: list[Path]) -> None:
        """Keep no files: TensorBoard has none."""

    def close(self, failed: bool) -> None:
        self._writer.close()

    def _add_text(self, name: str, text: str) -> None:
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # as Markdown shows code
        self._writer.add_text(name, indented)
