"""The work of ``peterrec finetune-many``: read every task's answers, train together, save."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peterrec.model.data.histories import UserLabels
from peterrec.model.data.interactions import read_histories
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.progress import OnProgress
from peterrec.model.training.finetune.many_tasks import TaskToTrain, finetune_many
from peterrec.service.errors import OutputExists
from peterrec.service.jobs.options import EventOptions, TimeOptions, answers_of
from peterrec.service.jobs.packing import pack_task
from peterrec.service.jobs.task_file import TaskEntry
from peterrec.service.jobs.train import PackedTask, write_bundle


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

    def answers(self, entry: TaskEntry) -> UserLabels:
        """One task's answers."""
        options = entry.answers if self.folder is None else entry.answers.within(self.folder)
        answers = answers_of(self.events, options, self.time, entry.delimiter)
        return answers.read(entry.settings.kind)

    def task(self, entry: TaskEntry) -> TaskToTrain:
        """One task's answers and settings."""
        return TaskToTrain(self.answers(entry), replace(entry.settings, **self.patch))


def run_finetune_many(
    loaded: LoadedBackbone, job: ManyJob, on_progress: OnProgress
) -> list[tuple[Path, PackedTask]]:
    """Train all tasks and write their bundles; nothing is written unless all succeed."""
    outs = [(job.folder or Path()) / entry.out for entry in job.tasks]
    existing = [str(out) for out in outs if out.exists() and job.folder is not None]
    if existing and not job.overwrite:
        raise OutputExists(
            f"{', '.join(existing)} exists.", hint="Give other names, or `overwrite`."
        )
    tasks = [job.task(entry) for entry in job.tasks]
    histories = read_histories(job.events.source(job.time.end_of_histories))
    trained = finetune_many(loaded, histories, tasks, on_progress)
    names = [entry.bundle_name for entry in job.tasks]
    packed = [
        PackedTask(task, pack_task(task, loaded, name))
        for task, name in zip(trained, names, strict=True)
    ]
    if job.folder is not None:
        for out, each in zip(outs, packed, strict=True):
            write_bundle(out, each.bundle)
    return list(zip(outs, packed, strict=True))
