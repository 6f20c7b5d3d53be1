"""The work of ``peterrec finetune-many``: read every task's answers, train together, save."""

from dataclasses import dataclass, replace
from pathlib import Path

from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.progress import OnProgress
from peterrec.model.spec import PatchGeometry
from peterrec.model.training.finetune.finetune import FinetunedTask
from peterrec.model.training.finetune.many_tasks import TaskToTrain, finetune_many
from peterrec.service.errors import OutputExists
from peterrec.service.jobs.jobs import write_bundle
from peterrec.service.jobs.options import cut_in_time, read_answers
from peterrec.service.jobs.packing import pack_task
from peterrec.service.jobs.task_file import TaskEntry


@dataclass(frozen=True, slots=True)
class ManyJob:
    """Tasks to train together; their paths count from ``folder``.

    Histories end before ``cut_off``, targets begin with it; nothing from ``until`` on is read.
    """

    interactions: InteractionSource
    tasks: tuple[TaskEntry, ...]
    folder: Path
    geometry: PatchGeometry
    overwrite: bool = False
    cut_off: str | None = None
    until: str | None = None

    def answers(self, entry: TaskEntry) -> UserLabels:
        """One task's answers."""
        options = entry.answers(self.folder, self.interactions.user_column)
        return read_answers(cut_in_time(self.interactions, options, self.cut_off, self.until)[1])

    def histories(self) -> Histories:
        """What all tasks read."""
        before = self.until if self.cut_off is None else self.cut_off
        return read_histories(replace(self.interactions, before=before))


def run_finetune_many(
    loaded: LoadedBackbone, job: ManyJob, on_progress: OnProgress
) -> list[tuple[Path, FinetunedTask]]:
    """Train all tasks and write their bundles; nothing is written unless all succeed."""
    outs = [job.folder / entry.out for entry in job.tasks]
    existing = [str(out) for out in outs if out.exists()]
    if existing and not job.overwrite:
        raise OutputExists(
            f"{', '.join(existing)} exists.", hint="Give other names, or --overwrite."
        )
    tasks = [TaskToTrain(job.answers(entry), entry.settings(job.geometry)) for entry in job.tasks]
    trained = finetune_many(loaded, job.histories(), tasks, on_progress)
    names = [entry.name or entry.out.name.removesuffix(".bundle") for entry in job.tasks]
    bundles = [pack_task(task, loaded, name) for task, name in zip(trained, names, strict=True)]
    for out, data in zip(outs, bundles, strict=True):
        write_bundle(out, data)
    return list(zip(outs, trained, strict=True))
