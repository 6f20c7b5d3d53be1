"""Many tasks fine-tuned in one run: rows of all of them in each forward and backward.

The backbone is shared and frozen, so a step takes a batch of every task that is not finished, each
through its own patch (``model/training/finetune/forward.py``). The activations of every history
below the patches are computed once for all tasks that read it. Tasks that choose their parts train
one network after the other, each together with all tasks that try it.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.errors import TasksDiffer, TrunkTooLarge
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.item_table import logits_of
from peterrec.model.progress import Notice, OnProgress, Progress, no_notice, no_progress
from peterrec.model.spec import PatchGeometry
from peterrec.model.training.batches import bucketed_batches, seeded
from peterrec.model.training.calibration import fit_temperature
from peterrec.model.training.evaluation import quality
from peterrec.model.training.events import TrainingListener, naming, report_epochs, unheard
from peterrec.model.training.finetune.activation_cache import ActivationCache
from peterrec.model.training.finetune.finetune import (
    FinetunedTask,
    PreparedTask,
    Training,
    finished_task,
    prepare_task,
    started_task,
)
from peterrec.model.training.finetune.folds import FOLDS
from peterrec.model.training.finetune.forward import FieldBlocks
from peterrec.model.training.finetune.networks import (
    NETWORKS,
    Network,
    TrainedNetwork,
    cross_logits,
    fold_tasks,
    label_of,
    names_of,
    networks_to_try,
    tracks_metrics,
)
from peterrec.model.training.finetune.parts import Choice, FittedParts, final_choice, first_choice
from peterrec.model.training.finetune.patch_stack import PatchStack
from peterrec.model.training.finetune.run import VALIDATION_ROWS
from peterrec.model.training.finetune.settings import PARTS, FinetuneSettings, Part
from peterrec.model.training.finetune.task_rows import (
    TaskRows,
    TaskUsers,
    distinct_histories,
    find_rows,
)
from peterrec.model.training.intervals import Ints
from peterrec.model.training.loop import (
    Epochs,
    Pass,
    backward,
    falling,
    require_finite,
    schedule,
)
from peterrec.model.training.objectives import ProbableObjective

FORWARD_ROWS = {"cpu": 256, "cuda": 1 << 14}
"""Largest number of rows of all tasks in one forward. On a CPU this keeps the activations between
two products in its cache: 32 tasks of 128 rows took 324 ms in one forward, 120 ms in chunks."""


@dataclass(frozen=True, slots=True)
class TaskToTrain:
    """A task's answers and settings. All tasks of a run must patch the same places.

    ``name`` is the task in messages. The ``listener`` hears of this task alone.
    """

    labels: UserLabels
    settings: FinetuneSettings
    name: str = ""
    listener: TrainingListener = unheard


def finetune_many(
    loaded: LoadedBackbone,
    histories: Histories,
    tasks: Sequence[TaskToTrain],
    on_progress: OnProgress = no_progress,
    notice: Notice = no_notice,
) -> list[FinetunedTask]:
    """Train all tasks in one run; each ends as ``finetune`` would have trained it alone.

    Only random draws differ: tasks that read the same history share its item dropout.
    """
    started = time.perf_counter()
    prepared = []
    for done, given in enumerate(tasks):
        on_progress(Progress("joining histories and answers", done, len(tasks), unit="tasks"))
        told = _named(given.name, notice)
        prepared.append(prepare_task(loaded, histories, given.labels, given.settings, told))
    _require_trainable(loaded.backbone, prepared)
    listeners = [task.listener for task in tasks]
    for task, listener in zip(prepared, listeners, strict=True):
        listener(started_task(task, loaded))
    users = [task.users for task in prepared]
    notices = [_named(given.name, notice) for given in tasks]
    networks = _networks(loaded.backbone, users, listeners, on_progress, notice)
    on_progress(Progress("choosing parts"))
    choices = [
        first_choice(loaded.backbone, task, own, notice=told)
        for task, own, told in zip(users, networks, notices, strict=True)
    ]
    crossed = _crossed(loaded.backbone, users, choices, on_progress)
    finished = []
    for at, (task, given) in enumerate(zip(prepared, tasks, strict=True)):
        on_progress(Progress("evaluating", at, len(tasks), unit="tasks"))
        fitted = final_choice(task.users, choices[at], crossed[at])
        seconds = (time.perf_counter() - started) / len(tasks)
        training = _training(task.users, fitted, seconds)
        finished.append(finished_task(task, loaded, training, given.listener))
    on_progress(Progress("evaluating", len(tasks), len(tasks), unit="tasks"))
    return finished


def _networks(
    backbone: Backbone,
    tasks: Sequence[TaskUsers],
    listeners: Sequence[TrainingListener],
    on_progress: OnProgress,
    notice: Notice,
) -> list[list[TrainedNetwork]]:
    """The trained networks of each task; all tasks that try one train it together."""
    tried = [networks_to_try(task) for task in tasks]
    names = [names_of(own) for own in tried]
    found: list[list[TrainedNetwork]] = [[] for _ in tasks]
    for parts in NETWORKS:
        trying = [at for at, own in enumerate(tried) if parts in own]
        heard = [naming(names[at][tried[at].index(parts)], listeners[at]) for at in trying]
        try:
            trained = _together(backbone, [tasks[at] for at in trying], parts, heard, on_progress)
        except TrunkTooLarge as error:
            if any(tasks[at].settings.chosen_parts is not None for at in trying):
                raise
            notice(f"{label_of(parts)}: not tried, as {error.message}")
            continue
        for at, network in zip(trying, trained, strict=True):
            found[at].append(network)
    return found


def _crossed(
    backbone: Backbone,
    tasks: Sequence[TaskUsers],
    choices: Sequence[Choice],
    on_progress: OnProgress,
) -> list[dict[tuple[Part, ...], Tensor]]:
    """Logits of each task's training users from networks that have not seen them."""
    found: list[dict[tuple[Part, ...], Tensor]] = [{} for _ in tasks]
    for parts in NETWORKS:
        asking = [at for at, choice in enumerate(choices) if parts in choice.to_cross]
        folds = [fold for at in asking for fold in fold_tasks(tasks[at])]
        try:
            trained = _together(backbone, folds, parts, [unheard] * len(folds), on_progress)
        except TrunkTooLarge:
            continue
        for place, at in enumerate(asking):
            own = trained[place * FOLDS : (place + 1) * FOLDS]
            found[at][parts] = cross_logits(tasks[at], own)
    return found


def _together(
    backbone: Backbone,
    tasks: Sequence[TaskUsers],
    parts: tuple[Part, ...],
    listeners: Sequence[TrainingListener],
    on_progress: OnProgress,
) -> list[TrainedNetwork]:
    """Train a network with these parts for each task."""
    if not tasks:
        return []
    run = ManyTasksRun(backbone, tasks, parts, listeners)
    run.train(on_progress)
    return [run.trained(at) for at in range(len(tasks))]


def _training(task: TaskUsers, fitted: FittedParts, seconds: float) -> Training:
    """Temperature and test metrics of a task's chosen parts."""
    started, network = time.perf_counter(), fitted.network
    held_out = _predictions(task, fitted, task.split.validation, network.vectors)
    test = _predictions(task, fitted, task.split.test, network.test_vectors)
    temperature = 1.0
    if isinstance(task.objective, ProbableObjective):
        samples = task.objective.samples(held_out, torch.from_numpy(task.split.validation))
        temperature = fit_temperature(samples)
    metrics = quality(task.objective, test, torch.from_numpy(task.split.test), temperature)
    return Training(fitted, metrics, seconds, temperature, time.perf_counter() - started)


@torch.no_grad()
def _predictions(task: TaskUsers, fitted: FittedParts, rows: Ints, vectors: Tensor) -> Tensor:
    """What the metrics need of examples [N] from the network's user vectors [N, C]."""
    found = []
    examples = torch.from_numpy(rows)
    for part, own in zip(
        torch.split(examples, VALIDATION_ROWS), torch.split(vectors, VALIDATION_ROWS), strict=True
    ):
        histories = [task.examples.rows[i] for i in part.tolist()]
        users = own.to(fitted.head.weight.device)
        logits = logits_of(fitted.head, users, fitted.table, histories).cpu()
        found.append(task.objective.predictions(logits, part))
    return torch.cat(found)


def _named(task: str, notice: Notice) -> Notice:
    return (lambda text: notice(f"{task}: {text}")) if task else notice


def _require_trainable(backbone: Backbone, tasks: Sequence[PreparedTask]) -> None:
    if not backbone.spec.is_causal:
        raise TasksDiffer(
            "a non-causal user vector reads every position of its own task's network.",
            hint="Fine-tune the tasks one by one, or pretrain a causal backbone.",
        )
    count = len(backbone.blocks)
    first, *others = (task.users.settings.geometry(count, PARTS) for task in tasks)
    for number, geometry in enumerate(others, 2):
        if geometry != first:
            raise TasksDiffer(
                f"task {number} patches {geometry}, the first one {first}.",
                hint="Train tasks of one geometry together, the others in a separate run.",
            )


@dataclass(slots=True)
class _TaskProgress:
    """The epochs of one task, and how far its current one has come."""

    epochs: Epochs
    batches: list[Tensor] = field(default_factory=list)
    done: int = 0
    loss: float = 0.0
    started: float = 0.0
    rates: list[float] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=torch.Generator)


class ManyTasksRun:
    """Trains one network, with these parts, for each of some tasks together."""

    def __init__(
        self,
        backbone: Backbone,
        tasks: Sequence[TaskUsers],
        parts: tuple[Part, ...],
        listeners: Sequence[TrainingListener],
    ) -> None:
        device = backbone.embedding.weight.device
        self._networks = [Network.of(backbone, task, parts) for task in tasks]
        self._cache = _cache_of(backbone, self._networks[0].patch.geometry, tasks)
        for task, network in zip(tasks, self._networks, strict=True):
            network.patch.to(device)
            network.head_objective.head.to(device)
            network.head_objective.prepare(torch.from_numpy(task.split.train))
        self._tasks = tasks
        self._listeners = listeners
        self._phase = f"fine-tuning {label_of(parts)}"
        self._blocks = FieldBlocks(backbone, backbone.spec.max_input_len, self._cache.block)
        self._rows: list[TaskRows] = find_rows(self._cache, tasks, backbone.spec.max_len)
        pairs = list(zip(tasks, self._networks, strict=True))
        self._progress = [_TaskProgress(_epochs(*pair)) for pair in pairs]
        groups = chain.from_iterable(_groups(*pair) for pair in pairs)
        self._optimizer = torch.optim.Adam(list(groups), fused=True)
        shapes = [falling(task.settings.epochs * _batch_count(task)) for task in tasks]
        self._schedule = schedule(self._optimizer, [shape for shape in shapes for _ in range(2)])
        self._forward_rows = FORWARD_ROWS[device.type]

    def train(self, on_progress: OnProgress) -> None:
        """Train every task until its epochs are over, then restore its best epoch's weights."""
        active, done = list(range(len(self._tasks))), 0
        total = sum(task.settings.epochs * _batch_count(task) for task in self._tasks)
        while active:
            for task in active:
                self._begin_epoch(task)
            self._step(active)
            done += len(active)
            ended = [t for t in active if self._progress[t].done == _batch_count(self._tasks[t])]
            self._finish_epochs(ended)
            active = [t for t in active if not self._progress[t].epochs.are_over]
            note = f"{len(active)} tasks"
            on_progress(Progress(self._phase, done if active else total, total, note, "batches"))
        for progress in self._progress:
            progress.epochs.restore_best()

    @torch.no_grad()
    def trained(self, task: int) -> TrainedNetwork:
        """A trained task's network, with its user vectors of validation and test users."""
        epochs, split = self._progress[task].epochs, self._tasks[task].split
        held_out, tested = (
            torch.cat(
                [
                    self._vectors([task], [part])[0].cpu()
                    for part in torch.split(torch.from_numpy(rows), VALIDATION_ROWS)
                ]
            )
            for rows in (split.validation, split.test)
        )
        network = self._networks[task]
        return TrainedNetwork(network, epochs.records, epochs.best, held_out, tested)

    def _begin_epoch(self, task: int) -> None:
        """Draw the batches of a task's next epoch, unless it is within an epoch."""
        progress, settings = self._progress[task], self._tasks[task].settings
        if progress.done:
            return
        train = self._tasks[task].split.train
        progress.generator = seeded(settings.seed, "finetune", len(progress.epochs))
        lengths = np.zeros(len(train), dtype=np.int64)  # rows of any length share a batch
        progress.batches = bucketed_batches(lengths, settings.batch_size, progress.generator)
        progress.loss, progress.started = 0.0, time.perf_counter()
        own = self._optimizer.param_groups[2 * task : 2 * task + 2]
        progress.rates = [float(group["lr"]) for group in own]

    def _step(self, active: list[int]) -> None:
        """Make one step of Adam with one batch of every active task.

        The other tasks' parameters have no gradient, so Adam leaves them and their moments alone.
        An active task has taken part in every step so far: its own step count is the run's.
        """
        self._optimizer.zero_grad()
        batches = [self._progress[task].batches[self._progress[task].done] for task in active]
        for part in self._chunks(batches):
            losses = self._losses([active[at] for at in part], [batches[at] for at in part])
            backward(torch.stack(losses).sum())
        self._optimizer.step()
        self._schedule.step()
        for task in active:
            self._progress[task].done += 1

    def _losses(self, tasks: list[int], batches: list[Tensor]) -> list[Tensor]:
        slots, losses = [], []
        for task, batch in zip(tasks, batches, strict=True):
            own = self._rows[task].train
            slots.append(own[len(self._progress[task].epochs) % len(own)][batch])
        vectors = self._grouped_vectors(tasks, slots)
        for task, batch, users in zip(tasks, batches, vectors, strict=True):
            progress, objective = self._progress[task], self._networks[task].head_objective
            examples = torch.from_numpy(self._tasks[task].split.train)[batch]
            loss = objective.loss(users, examples, progress.generator)
            step = len(progress.epochs) * len(progress.batches) + progress.done
            rate = self._optimizer.param_groups[2 * task]["lr"]
            progress.loss += require_finite(loss, step, rate) * len(batch)
            losses.append(loss + objective.penalty())
        return losses

    def _finish_epochs(self, ended: list[int]) -> None:
        """Validate the tasks whose epoch is over, and record the epoch."""
        trained = time.perf_counter()
        for task, validation in zip(ended, self._validations(ended), strict=True):
            progress, users = self._progress[task], len(self._tasks[task].split.train)
            train = Pass(progress.loss / users, users, trained - progress.started)
            progress.epochs.add(progress.epochs.record(train, validation, progress.rates))
            progress.done = 0
            report_epochs(self._listeners[task], progress.epochs.records[-1:])

    @torch.no_grad()
    def _validations(self, ended: list[int]) -> list[Pass]:
        """Mean loss per validation user of each task, on whole histories, and tracked metrics.

        Tasks are validated together; each one's time is an equal share.
        """
        started = time.perf_counter()
        parts = {t: self._tasks[t].split.validation for t in ended}
        generators = {t: seeded(self._tasks[t].settings.seed, "validate") for t in ended}
        totals = dict.fromkeys(ended, 0.0)
        vectors: dict[int, list[Tensor]] = {t: [] for t in ended}
        for start in range(0, max(map(len, parts.values()), default=0), VALIDATION_ROWS):
            rows = {
                t: torch.from_numpy(part[start : start + VALIDATION_ROWS])
                for t, part in parts.items()
                if start < len(part)
            }
            for task, users in zip(
                rows, self._vectors(list(rows), list(rows.values())), strict=True
            ):
                vectors[task].append(users)
                objective = self._networks[task].head_objective
                loss = objective.loss(users, rows[task], generators[task])
                totals[task] += loss.item() * len(rows[task])
        metrics = [self._tracked(task, torch.cat(vectors[task])) for task in ended]
        seconds = (time.perf_counter() - started) / max(1, len(ended))
        return [
            Pass(totals[task] / len(parts[task]), len(parts[task]), seconds, found)
            for task, found in zip(ended, metrics, strict=True)
        ]

    def _tracked(self, task: int, vectors: Tensor) -> dict[str, float]:
        """Metrics of a task's validation users from their vectors [B, C], if it tracks them."""
        if not tracks_metrics(self._tasks[task]):
            return {}
        rows = torch.from_numpy(self._tasks[task].split.validation)
        return self._networks[task].head_objective.metrics(vectors, rows)

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
        patches = [self._networks[task].patch for task in tasks]
        names = [name for name, _ in patches[0].named_parameters()]
        stacked = {n: torch.stack([patch.get_parameter(n) for patch in patches]) for n in names}
        stack = PatchStack.of_branches(patches[0].geometry, stacked)
        below = self._cache.states(padded.flatten().to(self._cache.device))  # G·B rows
        vectors = self._blocks.user_vectors(below, stack).view(*padded.shape, -1)  # [G, B, C]
        return [vectors[at, : len(own)] for at, own in enumerate(slots)]

    def _chunks(self, rows: list[Tensor]) -> list[list[int]]:
        """Group tasks with similar numbers of rows into chunks that fit into one forward."""
        order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
        chunks: list[list[int]] = []
        for at in order:
            if not chunks or (len(chunks[-1]) + 1) * len(rows[at]) > self._forward_rows:
                chunks.append([])
            chunks[-1].append(at)
        return chunks


def _cache_of(
    backbone: Backbone, geometry: PatchGeometry, tasks: Sequence[TaskUsers]
) -> ActivationCache:
    """A cache for all histories' activations below the first block that depends on the task."""
    first = 0 if geometry.has_cls else min(geometry.blocks, default=len(backbone.blocks))
    histories = distinct_histories(tasks, backbone.spec.max_len)
    cache = ActivationCache.within(backbone, first, histories)
    if cache is None:
        raise TrunkTooLarge(
            f"the activations of {histories} histories below block {first} do not fit into memory.",
            hint="Train fewer tasks or users in one run, or patch only higher blocks.",
        )
    return cache


def _batch_count(task: TaskUsers) -> int:
    return math.ceil(len(task.split.train) / task.settings.batch_size)


def _epochs(task: TaskUsers, network: Network) -> Epochs:
    trained = nn.ModuleList([network.patch, network.head_objective.head])
    return Epochs(trained, task.settings.epochs, task.settings.patience)


def _groups(task: TaskUsers, network: Network) -> Iterator[dict[str, Any]]:  # Any: torch's own type
    """A task's two parameter groups for the optimiser: patch and head."""
    yield {"params": network.patch.parameters(), "lr": task.settings.learning_rate}
    yield from network.head_objective.groups(task.settings.head_learning_rate)
