"""Fine-tuning: a patch and a head learn one task; the backbone never changes (PeterRec, sec. 3)."""

import platform
import time
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from peterrec.model.data.examples import (
    Examples,
    join_answers,
    keep_frequent,
    require_shared_users,
)
from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.data.splits import UserSplit, split_users
from peterrec.model.data.vocabulary import Vocabulary, require_known, tokenize
from peterrec.model.documents import Document
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.kinds import KINDS
from peterrec.model.kinds.value import ValueScale
from peterrec.model.network.backbone import new_patch
from peterrec.model.network.heads import Head
from peterrec.model.network.item_table import ItemTable
from peterrec.model.network.patch import Patch, PatchWeights
from peterrec.model.progress import Notice, OnProgress, Progress, no_notice, no_progress
from peterrec.model.spec import HeadKind, PatchGeometry
from peterrec.model.training.batches import seeded
from peterrec.model.training.evaluation import (
    TaskModel,
    calibrate_task,
    evaluate_prior,
    evaluate_task,
)
from peterrec.model.training.events import (
    PartMeasured,
    TrainingEnded,
    TrainingListener,
    TrainingStarted,
    machine_of,
    unheard,
)
from peterrec.model.training.finetune.doubts import doubts_of_task
from peterrec.model.training.finetune.encoders import CachedPatchedBackbone, patch_encoder
from peterrec.model.training.finetune.objective_of_head import HeadObjective
from peterrec.model.training.finetune.run import FinetuneRun
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.loop import EpochRecord, now
from peterrec.model.training.objectives import OBJECTIVES, Objective, ScaledObjective

__all__ = ["FinetuneSettings", "FinetunedTask", "finetune", "prepare_examples"]


BASELINE_PREFIX = "baseline_"
"""Prefix of the metrics of the best answer that ignores the history."""

MOST_VALIDATION_SCORES = 1_000_000
"""Most scores (validation users times outputs) that metrics are computed from after every epoch.
A ranking takes 60 ms for as many. Above it, as with large catalogs, there is the loss alone."""


@dataclass(frozen=True, slots=True)
class FinetunedTask:
    """The result of fine-tuning: weights, the names of the outputs, metrics and a record.

    ``outputs`` are labels, tags or catalog items in the order of the head's rows; empty for a
    value. ``examples`` and ``split`` are the users it was trained, validated and tested on. Logits
    are divided by ``temperature``, which was fitted on the validation part. ``scale`` makes a value
    of the logit. ``table`` is added to the logits.
    """

    geometry: PatchGeometry
    patch: dict[str, Tensor]
    head: Head
    outputs: tuple[str, ...]
    metrics: dict[str, float]
    examples: Examples
    split: UserSplit
    record: Document
    temperature: float = 1.0
    scale: ValueScale = field(default_factory=ValueScale)
    table: ItemTable | None = None

    @property
    def patch_weights(self) -> PatchWeights:
        """The folded patch, for a forward."""
        return PatchWeights.from_named(self.geometry, self.patch)


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """A task before training: its users and answers, an untrained patch and head.

    ``started_at`` is the time at which it was prepared, in UTC.
    """

    settings: FinetuneSettings
    examples: Examples
    split: UserSplit
    outputs: tuple[str, ...]
    patch: Patch
    head_objective: HeadObjective
    metadata: Document
    started_at: str


@dataclass(frozen=True, slots=True)
class Training:
    """The epochs of a trained task, its metrics on the test part, and its temperature.

    ``temperature`` is fitted on the validation part; the metrics include its calibration error.
    ``seconds`` are those of the whole training, ``test_seconds`` those of the test.
    """

    epochs: list[EpochRecord]
    best_epoch: int
    metrics: dict[str, float]
    seconds: float
    temperature: float
    test_seconds: float


def finetune(
    loaded: LoadedBackbone,
    histories: Histories,
    labels: UserLabels,
    settings: FinetuneSettings,
    on_progress: OnProgress = no_progress,
    listener: TrainingListener = unheard,
    notice: Notice = no_notice,
) -> FinetunedTask:
    """Train a patch and head on one task's answers; keep the epoch with the best validation loss.

    Users are split into training, validation and test parts. Metrics are those of the test part,
    in addition to those of the best answer that ignores the history (``baseline_…``). What the
    answers are, and what is doubtful about them, is told before training begins.
    """
    started = time.perf_counter()
    on_progress(Progress("joining histories and answers"))
    task = prepare_task(loaded, histories, labels, settings, notice)
    listener(started_task(task, loaded))
    head_objective, split, examples = task.head_objective, task.split, task.examples
    variants = settings.trunk_variants if settings.item_dropout else 1
    histories_met = variants * len(split.train) + len(split.validation)
    encoder = patch_encoder(
        loaded.backbone, task.patch, histories_met if settings.trunk_variants else 0
    )
    if not isinstance(encoder, CachedPatchedBackbone):
        variants = 0
    run = FinetuneRun(
        encoder,
        head_objective,
        examples,
        split,
        settings,
        variants=variants,
        tracks_metrics=tracks_metrics(task),
    )
    run.train(on_progress, listener)
    model = TaskModel(loaded.backbone, task.patch.weights(), head_objective.head)
    objective = head_objective.objective
    temperature = calibrate_task(model, objective, examples, split.validation, on_progress)
    tested = time.perf_counter()
    metrics = evaluate_task(model, objective, examples, split.test, temperature, on_progress)
    ended = time.perf_counter()
    training = Training(
        run.epochs.records, run.epochs.best, metrics, ended - started, temperature, ended - tested
    )
    return finished_task(task, loaded, training, listener)


def prepare_task(
    loaded: LoadedBackbone,
    histories: Histories,
    labels: UserLabels,
    settings: FinetuneSettings,
    notice: Notice = no_notice,
) -> PreparedTask:
    """Split a task's users, and build its untrained patch and head."""
    examples = prepare_examples(loaded, histories, labels, settings.max_unknown_share)
    examples = learnable_examples(settings.kind, examples, settings.min_label_count)
    split = split_users(
        examples.users, settings.validation_share, settings.test_share, settings.seed
    )
    kind = OBJECTIVES[settings.kind]
    summary = kind.summary(examples, np.arange(len(examples.users)))
    notice(summary.text)
    outputs = kind.learn_outputs(examples, split.train)
    task_doubts = doubts_of_task(examples, split)
    warnings = [*summary.doubts, *task_doubts]
    for warning in warnings:
        notice(warning)
    objective = kind.of(outputs, examples)
    generator = seeded(settings.seed, "patch")
    patch = new_patch(loaded.backbone, settings.geometry(len(loaded.backbone.blocks)), generator)
    head_objective = HeadObjective(objective, loaded.backbone.spec.channels, generator)
    metadata = _metadata(histories, labels, examples, split)
    metadata |= {"answers": summary.text, "warnings": warnings}
    return PreparedTask(settings, examples, split, outputs, patch, head_objective, metadata, now())


def started_task(task: PreparedTask, loaded: LoadedBackbone) -> TrainingStarted:
    """What a listener hears of a task before its first epoch."""
    return TrainingStarted(
        "finetune",
        settings=asdict(task.settings),
        data={**task.metadata, "outputs": task.head_objective.objective.head_spec.outputs},
        machine=machine_of(loaded.backbone.embedding.weight.device),
        backbone=loaded.fingerprint,
        time=task.started_at,
    )


def tracks_metrics(task: PreparedTask) -> bool:
    """Whether metrics are computed after every epoch: not if they need too many scores."""
    outputs = task.head_objective.objective.head_spec.outputs
    return len(task.split.validation) * outputs <= MOST_VALIDATION_SCORES


def finished_task(
    task: PreparedTask,
    loaded: LoadedBackbone,
    training: Training,
    listener: TrainingListener = unheard,
) -> FinetunedTask:
    """A trained task with its record; its metrics include those of the baseline."""
    baseline = evaluate_prior(task.head_objective.objective, task.split.train, task.split.test)
    metrics = training.metrics | {BASELINE_PREFIX + k: value for k, value in baseline.items()}
    ended = _report_end(task, training, metrics, listener)
    return FinetunedTask(
        geometry=task.patch.geometry,
        patch=task.patch.folded(),
        head=task.head_objective.head.requires_grad_(False),
        outputs=task.outputs,
        metrics=metrics,
        examples=task.examples,
        split=task.split,
        record={
            "settings": asdict(task.settings),
            "backbone": loaded.fingerprint,
            "data": {**task.metadata, "outputs": task.head_objective.objective.head_spec.outputs},
            "best_epoch": training.best_epoch,
            "epochs": [asdict(epoch) for epoch in training.epochs],
            "metrics": metrics,
            "temperature": training.temperature,
            "seconds": ended.seconds,
            "test_seconds": round(training.test_seconds, 3),
            "machine": machine_of(loaded.backbone.embedding.weight.device),
            "started_at": task.started_at,
            "ended_at": ended.time,
            "software": {"python": platform.python_version(), "torch": torch.__version__},
        },
        temperature=training.temperature,
        scale=scale_of(task.head_objective.objective),
    )


def scale_of(objective: Objective) -> ValueScale:
    """The line from a logit to the answer; it changes nothing unless the task answers a number."""
    return objective.scale if isinstance(objective, ScaledObjective) else ValueScale()


def _report_end(
    task: PreparedTask, training: Training, metrics: dict[str, float], listener: TrainingListener
) -> TrainingEnded:
    best = training.best_epoch + 1
    rows, seconds = len(task.split.test), round(training.test_seconds, 3)
    listener(PartMeasured(best, "test", metrics=metrics, rows=rows, seconds=seconds))
    whole = round(training.seconds, 3)
    ended = TrainingEnded(best, len(training.epochs), whole, training.temperature)
    listener(ended)
    return ended


def prepare_examples(
    loaded: LoadedBackbone, histories: Histories, labels: UserLabels, max_unknown_share: float
) -> Examples:
    """The labelled users' histories as tokens; fails if too many of their items are unknown."""
    require_shared_users(histories.users, labels)
    vocabulary = Vocabulary(tuple(loaded.items))
    wanted = np.flatnonzero([user in labels.by_user for user in histories.users])
    known = tokenize(histories.select(wanted), vocabulary)
    require_known(known, max_unknown_share, "the histories")
    return join_answers(known, labels, vocabulary.items)


def learnable_examples(kind: HeadKind, examples: Examples, min_label_count: int) -> Examples:
    """The examples without answers that too few users have; numbers are never too rare."""
    is_number = KINDS[kind].answers == "number"
    return examples if is_number else keep_frequent(examples, min_label_count)


def _metadata(
    histories: Histories, labels: UserLabels, examples: Examples, split: UserSplit
) -> Document:
    return {
        "histories_digest": histories.digest(),
        "labels_digest": labels.digest(),
        "train_users": len(split.train),
        "validation_users": len(split.validation),
        "test_users": len(split.test),
        "without_history": examples.without_history,
    }
