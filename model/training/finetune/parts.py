"""Which parts a task gets: each combination is trained, and validation users choose.

A combination is a network (blocks and reader, one of them, or neither) with or without an item
table. Networks and table are trained alone and joined by factors (``fusion.py``), so all
combinations cost four trainings and one table. The combination with the lowest loss on the
validation users would win by chance too often: among those that are not clearly worse than it, the
smallest one is taken. Clearly worse means by more than ``TOLERATED_ERRORS`` standard errors of the
difference, paired by user.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import torch
from torch import Tensor

from peterrec.model.documents import Document
from peterrec.model.errors import ItemTableTooLarge
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.heads import Head
from peterrec.model.network.item_table import ItemTable
from peterrec.model.progress import Notice, OnProgress, Progress, no_notice, no_progress
from peterrec.model.spec import PatchGeometry, TableSpec
from peterrec.model.training.batches import seeded
from peterrec.model.training.evaluation import TaskModel
from peterrec.model.training.events import PartsChosen, TrainingListener, naming, unheard
from peterrec.model.training.finetune.fusion import cross_joined, fit_factors
from peterrec.model.training.finetune.item_table import (
    MOST_WEIGHTS,
    FittedTable,
    fit_table,
    table_weights,
)
from peterrec.model.training.finetune.networks import (
    TrainedNetwork,
    label_of,
    names_of,
    networks_to_try,
    train_network,
)
from peterrec.model.training.finetune.settings import Part
from peterrec.model.training.finetune.task_rows import TaskUsers
from peterrec.model.training.objectives import LogitObjective, ProbableObjective

TOLERATED_ERRORS = 1.0
"""Standard errors by which a smaller combination may be behind the best one and still be taken."""

MOST_GROUPS = 256
"""Groups of validation users whose mean losses give a standard error; up to so many users, each is
a group."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination of parts on the validation users.

    ``loss`` is the mean loss per user, with factors learned on other users. ``behind`` is the
    distance from the lowest loss, ``error`` its standard error over users. ``size_bytes`` are those
    of patch and table; the head is the same for all.
    """

    parts: tuple[Part, ...]
    loss: float
    behind: float
    error: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FittedParts:
    """The chosen parts of a task, trained and joined under one head, and what was tried."""

    parts: tuple[Part, ...]
    network: TrainedNetwork
    table: ItemTable | None
    trials: tuple[Trial, ...]
    networks: tuple[TrainedNetwork, ...]

    @property
    def head(self) -> Head:
        return self.network.network.head_objective.head

    @property
    def geometry(self) -> PatchGeometry:
        return self.network.network.patch.geometry

    @property
    def validation_loss(self) -> float:
        return next(trial.loss for trial in self.trials if trial.parts == self.parts)

    @property
    def names(self) -> tuple[str | None, ...]:
        """The networks' names in reports; None if there was one alone."""
        return names_of([network.parts for network in self.networks])

    def event(self) -> PartsChosen:
        """What a listener hears of the choice."""
        trials = [asdict(trial) for trial in self.trials]
        return PartsChosen(self.parts, label_of(self.network.parts), trials)

    def record(self) -> Document:
        """The choice, and the epochs of the kept network and of all of them, as JSON."""
        event = self.event()
        kept, *networks = (
            {"best_epoch": each.best_epoch, "epochs": [asdict(epoch) for epoch in each.epochs]}
            for each in (self.network, *self.networks)
        )
        named = [
            {"network": name, **network} for name, network in zip(self.names, networks, strict=True)
        ]
        return {
            "parts": list(event.parts),
            "network": event.network,
            "trials": list(event.trials),
            **kept,
            "networks": named,
        }

    def model(self, backbone: Backbone) -> TaskModel:
        """The task in the plain forward; logits are not yet divided by a temperature."""
        patch = self.network.network.patch.weights()
        return TaskModel(backbone, patch, self.head, self.table)


def fit_parts(
    backbone: Backbone,
    task: TaskUsers,
    on_progress: OnProgress = no_progress,
    listener: TrainingListener = unheard,
    notice: Notice = no_notice,
) -> FittedParts:
    """Train the combinations that the settings ask for, and choose one by validation loss."""
    tried = networks_to_try(task)
    networks = [
        train_network(backbone, task, parts, on_progress, naming(name, listener))
        for parts, name in zip(tried, names_of(tried), strict=True)
    ]
    return choose_parts(task, networks, on_progress, notice)


def choose_parts(
    task: TaskUsers,
    networks: Sequence[TrainedNetwork],
    on_progress: OnProgress = no_progress,
    notice: Notice = no_notice,
) -> FittedParts:
    """Join trained networks with an item table, if one is asked for, and choose a combination.

    The chosen network's head changes in place: it is multiplied by the network's factor.
    """
    table = _fitted_table(task, on_progress, notice)
    wants_table = task.settings.chosen_parts is not None and table is not None
    forms = (True,) if wants_table else (False,) if table is None else (False, True)
    combined = [
        _Combination.of(task, network, table if has_table else None)
        for network in networks
        for has_table in forms
    ]
    best = min(combined, key=lambda each: float(each.losses.mean()))
    trials = tuple(each.trial(best) for each in combined)
    chosen = combined[trials.index(_chosen(trials))]
    parts = chosen.parts
    return FittedParts(parts, chosen.network, chosen.join(task), trials, tuple(networks))


def _chosen(trials: Sequence[Trial]) -> Trial:
    """The smallest combination that is not clearly worse than the best one."""
    sufficient = [each for each in trials if each.behind <= TOLERATED_ERRORS * each.error]
    return min(sufficient, key=lambda each: (each.size_bytes, each.loss))


def _fitted_table(task: TaskUsers, on_progress: OnProgress, notice: Notice) -> FittedTable | None:
    """The task's item table, unless the settings or the kind do without."""
    chosen, objective = task.settings.chosen_parts, task.objective
    if not isinstance(objective, LogitObjective) or (chosen is not None and "table" not in chosen):
        return None
    train, outputs = task.split.train, objective.head_spec.outputs
    weights = table_weights(task.examples.rows, train, outputs)
    if weights > MOST_WEIGHTS:
        error = ItemTableTooLarge(
            f"an item table would have {weights:,} weights; {MOST_WEIGHTS:,} is the limit.",
            hint="Leave table out of `parts`, or raise `min_count` of pretraining.",
        )
        if chosen is not None:
            raise error
        notice(f"No item table is tried: {error.message}")
        return None
    on_progress(Progress("fitting the item table"))
    spec = TableSpec(len(task.examples.items))
    return fit_table(task.examples.rows, objective, task.split, spec)


@dataclass(frozen=True, slots=True)
class _Combination:
    """A network with or without the item table, and its mean loss [G] on groups of users."""

    network: TrainedNetwork
    table: FittedTable | None
    losses: Tensor

    @classmethod
    def of(cls, task: TaskUsers, network: TrainedNetwork, table: FittedTable | None) -> Self:
        return cls(network, table, _losses(task, network, table))

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*self.network.parts, *(("table",) if self.table else ()))

    def trial(self, best: "_Combination") -> Trial:
        """The combination beside the one with the lowest loss."""
        behind = self.losses - best.losses  # [G]
        error = float(behind.std()) / len(behind) ** 0.5 if len(behind) > 1 else 0.0
        table_bytes = self.table.table.size_bytes if self.table else 0
        return Trial(
            parts=self.parts,
            loss=float(self.losses.mean()),
            behind=float(behind.mean()),
            error=error,
            size_bytes=self.network.network.size_bytes + table_bytes,
        )

    def join(self, task: TaskUsers) -> ItemTable | None:
        """Multiply head and table by their factors, and give the head the table's bias."""
        if self.table is None:
            return None
        objective = task.objective
        assert isinstance(objective, LogitObjective)
        rows = torch.from_numpy(task.split.validation)
        sources = _sources(task, self.network, self.table)
        network, table = fit_factors(sources, rows, objective).tolist()
        head = self.network.network.head_objective.head
        assert head.bias is not None
        with torch.no_grad():
            head.weight.mul_(network)
            head.bias.mul_(network).add_(table * self.table.bias.to(head.bias))
        return self.table.table.times(table)


@torch.no_grad()
def _sources(task: TaskUsers, network: TrainedNetwork, table: FittedTable | None) -> list[Tensor]:
    """Logits [N, K] of the validation users from the network, and from the table."""
    head = network.network.head_objective.head
    found = [head.logits(network.vectors.to(head.weight.device)).cpu()]
    if table is not None:
        found.append(table.logits([task.examples.rows[i] for i in task.split.validation]))
    return found


def _losses(task: TaskUsers, network: TrainedNetwork, table: FittedTable | None) -> Tensor:
    """Mean losses float64 [G] of groups of validation users.

    What a head is multiplied by afterwards, a factor or a temperature, is learned on other users.
    """
    rows = torch.from_numpy(task.split.validation)
    groups = torch.arange(len(rows)).tensor_split(min(len(rows), MOST_GROUPS))
    objective = task.objective
    if isinstance(objective, LogitObjective):
        logits = _sources(task, network, table)
        is_scaled = table is not None or isinstance(objective, ProbableObjective)
        z = cross_joined(logits, rows, objective) if is_scaled else logits[0].double()
        return torch.stack([objective.logit_loss(z[g], rows[g]) for g in groups]).double()
    head = network.network.head_objective.head
    generator = seeded(task.settings.seed, "validate")
    with torch.no_grad():
        vectors = network.vectors.to(head.weight.device)
        found = [objective.loss(head, vectors[g], rows[g], generator) for g in groups]
    return torch.stack(found).double().cpu()
