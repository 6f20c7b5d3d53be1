"""The work of ``peterrec finetune-many``: read every task's answers, train together, save."""

from dataclasses import dataclass
from pathlib import Path

from model.backbone_folder import LoadedBackbone
from model.data import InteractionSource, read_histories
from model.finetuning import FinetunedTask
from model.many_tasks import TaskToTrain, finetune_many
from model.progress import Watch
from model.spec import PatchGeometry
from service.training.errors import OutputExists
from service.training.jobs import write_bundle
from service.training.options import read_answers
from service.training.packing import pack_task
from service.training.task_file import TaskEntry


@dataclass(frozen=True, slots=True)
class ManyJob:
    """Tasks to train together; their paths count from ``folder``."""

    interactions: InteractionSource
    tasks: tuple[TaskEntry, ...]
    folder: Path
    geometry: PatchGeometry
    overwrite: bool = False


def run_finetune_many(
    loaded: LoadedBackbone, job: ManyJob, watch: Watch
) -> list[tuple[Path, FinetunedTask]]:
    """Train all tasks and write their bundles; nothing is written unless all succeed."""
    outs = [job.folder / entry.out for entry in job.tasks]
    existing = [str(out) for out in outs if out.exists()]
    if existing and not job.overwrite:
        raise OutputExists(
            f"{', '.join(existing)} exists.", hint="Give other names, or --overwrite."
        )
    user_column = job.interactions.user_column
    tasks = [
        TaskToTrain(
            read_answers(entry.answers(job.folder, user_column)), entry.settings(job.geometry)
        )
        for entry in job.tasks
    ]
    trained = finetune_many(loaded, read_histories(job.interactions), tasks, watch)
    names = [entry.name or entry.out.name.removesuffix(".bundle") for entry in job.tasks]
    bundles = [pack_task(task, loaded, name) for task, name in zip(trained, names, strict=True)]
    for out, data in zip(outs, bundles, strict=True):
        write_bundle(out, data)
    return list(zip(outs, trained, strict=True))
