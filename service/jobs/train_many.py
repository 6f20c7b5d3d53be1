"""The work of ``peterrec finetune-many``: read every task's answers, train together, save."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.observer import ReadingObserver
from peterrec.model.disk import require_writable_file, write_bytes
from peterrec.model.documents import Document
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.progress import Progress
from peterrec.model.training.events import TrainingListener
from peterrec.model.training.finetune.many_tasks import TaskToTrain, finetune_many
from peterrec.model.training.training_file import training_file_of
from peterrec.service.errors import OutputExists
from peterrec.service.jobs.options import Answers, EventOptions, TimeOptions, answers_of
from peterrec.service.jobs.packing import pack_task, require_name
from peterrec.service.jobs.recording import Recording
from peterrec.service.jobs.task_data import record_of
from peterrec.service.jobs.task_file import TaskEntry
from peterrec.service.jobs.train import PackedTask


@dataclass(frozen=True, slots=True)
class ManyJob:
    """Tasks to train together.

    ``folder`` is what their paths are relative to; None writes no files. ``patch`` has the fields
    of ``FinetuneSettings`` that all of them share.
    """

    events: EventOptions
    time: TimeOptions
    tasks: tuple[TaskEntry, ...]
    folder: Path | None
    patch: Mapping[str, Any]  # Any: values of FinetuneSettings
    overwrite: bool = False

    @property
    def histories(self) -> InteractionSource:
        """The events of the histories of all tasks."""
        return self.events.source(self.time.end_of_histories)

    def answers(self, entry: TaskEntry) -> Answers:
        """Where one task's answers are."""
        options = entry.answers if self.folder is None else entry.answers.within(self.folder)
        return answers_of(self.events, options, self.time, entry.delimiter)

    def task(
        self, entry: TaskEntry, listener: TrainingListener, observer: ReadingObserver
    ) -> TaskToTrain:
        """One task's answers and settings."""
        settings = replace(entry.settings, **self.patch)
        labels = self.answers(entry).read(settings.kind, observer)
        return TaskToTrain(labels, settings, entry.bundle_name, listener)

    def reading(self, entry: TaskEntry) -> Document | None:
        """How one task's data are read, for its bundle."""
        return record_of(self.histories, self.answers(entry))


def run_finetune_many(
    loaded: LoadedBackbone,
    job: ManyJob,
    observer: ReadingObserver,
    recording: Recording = Recording(),
) -> list[tuple[Path, PackedTask]]:
    """Train all tasks and write their bundles; no bundle is written unless all succeed."""
    outs = [(job.folder or Path()) / entry.out for entry in job.tasks]
    if job.folder is not None:
        for out in outs:
            require_writable_file(out)
    existing = [str(out) for out in outs if out.exists() and job.folder is not None]
    if existing and not job.overwrite:
        raise OutputExists(
            f"{', '.join(existing)} exists.", hint="Give other names, or `overwrite`."
        )
    names = [entry.bundle_name for entry in job.tasks]
    for name in names:
        require_name(name)
    with ExitStack() as runs:
        listeners = [
            runs.enter_context(
                recording.of(None if job.folder is None else training_file_of(out), name)
            )
            for out, name in zip(outs, names, strict=True)
        ]
        pairs = zip(job.tasks, listeners, strict=True)
        tasks = [job.task(entry, listener, observer) for entry, listener in pairs]
        histories = read_histories(job.histories, observer)
        trained = finetune_many(loaded, histories, tasks, observer.progress, observer.notice)
        observer.progress(Progress("packing the bundles"))
        packed = [
            PackedTask(task, pack_task(task, loaded, name, job.reading(entry)))
            for task, name, entry in zip(trained, names, job.tasks, strict=True)
        ]
        if job.folder is not None:
            for out, each in zip(outs, packed, strict=True):
                write_bytes(out, each.bundle)
    return list(zip(outs, packed, strict=True))
