"""The work of the training commands: read the data, train or evaluate, save the result."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from peterrec.model.data.examples import keep_frequent
from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.splits import split_users
from peterrec.model.files.backbone_folder import LoadedBackbone, fingerprint_of, save_backbone
from peterrec.model.files.backbone_info import SPEC
from peterrec.model.files.tensors import write_tensors
from peterrec.model.progress import OnProgress
from peterrec.model.training.evaluation import evaluate_task
from peterrec.model.training.finetune.finetune import (
    FinetunedTask,
    FinetuneSettings,
    finetune,
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
    """What to fine-tune on, and the bundle to write; without ``out`` no file is written."""

    interactions: InteractionSource
    answers: Answers
    out: Path | None
    name: str
    overwrite: bool = False


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
    on_progress: OnProgress,
    place: Place,
) -> tuple[PretrainedBackbone, str]:
    """Pretrain into a folder; return the result and the backbone's fingerprint.

    Without a folder there are no checkpoints, and nothing is written. If several processes train
    together, only the first one writes; the others get an empty fingerprint.
    """
    if out is not None:
        _prepare_folder(out, on_existing)
    trained = pretrain(
        read_histories(interactions),
        settings,
        checkpoints=out,
        resume=on_existing == "resume",
        on_progress=on_progress,
        workers=place.workers,
        device=place.device,
    )
    if not place.workers.writes:
        return trained, ""
    if out is None:
        backbone = trained.backbone
        items = list(trained.vocabulary.items)
        return trained, fingerprint_of(backbone.spec, items, backbone.state_dict())
    return trained, write_backbone(out, trained)


def write_backbone(out: Path, trained: PretrainedBackbone) -> str:
    """Write a pretrained backbone's folder and return its fingerprint."""
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / OUTPUT_LAYER, trained.output.state_dict())
    items = list(trained.vocabulary.items)
    fingerprint = save_backbone(out, trained.backbone, items, trained.record)
    remove_checkpoint(out)
    return fingerprint


def run_finetune(
    loaded: LoadedBackbone, job: FinetuneJob, settings: FinetuneSettings, on_progress: OnProgress
) -> PackedTask:
    """Fine-tune a task and write its bundle."""
    if job.out is not None and job.out.exists() and not job.overwrite:
        raise OutputExists(f"{job.out} exists.", hint="Give another `out`, or `overwrite`.")
    labels = job.answers.read(settings.kind)
    task = finetune(loaded, read_histories(job.interactions), labels, settings, on_progress)
    packed = PackedTask(task, pack_task(task, loaded, job.name))
    if job.out is not None:
        write_bundle(job.out, packed.bundle)
    return packed


def write_bundle(out: Path, data: bytes) -> None:
    """Write a bundle in one step: readers see the old file or the complete new one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_bytes(data)
    partial.replace(out)


def run_evaluate(loaded: LoadedBackbone, job: EvaluateJob) -> tuple[dict[str, float], int]:
    """Metrics of a bundle, computed by the plain forward, and the number of users."""
    task = unpack_task(job.bundle, loaded)
    manifest = task.bundle.manifest
    labels = job.answers.read(manifest.kind)
    histories = read_histories(job.interactions)
    examples = prepare_examples(loaded, histories, labels, job.max_unknown_share)
    examples = keep_frequent(examples, job.min_label_count)
    objective = OBJECTIVES[manifest.kind].of(task.outputs, examples)
    rows = np.arange(len(examples.users), dtype=np.int64)
    if job.part == "test":
        seed = manifest.provenance.seed
        rows = split_users(examples.users, job.validation_share, job.test_share, seed).test
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
