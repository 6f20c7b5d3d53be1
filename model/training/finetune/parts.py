"""Which parts a task gets: each combination is trained, and held-out users choose.

A combination is a network (blocks and reader, one of them, or neither) with or without an item
table. Networks and table are trained alone and joined by factors (``fusion.py``), so all
combinations cost four trainings and one table, or one per network. It is decided in two steps:

1. The validation users decide which network with parts it is, each with and without the table.
   Nobody judges this again, so a larger network has to be better by ``UNCERTAIN_ERRORS``.
2. A tenth of the users say too little about what network and table are worth beside each other:
   they misjudge the factors, and prefer by chance what was stopped early by them. So this network
   is trained again on two thirds of the training users, three times, to answer for the third that
   it has not seen; the table did the same. Training and validation users together then decide
   between network, table and both, and give the factors.

A ranking's table is added to a network's user vectors (``user_table.py``): each network gets one of
its own, which is trained after it together with its head. There are no factors, and no second step.

The combination with the lowest loss would win by chance too often: among those that are not clearly
worse than it, the smallest one is taken. Clearly worse means by more than ``TOLERATED_ERRORS``
standard errors of the difference, paired by user. Sizes are those of all weights, and those within
a tenth of the smallest count as equal: beside a ranking's head of megabytes, no part has a price.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress

import numpy as np
import torch
from torch import Tensor

from peterrec.model.documents import Document
from peterrec.model.errors import ItemTableTooLarge
from peterrec.model.kinds import KINDS
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
    cross_logits,
    fold_tasks,
    label_of,
    names_of,
    networks_to_try,
    train_network,
)
from peterrec.model.training.finetune.settings import Part
from peterrec.model.training.finetune.task_rows import TaskUsers
from peterrec.model.training.finetune.user_table import FittedUserTable, fit_user_table
from peterrec.model.training.objectives import LogitObjective, ProbableObjective

TOLERATED_ERRORS = 1.0
"""Standard errors by which a smaller combination may be behind the best one and still be taken."""

UNCERTAIN_ERRORS = 3.0
"""The same where only the validation users judge: the best of eight is ahead by chance, too."""

SMALLEST_FACTOR = 1e-6
"""Factor of a part that was asked for and earns nothing; a bundle's table must not be all zeros."""

EQUAL_SIZES = 1.1
"""Ratio up to which two combinations count as equally large, so that the lower loss is taken."""

MOST_GROUPS = 1024
"""Groups of users whose mean losses give a standard error; up to so many users, each is a group."""

AnyTable = FittedTable | FittedUserTable

Crossed = Mapping[tuple[Part, ...], Tensor]
"""Logits [N, K] of the training users from networks that have not seen them, by the parts."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination of parts on the users that judged it.

    ``loss`` is the mean loss per user, with factors learned on other users. ``behind`` is the
    distance from the lowest loss that these users gave, ``error`` its standard error over users.
    ``users`` are their number: those of the validation, or with those of the training if they
    judged too. ``size_bytes`` are those of patch, head and table.
    """

    parts: tuple[Part, ...]
    loss: float
    behind: float
    error: float
    users: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FittedParts:
    """The chosen parts of a task, trained and joined under one head, and what was tried.

    ``trials`` has first what the validation users alone say, of every combination.
    """

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
        """The mean loss per validation user of the chosen parts, with factors of other users."""
        return next(trial.loss for trial in self.trials if trial.parts == self.parts)

    @property
    def size_bytes(self) -> int:
        """Size of patch, head and table in a bundle."""
        table = self.table.size_bytes if self.table else 0
        return self.network.network.size_bytes + table

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
        names = names_of([network.parts for network in self.networks])
        named = [
            {"network": name, **network} for name, network in zip(names, networks, strict=True)
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
    """Train the combinations that the settings ask for, and choose one by its loss."""
    tried = networks_to_try(task)
    networks = [
        train_network(backbone, task, parts, on_progress, naming(name, listener))
        for parts, name in zip(tried, names_of(tried), strict=True)
    ]
    choice = first_choice(backbone, task, networks, on_progress, notice)
    crossed = {
        parts: cross_logits(
            task, [train_network(backbone, fold, parts, on_progress) for fold in fold_tasks(task)]
        )
        for parts in choice.to_cross
    }
    return final_choice(task, choice, crossed)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the validation users say: all combinations of networks and tables, and their trials.

    ``to_cross`` are the parts of the networks that the training users must judge, too, before it is
    decided: the preferred one, and the head alone that may stand beside the table.
    """

    networks: tuple[TrainedNetwork, ...]
    tables: tuple[AnyTable | None, ...]
    trials: tuple[Trial, ...]
    preferred: Trial
    to_cross: tuple[tuple[Part, ...], ...]


def first_choice(
    backbone: Backbone,
    task: TaskUsers,
    networks: Sequence[TrainedNetwork],
    on_progress: OnProgress = no_progress,
    notice: Notice = no_notice,
) -> Choice:
    """Train the item tables, if they are asked for, and let the validation users judge."""
    tables = _fitted_tables(backbone, task, networks, on_progress, notice)
    rows = torch.from_numpy(task.split.validation)
    combined = _combinations(task, networks, tables)
    trials = _trials(combined, [each.losses(task, rows, {}) for each in combined], len(rows))
    is_judged_again = any(
        isinstance(table, FittedTable) and table.crossed is not None for table in tables
    )
    if not is_judged_again:
        preferred = _smallest(trials, TOLERATED_ERRORS)
        return Choice(tuple(networks), tuple(tables), trials, preferred, ())
    patched = [trial for trial, each in zip(trials, combined, strict=True) if each.network.parts]
    preferred = _smallest(patched or trials, UNCERTAIN_ERRORS)
    own = combined[trials.index(preferred)].network.parts
    to_cross = tuple(n.parts for n in networks if n.parts in ((), own))
    return Choice(tuple(networks), tuple(tables), trials, preferred, to_cross)


def final_choice(task: TaskUsers, choice: Choice, crossed: Crossed) -> FittedParts:
    """Let the training users judge too, where ``crossed`` has their logits, and join the parts.

    The chosen network's head changes in place: it is multiplied by the network's factor.
    """
    rows = torch.from_numpy(task.split.validation)
    judged = [n.parts in choice.to_cross for n in choice.networks]
    networks = [*compress(choice.networks, judged)]
    trials, preferred = choice.trials, choice.preferred
    combined = _combinations(task, choice.networks, choice.tables)
    if networks and crossed.keys() >= {n.parts for n in networks}:
        rows = torch.cat([torch.from_numpy(np.sort(task.split.train)), rows])
        combined = _combinations(task, networks, [*compress(choice.tables, judged)])
        found = [each.losses(task, rows, crossed) for each in combined]
        own = _trials(combined, found, len(rows))
        trials, preferred = (*trials, *own), _smallest(own, TOLERATED_ERRORS)
    else:
        crossed = {}
    chosen = next(each for each in combined if each.parts == preferred.parts)
    table = chosen.join(task, rows, crossed)
    return FittedParts(chosen.parts, chosen.network, table, trials, choice.networks)


def _combinations(
    task: TaskUsers,
    networks: Sequence[TrainedNetwork],
    tables: Sequence[AnyTable | None],
) -> list["_Combination"]:
    """Networks with their tables, and without them unless they were asked for."""
    is_asked = task.settings.chosen_parts is not None
    found = []
    for network, table in zip(networks, tables, strict=True):
        if table is None or not is_asked:
            found.append(_Combination(network, None))
        if table is not None:
            found.append(_Combination(network, table))
    return found


def _trials(
    combined: Sequence["_Combination"], losses: Sequence[Tensor], users: int
) -> tuple[Trial, ...]:
    """Each combination beside the one with the lowest loss, from losses [G] of groups."""
    best = min(losses, key=lambda each: float(each.mean()))
    found = []
    for each, own in zip(combined, losses, strict=True):
        behind = own - best  # [G]
        error = float(behind.std()) / len(behind) ** 0.5 if len(behind) > 1 else 0.0
        mean, distance = float(own.mean()), float(behind.mean())
        found.append(Trial(each.parts, mean, distance, error, users, each.size_bytes))
    return tuple(found)


def _smallest(trials: Sequence[Trial], errors: float) -> Trial:
    """The smallest combination that is not worse than the best one by so many standard errors."""
    best = min(trials, key=lambda each: each.loss)
    sufficient = [each for each in trials if each is best or each.behind <= errors * each.error]
    smallest = min(each.size_bytes for each in sufficient)
    small = [each for each in sufficient if each.size_bytes <= EQUAL_SIZES * smallest]
    return min(small, key=lambda each: (each.loss, each.size_bytes))


def _fitted_tables(
    backbone: Backbone,
    task: TaskUsers,
    networks: Sequence[TrainedNetwork],
    on_progress: OnProgress,
    notice: Notice,
) -> list[AnyTable | None]:
    """The item table of each network: one for all of them, or a ranking's own of each."""
    if not KINDS[task.objective.head_spec.kind].has_catalog:
        return [_fitted_table(task, on_progress, notice)] * len(networks)
    if not _takes_table(task, backbone.spec.channels, notice):
        return [None] * len(networks)
    found: list[AnyTable | None] = []
    for network in networks:
        own = fit_user_table(backbone, task, network, on_progress)
        found.append(own if own.table.codes.any() else None)
    if not any(found):
        notice("No item table has learned anything, so there is none.")
    return found


def _fitted_table(task: TaskUsers, on_progress: OnProgress, notice: Notice) -> FittedTable | None:
    """The task's item table, unless settings or kind do without, or it says nothing."""
    objective = task.objective
    if not isinstance(objective, LogitObjective):
        return None
    if not _takes_table(task, objective.head_spec.outputs, notice):
        return None
    on_progress(Progress("fitting the item table"))
    spec = TableSpec(len(task.examples.items))
    table = fit_table(task.examples.rows, objective, task.split, spec)
    if not table.table.codes.any():
        notice("The item table has learned nothing, so there is none.")
        return None
    return table


def _takes_table(task: TaskUsers, width: int, notice: Notice) -> bool:
    """Whether a table of this width is asked for and small enough; an explicit one must be."""
    chosen = task.settings.chosen_parts
    if chosen is not None and "table" not in chosen:
        return False
    weights = table_weights(task.examples.rows, task.split.train, width)
    if weights > MOST_WEIGHTS:
        error = ItemTableTooLarge(
            f"an item table would have {weights:,} weights; {MOST_WEIGHTS:,} is the limit.",
            hint="Leave table out of `parts`, or raise `min_count` of pretraining.",
        )
        if chosen is not None:
            raise error
        notice(f"No item table is tried: {error.message}")
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Combination:
    """A network with or without the item table."""

    network: TrainedNetwork
    table: AnyTable | None

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*self.network.parts, *(("table",) if self.table else ()))

    @property
    def size_bytes(self) -> int:
        table = self.table.table.size_bytes if self.table else 0
        return self.network.network.size_bytes + table

    def losses(self, task: TaskUsers, rows: Tensor, crossed: Crossed) -> Tensor:
        """Mean losses float64 [G] of groups of some users.

        What the parts are multiplied by, factors or a temperature, is learned on other users.
        """
        groups = torch.arange(len(rows)).tensor_split(min(len(rows), MOST_GROUPS))
        objective = task.objective
        if isinstance(objective, LogitObjective):
            logits = self.sources(task, crossed)
            is_scaled = self.table is not None or isinstance(objective, ProbableObjective)
            z = cross_joined(logits, rows, objective) if is_scaled else logits[0].double()
            return torch.stack([objective.logit_loss(z[g], rows[g]) for g in groups]).double()
        head, vectors = self.network.network.head_objective.head, self.network.vectors
        if isinstance(self.table, FittedUserTable):
            histories = [task.examples.rows[i] for i in rows.tolist()]
            head, vectors = self.table.head, self.table.vectors(vectors, histories)
        generator = seeded(task.settings.seed, "validate")
        with torch.no_grad():
            vectors = vectors.to(head.weight.device)
            found = [objective.loss(head, vectors[g], rows[g], generator) for g in groups]
        return torch.stack(found).double().cpu()

    def join(self, task: TaskUsers, rows: Tensor, crossed: Crossed) -> ItemTable | None:
        """Multiply head and table by their factors, and give the head the table's bias.

        A ranking's table has no factor; it comes with a head.
        """
        if self.table is None:
            return None
        if isinstance(self.table, FittedUserTable):
            own = self.network.network.head_objective.head
            own.load_state_dict(self.table.head.state_dict())
            return self.table.table
        assert isinstance(task.objective, LogitObjective)
        factors = fit_factors(self.sources(task, crossed), rows, task.objective)
        network, table = factors.clamp(min=SMALLEST_FACTOR).tolist()
        head = self.network.network.head_objective.head
        assert head.bias is not None
        with torch.no_grad():
            head.weight.mul_(network)
            head.bias.mul_(network).add_(table * self.table.bias.to(head.bias))
        return self.table.table.times(table)

    @torch.no_grad()
    def sources(self, task: TaskUsers, crossed: Crossed) -> list[Tensor]:
        """Logits [N, K] from the network, and from the table if there is one.

        They are those of the training users, if ``crossed`` has them, then of the validation users.
        """
        found = [self.network.logits(self.network.vectors)]
        if crossed:
            found = [torch.cat([crossed[self.network.parts], found[0].double()])]
        if isinstance(self.table, FittedTable):
            logits = self.table.held_out.double()
            if crossed:
                assert self.table.crossed is not None
                logits = torch.cat([self.table.crossed, logits])
            found.append(logits)
        return found
