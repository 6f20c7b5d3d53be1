"""The work of the training commands: read the data, train or evaluate, save the result."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.splits import split_users
from peterrec.model.disk import write_bytes
from peterrec.model.errors import FileSystemRefusal, SplitEmpty
from peterrec.model.files.backbone_folder import LoadedBackbone, fingerprint_of, save_backbone
from peterrec.model.files.backbone_info import SPEC
from peterrec.model.progress import Progress
from peterrec.model.training.evaluation import evaluate_task
from peterrec.model.training.events import TrainingListener, unheard
from peterrec.model.training.finetune.doubts import doubts_of_histories, doubts_of_part
from peterrec.model.training.finetune.finetune import (
    FinetunedTask,
    FinetuneSettings,
    finetune,
    learnable_examples,
    prepare_examples,
)
from peterrec.model.training.objectives import OBJECTIVES
from peterrec.model.training.pretrain.pretrain import PretrainedBackbone, PretrainSettings, pretrain
from peterrec.model.training.pretrain.state import CHECKPOINT, remove_checkpoint
from peterrec.model.training.training_file import (
    TRAINING_FILE,
    training_file_of,
    write_training_file,
)
from peterrec.service.errors import OutputExists
from peterrec.service.jobs.describing import NOT_DESCRIBED, DescribeOptions, described
from peterrec.service.jobs.options import Answers
from peterrec.service.jobs.packing import pack_task, require_name, unpack_task
from peterrec.service.jobs.recording import Recording
from peterrec.service.jobs.task_data import record_of
from peterrec.service.jobs.torchrun import Place

OUTPUT_LAYER = "pretraining_output.safetensors"
"""File of the layer that scores every item. Pretraining needs it, serving does not."""

OnExisting = Literal["refuse", "resume", "overwrite", "continue"]
"""What to do with a folder that holds a backbone or a checkpoint: refuse it, resume an unfinished
run, or begin anew. ``continue`` is for processes whose folder was prepared by the one that started
them: they go on from its checkpoint, if there is one.
"""

Part = Literal["test", "all"]


@dataclass(frozen=True, slots=True)
class FinetuneJob:
    """What to fine-tune on, and the bundle to write; without ``out`` no file is written.

    ``descriptions`` are the tables of what outputs are called and may be filtered by.
    """

    interactions: InteractionSource
    answers: Answers
    out: Path | None
    name: str
    overwrite: bool = False
    descriptions: DescribeOptions = NOT_DESCRIBED


@dataclass(frozen=True, slots=True)
class PackedTask:
    """A fine-tuned task and its bundle."""

    task: FinetunedTask
    bundle: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """What to evaluate: a bundle on the users of these files.

    The last four fields are those of ``FinetuneSettings``; given the same ones, ``part`` test has
    the users that fine-tuning kept apart.
    """

    bundle: bytes = field(repr=False)
    interactions: InteractionSource
    answers: Answers
    part: Part
    min_label_count: int
    max_unknown_share: float
    validation_share: float
    test_share: float


def run_pretrain(
    interactions: InteractionSource,
    settings: PretrainSettings,
    out: Path | None,
    on_existing: OnExisting,
    observer: ReadingObserver,
    place: Place,
    recording: Recording = Recording(),
) -> tuple[PretrainedBackbone, str]:
    """Pretrain into a folder; return the result and the backbone's fingerprint.

    Without a folder there are no checkpoints, and nothing is written. If several processes train
    together, only the first one writes; the others get an empty fingerprint.
    """
    if out is not None:
        prepare_folder(out, on_existing)
    with _followed(recording, out, place) as listener:
        histories = read_histories(interactions, observer)
        with _telling_what_is_kept(out):
            trained = pretrain(
                histories,
                settings,
                checkpoints=out,
                resume=on_existing in ("resume", "continue"),
                on_progress=observer.progress,
                listener=listener,
                workers=place.workers,
                device=place.device,
                notice=observer.notice,
            )
        if not place.workers.writes:
            return trained, ""
        if out is not None:
            observer.progress(Progress("writing the backbone"))
            return trained, _write_folder(out, trained)
    items = list(trained.vocabulary.items)
    return trained, fingerprint_of(trained.backbone.spec, items, trained.backbone.state_dict())


def _followed(
    recording: Recording, out: Path | None, place: Place
) -> AbstractContextManager[TrainingListener]:
    """The listener of a pretraining; of several processes, only the first one has one."""
    if not place.workers.writes:
        return nullcontext(unheard)
    if out is None:
        return recording.of(None, "backbone")
    return recording.of(out / TRAINING_FILE, out.absolute().name)


def write_backbone(out: Path, trained: PretrainedBackbone) -> str:
    """Write the folder of a backbone that was trained in memory; return its fingerprint."""
    fingerprint = _write_folder(out, trained)
    write_training_file(out / TRAINING_FILE, trained.record)
    return fingerprint


def _write_folder(out: Path, trained: PretrainedBackbone) -> str:
    items = list(trained.vocabulary.items)
    layer = {OUTPUT_LAYER: trained.output.state_dict()}
    with _telling_what_is_kept(out):
        fingerprint = save_backbone(out, trained.backbone, items, trained.record, layer)
    remove_checkpoint(out)
    return fingerprint


def kept_of(out: Path) -> str:
    """What an unfinished pretraining leaves in its folder, and how to go on from it."""
    if (out / CHECKPOINT).exists():
        return f"The last complete checkpoint is kept in {out}: go on from it with `resume`."
    return "No epoch was complete, so no checkpoint is kept."


@contextmanager
def _telling_what_is_kept(out: Path | None) -> Iterator[None]:
    """Add to a refusal of the disk what it leaves."""
    try:
        yield
    except FileSystemRefusal as error:
        if out is None:
            raise
        error.hint = f"{error.hint} {kept_of(out)}"
        raise


def run_finetune(
    loaded: LoadedBackbone,
    job: FinetuneJob,
    settings: FinetuneSettings,
    observer: ReadingObserver,
    recording: Recording = Recording(),
) -> PackedTask:
    """Fine-tune a task and write its bundle."""
    require_name(job.name)
    if job.out is not None and job.out.exists() and not job.overwrite:
        raise OutputExists(f"{job.out} exists.", hint="Give another `out`, or `overwrite`.")
    path = None if job.out is None else training_file_of(job.out)
    with recording.of(path, job.name) as listener:
        labels = job.answers.read(settings.kind, observer)
        histories = read_histories(job.interactions, observer)
        task = finetune(
            loaded, histories, labels, settings, observer.progress, listener, observer.notice
        )
        observer.progress(Progress("packing the bundle"))
        reading = record_of(job.interactions, job.answers)
        bundle = pack_task(task, loaded, job.name, reading)
        bundle = described(bundle, job.descriptions, job.answers, observer)
        packed = PackedTask(task, bundle)
        if job.out is not None:
            write_bytes(job.out, packed.bundle)
    return packed


def run_evaluate(
    loaded: LoadedBackbone, job: EvaluateJob, observer: ReadingObserver = SILENT
) -> tuple[dict[str, float], int]:
    """Metrics of a bundle, computed by the plain forward, and the number of users."""
    observer.progress(Progress("verifying the bundle"))
    task = unpack_task(job.bundle, loaded)
    manifest = task.bundle.manifest
    labels = job.answers.read(manifest.kind, observer)
    histories = read_histories(job.interactions, observer)
    observer.progress(Progress("joining histories and answers"))
    examples = prepare_examples(loaded, histories, labels, job.max_unknown_share)
    examples = learnable_examples(manifest.kind, examples, job.min_label_count)
    objective = task.objective(examples)
    rows = np.arange(len(examples.users), dtype=np.int64)
    if job.part == "test":
        seed = manifest.provenance.seed
        rows = split_users(examples.users, job.validation_share, job.test_share, seed).test
        if not len(rows):
            raise SplitEmpty(
                "a test share of 0 leaves nothing to measure on.",
                hint="Give the `test_share` of fine-tuning.",
            )
    summary = OBJECTIVES[manifest.kind].summary(examples, rows)
    doubts = (*doubts_of_histories(examples), *doubts_of_part(examples, rows, "evaluated"))
    for text in (summary.text, *doubts):
        observer.notice(text)
    temperature = manifest.head.temperature
    on_progress = observer.progress
    metrics = evaluate_task(task.model, objective, examples, rows, temperature, on_progress)
    return metrics, len(rows)


def prepare_folder(out: Path, on_existing: OnExisting) -> None:
    """Refuse a folder that the run must not write to; OutputExists says why."""
    if on_existing == "continue":
        return
    found = [name for name in (SPEC, CHECKPOINT) if (out / name).exists()]
    if on_existing == "overwrite":
        remove_checkpoint(out)
    elif SPEC in found:
        raise OutputExists(
            f"{out} holds a finished backbone.", hint="Give another `out`, or `overwrite`."
        )
    elif found and on_existing == "refuse":
        raise OutputExists(
            f"{out} holds the checkpoint of an unfinished run.",
            hint="Continue it with `resume`, or start again with `overwrite`.",
        )
