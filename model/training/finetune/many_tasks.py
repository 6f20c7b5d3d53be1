"""Many tasks fine-tuned in one run: rows of all of them in each forward and backward.

The backbone is shared and frozen, so a step takes a batch of every task that is not finished, each
through its own patch (``model/training/finetune/grouped_blocks.py``), and every history's states
below the patches
are computed once for all tasks that read it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.errors import TasksDiffer, TrunkTooLarge
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.network.backbone import Backbone
from peterrec.model.progress import OnProgress, Progress, no_progress
from peterrec.model.spec import PatchGeometry
from peterrec.model.training.batches import bucketed_batches, seeded
from peterrec.model.training.calibration import fit_temperature
from peterrec.model.training.evaluation import quality
from peterrec.model.training.finetune.finetune import (
    FinetunedTask,
    PreparedTask,
    Training,
    finished_task,
    prepare_task,
)
from peterrec.model.training.finetune.flat_adam import FlatAdam
from peterrec.model.training.finetune.frozen_trunk import FrozenTrunk
from peterrec.model.training.finetune.grouped_blocks import GroupedBlocks
from peterrec.model.training.finetune.kept_trunk import keep_trunk
from peterrec.model.training.finetune.patch_stack import PatchStack
from peterrec.model.training.finetune.run import VALIDATION_ROWS, FinetuneEpoch
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.finetune.task_rows import (
    TaskRows,
    Wanted,
    distinct_histories,
    find_rows,
)
from peterrec.model.training.loop import require_finite
from peterrec.model.training.objectives import ProbableObjective

FORWARD_ROWS = {"cpu": 256, "cuda": 1 << 14}
"""Rows of tasks in one forward: on a CPU what lies between two products then stays in its cache
(32 tasks of 128 rows each took 324 ms at once, 120 in chunks)."""


@dataclass(frozen=True, slots=True)
class TaskToTrain:
    """One of the tasks: its answers and settings. All tasks patch in the same places."""

    labels: UserLabels
    settings: FinetuneSettings


def finetune_many(
    loaded: LoadedBackbone,
    histories: Histories,
    tasks: Sequence[TaskToTrain],
    on_progress: OnProgress = no_progress,
) -> list[FinetunedTask]:
    """Train all tasks in one run; each ends as ``finetune`` would have trained it alone.

    Only the draws differ: thinned histories are shared by the tasks that read them.
    """
    started = time.perf_counter()
    prepared = [prepare_task(loaded, histories, task.labels, task.settings) for task in tasks]
    _require_trainable(loaded.backbone, prepared)
    run = ManyTasksRun(loaded, prepared)
    run.train(on_progress)
    seconds = (time.perf_counter() - started) / len(tasks)
    return [
        finished_task(task, loaded, run.training(at, seconds)) for at, task in enumerate(prepared)
    ]


def _require_trainable(backbone: Backbone, tasks: Sequence[PreparedTask]) -> None:
    if not backbone.spec.is_causal:
        raise TasksDiffer(
            "a non-causal user vector reads every position of its own task's network.",
            hint="Fine-tune the tasks one by one, or pretrain a causal backbone.",
        )
    first = tasks[0].patch.geometry
    for number, task in enumerate(tasks):
        if task.patch.geometry != first:
            raise TasksDiffer(
                f"task {number + 1} patches {task.patch.geometry}, the first one {first}.",
                hint="Train tasks of one geometry together, the others in a run of their own.",
            )


@dataclass(slots=True)
class _Course:
    """How far one task has come."""

    epochs: list[FinetuneEpoch] = field(default_factory=list)
    best_weights: list[Tensor] = field(default_factory=list)
    batches: list[Tensor] = field(default_factory=list)
    done: int = 0
    loss: float = 0.0
    started: float = 0.0
    generator: torch.Generator = field(default_factory=torch.Generator)

    @property
    def best_epoch(self) -> int:
        losses = [epoch.validation_loss for epoch in self.epochs]
        return losses.index(min(losses)) if losses else -1

    def is_over(self, settings: FinetuneSettings) -> bool:
        """True after the last epoch, or when patience is at its end."""
        waited = len(self.epochs) - 1 - self.best_epoch
        return len(self.epochs) >= settings.epochs or waited >= settings.patience


class ManyTasksRun:
    """Trains prepared tasks together; their patches and heads change in place."""

    def __init__(self, loaded: LoadedBackbone, tasks: Sequence[PreparedTask]) -> None:
        backbone = loaded.backbone
        device = backbone.embedding.weight.device
        for task in tasks:
            task.patch.to(device)
            task.goal.head.to(device)
            task.goal.prepare(torch.from_numpy(task.split.train))
        self._tasks = tasks
        wanted = [Wanted(task.examples, task.split, task.settings) for task in tasks]
        self._trunk = _trunk_of(backbone, tasks[0].patch.geometry, wanted)
        self._blocks = GroupedBlocks(backbone, self._trunk.block)
        self._rows: list[TaskRows] = find_rows(self._trunk, wanted, backbone.spec.max_len)
        self._adam = FlatAdam([(task.patch, task.goal.head) for task in tasks])
        self._courses = [_Course() for _ in tasks]
        self._forward_rows = FORWARD_ROWS[device.type]

    def train(self, on_progress: OnProgress) -> None:
        """Run every task to its end and give it back its best epoch's weights."""
        active, done = list(range(len(self._tasks))), 0
        total = sum(task.settings.epochs * _batch_count(task) for task in self._tasks)
        while active:
            for task in active:
                self._begin_epoch(task)
            self._step(active)
            done += len(active)
            ended = [t for t in active if self._courses[t].done == _batch_count(self._tasks[t])]
            self._finish_epochs(ended)
            over = {t for t in ended if self._courses[t].is_over(self._tasks[t].settings)}
            active = [t for t in active if t not in over]
            on_progress(
                Progress("fine-tune", done if active else total, total, f"{len(active)} tasks")
            )
        self._adam.release()
        for prepared, course in zip(self._tasks, self._courses, strict=True):
            _copy_into(_parameters(prepared), course.best_weights)
            prepared.goal.finish()

    @torch.no_grad()
    def training(self, task: int, seconds: float) -> Training:
        """What a task's training took, and its metrics on the test part."""
        prepared, course = self._tasks[task], self._courses[task]
        objective, rows = prepared.goal.objective, torch.from_numpy(prepared.split.test)
        temperature = 1.0
        if isinstance(objective, ProbableObjective):
            held_out = torch.from_numpy(prepared.split.validation)
            temperature = fit_temperature(
                objective.samples(self._predictions(task, held_out), held_out)
            )
        metrics = quality(objective, self._predictions(task, rows), rows, temperature)
        return Training(course.epochs, course.best_epoch, metrics, seconds, temperature)

    def _predictions(self, task: int, rows: Tensor) -> Tensor:
        """What a trained task's objective judges by, of some of its examples."""
        parts = torch.split(rows, VALIDATION_ROWS)
        vectors = torch.cat([self._vectors([task], [part])[0] for part in parts])
        return self._tasks[task].goal.predictions(vectors, rows)

    def _begin_epoch(self, task: int) -> None:
        course, settings = self._courses[task], self._tasks[task].settings
        if course.done:
            return
        train = self._tasks[task].split.train
        course.generator = seeded(settings.seed, "finetune", len(course.epochs))
        lengths = np.zeros(len(train), dtype=np.int64)  # rows of any length stand side by side
        course.batches = bucketed_batches(lengths, settings.batch_size, course.generator)
        course.loss, course.started = 0.0, time.perf_counter()

    def _step(self, active: list[int]) -> None:
        """One batch of every active task, and one step of Adam."""
        self._adam.zero_grad()
        batches = [self._courses[task].batches[self._courses[task].done] for task in active]
        for part in self._chunks(batches):
            tasks = [active[at] for at in part]
            losses = self._losses(tasks, [batches[at] for at in part])
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]  # torch's
        self._adam.step({task: self._rates(task) for task in active})
        for task in active:
            self._courses[task].done += 1

    def _losses(self, tasks: list[int], batches: list[Tensor]) -> list[Tensor]:
        slots, losses = [], []
        for task, batch in zip(tasks, batches, strict=True):
            own = self._rows[task].train
            slots.append(own[len(self._courses[task].epochs) % len(own)][batch])
        vectors = self._grouped_vectors(tasks, slots)
        for task, batch, users in zip(tasks, batches, vectors, strict=True):
            course, prepared = self._courses[task], self._tasks[task]
            examples = torch.from_numpy(prepared.split.train)[batch]
            losses.append(prepared.goal.loss(users, examples, course.generator))
            value = require_finite(losses[-1], course.done, self._rates(task)[0])
            course.loss += value * len(batch)
        return losses

    def _rates(self, task: int) -> tuple[float, float]:
        """Linear from the full learning rates at the start to 0 at the last epoch's end."""
        course, settings = self._courses[task], self._tasks[task].settings
        steps = len(course.batches)
        left = 1 - (len(course.epochs) * steps + course.done) / (settings.epochs * steps)
        return settings.learning_rate * left, settings.head_learning_rate * left

    def _finish_epochs(self, ended: list[int]) -> None:
        """Validate tasks whose epoch is over; keep the weights of those at their best."""
        for task, loss in zip(ended, self._validation_losses(ended), strict=True):
            course, prepared = self._courses[task], self._tasks[task]
            users, seconds = len(prepared.split.train), time.perf_counter() - course.started
            course.epochs.append(
                FinetuneEpoch(
                    epoch=len(course.epochs),
                    train_loss=course.loss / users,
                    validation_loss=loss,
                    seconds=round(seconds, 3),
                    sequences_per_second=round(users / seconds, 1),
                )
            )
            course.done = 0
            if course.best_epoch == len(course.epochs) - 1:
                course.best_weights = [p.detach().clone() for p in _parameters(prepared)]

    @torch.no_grad()
    def _validation_losses(self, ended: list[int]) -> list[float]:
        """Mean loss per validation user of each task, of whole histories."""
        parts = {t: self._tasks[t].split.validation for t in ended}
        generators = {t: seeded(self._tasks[t].settings.seed, "validate") for t in ended}
        totals = dict.fromkeys(ended, 0.0)
        for start in range(0, max(map(len, parts.values()), default=0), VALIDATION_ROWS):
            rows = {
                t: torch.from_numpy(part[start : start + VALIDATION_ROWS])
                for t, part in parts.items()
                if start < len(part)
            }
            for task, vectors in zip(
                rows, self._vectors(list(rows), list(rows.values())), strict=True
            ):
                loss = self._tasks[task].goal.loss(vectors, rows[task], generators[task])
                totals[task] += loss.item() * len(rows[task])
        return [totals[task] / len(parts[task]) for task in ended]

    def _vectors(self, tasks: list[int], rows: list[Tensor]) -> list[Tensor]:
        """User vectors [B, C] of some of each task's whole histories."""
        slots = [self._rows[task].whole[own] for task, own in zip(tasks, rows, strict=True)]
        found: dict[int, Tensor] = {}
        for part in self._chunks(slots):
            own = self._grouped_vectors([tasks[at] for at in part], [slots[at] for at in part])
            found |= dict(zip(part, own, strict=True))
        return [found[at] for at in range(len(slots))]

    def _grouped_vectors(self, tasks: list[int], slots: list[Tensor]) -> list[Tensor]:
        """User vectors [B, C] of each task's slots, all in one forward."""
        padded = torch.nn.utils.rnn.pad_sequence(slots, batch_first=True)  # [G, B]
        patches = [self._tasks[task].patch for task in tasks]
        names = [name for name, _ in patches[0].named_parameters()]
        stacked = {n: torch.stack([patch.get_parameter(n) for patch in patches]) for n in names}
        stack = PatchStack.of_branches(patches[0].geometry, stacked)
        states = self._trunk.states(padded.flatten().to(self._trunk.device))  # G·B rows
        vectors = self._blocks.user_vectors(states, stack).view(*padded.shape, -1)  # [G, B, C]
        return [vectors[at, : len(own)] for at, own in enumerate(slots)]

    def _chunks(self, rows: list[Tensor]) -> list[list[int]]:
        """Tasks whose rows fit into one forward, of like number."""
        order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
        chunks: list[list[int]] = []
        for at in order:
            if not chunks or (len(chunks[-1]) + 1) * len(rows[at]) > self._forward_rows:
                chunks.append([])
            chunks[-1].append(at)
        return chunks


def _trunk_of(backbone: Backbone, geometry: PatchGeometry, tasks: Sequence[Wanted]) -> FrozenTrunk:
    """Room for all histories' states below what depends on the task."""
    first = 0 if geometry.has_cls else min(geometry.blocks, default=len(backbone.blocks))
    histories = distinct_histories(tasks, backbone.spec.max_len)
    trunk = keep_trunk(backbone, first, histories)
    if trunk is None:
        raise TrunkTooLarge(
            f"the states of {histories} histories below block {first} do not fit.",
            hint="Train fewer tasks or users in one run, or patch only higher blocks.",
        )
    return trunk


def _batch_count(task: PreparedTask) -> int:
    return math.ceil(len(task.split.train) / task.settings.batch_size)


def _parameters(task: PreparedTask) -> list[nn.Parameter]:
    return [*task.patch.parameters(), *task.goal.head.parameters()]


@torch.no_grad()
def _copy_into(parameters: list[nn.Parameter], weights: list[Tensor]) -> None:
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.copy_(weight)
