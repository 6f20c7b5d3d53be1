"""The work of the training commands: read the data, train or evaluate, save the result."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.splits import split_users
from peterrec.model.disk import read_bytes, write_bytes
from peterrec.model.errors import FileSystemRefusal, SplitEmpty
from peterrec.model.files.backbone_folder import LoadedBackbone, load_backbone, save_backbone
from peterrec.model.files.backbone_info import SPEC
from peterrec.model.progress import Notice, OnProgress, no_notice
from peterrec.model.training.evaluation import evaluate_task
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
from peterrec.service.errors import OutputExists
from peterrec.service.jobs.options import Answers
from peterrec.service.jobs.packing import pack_task, unpack_task
from peterrec.service.jobs.torchrun import Place

OUTPUT_LAYER = "pretraining_output.safetensors"
"""File of the layer that scores every item. Pretraining needs it, serving does not."""

OnExisting = Literal["refuse", "resume", "overwrite"]

Part = Literal["test", "all"]


@dataclass(frozen=True, slots=True)
class FinetuneJob:
    """What to fine-tune on, and the bundle to write."""

    interactions: InteractionSource
    answers: Answers
    out: Path
    name: str
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """What to evaluate: a bundle on the users of these files.

    The last four fields are those of ``FinetuneSettings``; given the same ones, ``part`` test has
    the users that fine-tuning kept apart.
    """

    bundle: Path
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
    out: Path,
    on_existing: OnExisting,
    on_progress: OnProgress,
    place: Place,
    notice: Notice = no_notice,
) -> tuple[PretrainedBackbone, str]:
    """Pretrain into a folder; return the result and the backbone's fingerprint.

    If several processes train together, only the first one writes; the others get an empty
    fingerprint.
    """
    _prepare_folder(out, on_existing)
    histories = read_histories(interactions)
    with _telling_what_is_kept(out):
        trained = pretrain(
            histories,
            settings,
            checkpoints=out,
            resume=on_existing == "resume",
            on_progress=on_progress,
            workers=place.workers,
            device=place.device,
            notice=notice,
        )
    if not place.workers.writes:
        return trained, ""
    items = list(trained.vocabulary.items)
    layer = {OUTPUT_LAYER: trained.output.state_dict()}
    with _telling_what_is_kept(out):
        fingerprint = save_backbone(out, trained.backbone, items, trained.record, layer)
    remove_checkpoint(out)
    return trained, fingerprint


def kept_of(out: Path) -> str:
    """What an unfinished pretraining leaves in its folder, and how to go on from it."""
    if (out / CHECKPOINT).exists():
        return f"The last complete checkpoint is kept in {out}: go on from it with --resume."
    return "No epoch was complete, so no checkpoint is kept."


@contextmanager
def _telling_what_is_kept(out: Path) -> Iterator[None]:
    """Add to a refusal of the disk what it leaves."""
    try:
        yield
    except FileSystemRefusal as error:
        error.hint = f"{error.hint} {kept_of(out)}"
        raise


def run_finetune(
    loaded: LoadedBackbone,
    job: FinetuneJob,
    settings: FinetuneSettings,
    on_progress: OnProgress,
    notice: Notice = no_notice,
) -> FinetunedTask:
    """Fine-tune a task and write its bundle."""
    if job.out.exists() and not job.overwrite:
        raise OutputExists(f"{job.out} exists.", hint="Give another `out`, or `overwrite`.")
    labels = job.answers.read(settings.kind)
    histories = read_histories(job.interactions)
    task = finetune(loaded, histories, labels, settings, on_progress, notice=notice)
    write_bundle(job.out, pack_task(task, loaded, job.name))
    return task


def write_bundle(out: Path, data: bytes) -> None:
    """Write a bundle in one step: readers see the old file or the complete new one."""
    write_bytes(out, data)


def run_evaluate(
    backbone: Path, job: EvaluateJob, notice: Notice = no_notice
) -> tuple[dict[str, float], int]:
    """Metrics of a bundle, computed by the plain forward, and the number of users."""
    loaded = load_backbone(backbone)
    task = unpack_task(read_bytes(job.bundle), loaded)
    manifest = task.bundle.manifest
    labels = job.answers.read(manifest.kind)
    histories = read_histories(job.interactions)
    examples = prepare_examples(loaded, histories, labels, job.max_unknown_share)
    examples = learnable_examples(manifest.kind, examples, job.min_label_count)
    objective = task.objective(examples)
    rows = np.arange(len(examples.users), dtype=np.int64)
    if job.part == "test":
        seed = manifest.provenance.seed
        rows = split_users(examples.users, job.validation_share, job.test_share, seed).test
        if not len(rows):
            raise SplitEmpty(
                "there is no test part with --test-share 0.", hint="Give the share of fine-tuning."
            )
    summary = OBJECTIVES[manifest.kind].summary(examples, rows)
    doubts = (*doubts_of_histories(examples), *doubts_of_part(examples, rows, "evaluated"))
    for text in (summary.text, *doubts):
        notice(text)
    temperature = manifest.head.temperature
    return evaluate_task(task.model, objective, examples, rows, temperature), len(rows)


def _prepare_folder(out: Path, on_existing: OnExisting) -> None:
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
