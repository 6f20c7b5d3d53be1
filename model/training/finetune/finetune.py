"""Fine-tuning: the parts of one task and its head are learned; the backbone never changes.

The method is PeterRec's (section 3); history reader and item table are additions of ours.
"""

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
from peterrec.model.network.heads import Head
from peterrec.model.network.item_table import ItemTable
from peterrec.model.network.patch import PatchWeights
from peterrec.model.progress import Notice, OnProgress, Progress, no_notice, no_progress
from peterrec.model.spec import HeadKind, PatchGeometry
from peterrec.model.training.evaluation import calibrate_task, evaluate_prior, evaluate_task
from peterrec.model.training.events import (
    PartMeasured,
    TrainingEnded,
    TrainingListener,
    TrainingStarted,
    machine_of,
    unheard,
)
from peterrec.model.training.finetune.doubts import doubts_of_task
from peterrec.model.training.finetune.parts import FittedParts, fit_parts
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.finetune.task_rows import TaskUsers
from peterrec.model.training.loop import now
from peterrec.model.training.objectives import OBJECTIVES, Objective, ScaledObjective

__all__ = ["FinetuneSettings", "FinetunedTask", "finetune", "prepare_examples"]


BASELINE_PREFIX = "baseline_"
"""Prefix of the metrics of the best answer that ignores the history."""


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
    """A task before training: its users, their answers, and the names of its outputs.

    ``started_at`` is the time at which it was prepared, in UTC.
    """

    users: TaskUsers
    outputs: tuple[str, ...]
    metadata: Document
    started_at: str


@dataclass(frozen=True, slots=True)
class Training:
    """The trained parts of a task, their metrics on the test users, and the temperature.

    ``temperature`` is fitted on the validation part; the metrics include its calibration error.
    ``seconds`` are those of the whole training, ``test_seconds`` those of the test.
    """

    fitted: FittedParts
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
    """Train the parts and the head of one task, and choose those parts that validation prefers.

    Users are split into training, validation and test parts. Metrics are those of the test part,
    in addition to those of the best answer that ignores the history (``baseline_…``). What the
    answers are, and what is doubtful about them, is told before training begins.
    """
    started = time.perf_counter()
    on_progress(Progress("joining histories and answers"))
    task = prepare_task(loaded, histories, labels, settings, notice)
    listener(started_task(task, loaded))
    users = task.users
    fitted = fit_parts(loaded.backbone, users, on_progress, listener, notice)
    model, split = fitted.model(loaded.backbone), users.split
    measured = (model, users.objective, users.examples)
    temperature = calibrate_task(*measured, split.validation, on_progress)
    tested = time.perf_counter()
    metrics = evaluate_task(*measured, split.test, temperature, on_progress)
    ended = time.perf_counter()
    training = Training(fitted, metrics, ended - started, temperature, ended - tested)
    return finished_task(task, loaded, training, listener)


def prepare_task(
    loaded: LoadedBackbone,
    histories: Histories,
    labels: UserLabels,
    settings: FinetuneSettings,
    notice: Notice = no_notice,
) -> PreparedTask:
    """Split a task's users, and learn what its outputs are."""
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
    metadata = _metadata(histories, labels, examples, split)
    metadata |= {"answers": summary.text, "warnings": warnings}
    users = TaskUsers(examples, split, settings, objective)
    return PreparedTask(users, outputs, metadata, now())


def started_task(task: PreparedTask, loaded: LoadedBackbone) -> TrainingStarted:
    """What a listener hears of a task before its first epoch."""
    return TrainingStarted(
        "finetune",
        settings=asdict(task.users.settings),
        data={**task.metadata, "outputs": task.users.objective.head_spec.outputs},
        machine=machine_of(loaded.backbone.embedding.weight.device),
        backbone=loaded.fingerprint,
        time=task.started_at,
    )


def finished_task(
    task: PreparedTask,
    loaded: LoadedBackbone,
    training: Training,
    listener: TrainingListener = unheard,
) -> FinetunedTask:
    """A trained task with its record; its metrics include those of the baseline."""
    users, fitted = task.users, training.fitted
    baseline = evaluate_prior(users.objective, users.split.train, users.split.test)
    metrics = training.metrics | {BASELINE_PREFIX + k: value for k, value in baseline.items()}
    ended = _report_end(task, training, metrics, listener)
    return FinetunedTask(
        geometry=fitted.geometry,
        patch=fitted.network.network.patch.folded(),
        head=fitted.head.requires_grad_(False),
        outputs=task.outputs,
        metrics=metrics,
        examples=users.examples,
        split=users.split,
        record={
            "settings": asdict(users.settings),
            "backbone": loaded.fingerprint,
            "data": {**task.metadata, "outputs": users.objective.head_spec.outputs},
            **fitted.record(),
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
        scale=scale_of(users.objective),
        table=fitted.table,
    )


def scale_of(objective: Objective) -> ValueScale:
    """The line from a logit to the answer; it changes nothing unless the task answers a number."""
    return objective.scale if isinstance(objective, ScaledObjective) else ValueScale()


def _report_end(
    task: PreparedTask, training: Training, metrics: dict[str, float], listener: TrainingListener
) -> TrainingEnded:
    network = training.fitted.network
    best = network.best_epoch + 1
    listener(training.fitted.event())
    rows, seconds = len(task.users.split.test), round(training.test_seconds, 3)
    listener(PartMeasured(best, "test", metrics=metrics, rows=rows, seconds=seconds))
    whole = round(training.seconds, 3)
    ended = TrainingEnded(best, len(network.epochs), whole, training.temperature)
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
