"""Predictions of a trained model for the test users, stored so that metrics can be recomputed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peterrec.model.files.tensors import NumpyArray
from peterrec.model.kinds import KINDS
from peterrec.model.network.heads import Head
from peterrec.model.network.item_table import ItemTable, logits_of
from peterrec.model.study.task_data import TaskData
from peterrec.model.training.batches import seeded
from peterrec.model.training.calibration import fit_temperature
from peterrec.model.training.evaluation import EVALUATION_ROWS, Rows
from peterrec.model.training.finetune.encoders import Encoder, UserRows
from peterrec.model.training.intervals import Floats
from peterrec.model.training.metrics import rank_metrics
from peterrec.model.training.objectives import ProbableObjective
from peterrec.model.training.objectives.ranking import OUTSIDE, RankingObjective

SAMPLED_NEGATIVES = 99
"""Random items that each target is ranked against in the paper's sampled metrics."""

KEPT_ITEMS = 20
"""Best items of each user that are stored."""

LOG_LOSS = "log_loss"
"""Name of the metric of probabilities: the mean of ``log_losses``; less is better."""

Scorer = Callable[[UserRows], Tensor]
"""Gives the logits [B, K] of some users."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Metrics by name, and the arrays that they can be recomputed from."""

    metrics: dict[str, float]
    arrays: dict[str, NumpyArray]


def scorer_of(encoder: Encoder, head: Head, table: ItemTable | None = None) -> Scorer:
    """The scorer of a trained encoder and head, with an item table if there is one."""
    return lambda users: logits_of(head, encoder.user_vectors(users), table, users.rows).cpu()


def calibrated(scorer: Scorer, data: TaskData) -> Scorer:
    """The scorer with its logits divided by the temperature that fits the validation users best.

    Every bundle has such a temperature, so every method gets one. Scores of items stay as they are.
    """
    objective = data.objective
    if KINDS[data.kind].has_catalog or not isinstance(objective, ProbableObjective):
        return scorer
    temperature = fit_temperature(objective.samples(*scored(scorer, data, data.split.validation)))
    return lambda users: scorer(users) / temperature


@torch.no_grad()
def scored(scorer: Scorer, data: TaskData, rows: Rows) -> tuple[Tensor, Tensor]:
    """The objective's predictions of some users, the shortest histories first, and the users."""
    ordered = _by_length(data, rows)
    found = [
        data.objective.predictions(scorer(_users(data, part)), part)
        for part in torch.split(ordered, EVALUATION_ROWS)
    ]
    return torch.cat(found), ordered


def _by_length(data: TaskData, rows: Rows) -> Tensor:
    return torch.from_numpy(rows[np.argsort(data.examples.lengths[rows], kind="stable")])


def _users(data: TaskData, rows: Tensor) -> UserRows:
    return UserRows([data.examples.rows[i] for i in rows.tolist()], rows)


def prior_scorer(data: TaskData, train: Rows) -> Scorer:
    """The scorer of the best answer that ignores the history, learned from some rows."""
    prior = data.objective.prior(torch.from_numpy(train))  # [K]
    return lambda users: prior.expand(len(users.rows), -1)


@torch.no_grad()
def predict(scorer: Scorer, data: TaskData) -> Predictions:
    """Predict for the test users, the shortest histories first, and compute the metrics."""
    ordered = _by_length(data, data.split.test)
    scorer = calibrated(scorer, data)
    collect = _ranked if KINDS[data.kind].has_catalog else _classified
    parts = [
        collect(scorer(_users(data, part)), data, part)
        for part in torch.split(ordered, EVALUATION_ROWS)
    ]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Predictions(
        _metrics(arrays, data, ordered), arrays | {"outputs": np.array(data.outputs)}
    )


def _metrics(arrays: dict[str, NumpyArray], data: TaskData, rows: Tensor) -> dict[str, float]:
    if "logits" in arrays:
        found = data.objective.metrics(torch.from_numpy(arrays["logits"]), rows)
        losses = log_losses(arrays | {"outputs": np.array(data.outputs)})
        return found | {LOG_LOSS: float(losses.mean())}
    ranks = torch.from_numpy(arrays["ranks"].astype(np.int64))
    sampled = rank_metrics(torch.from_numpy(arrays["sampled_ranks"].astype(np.int64)), 5)
    metrics = data.objective.metrics(ranks, rows)
    return metrics | {f"sampled_{name}": value for name, value in sampled.items()}


def log_losses(arrays: Mapping[str, NumpyArray]) -> Floats:
    """Minus the logarithm of the probability [N] of each stored user's answer."""
    logits = arrays["logits"].astype(np.float64)  # [N, K]
    index = {output: place for place, output in enumerate(arrays["outputs"].tolist())}
    chosen = np.array([index[target] for target in arrays["targets"].tolist()])
    highest = logits.max(1, keepdims=True)
    totals = np.log(np.exp(logits - highest).sum(1)) + highest[:, 0]
    losses: Floats = totals - logits[np.arange(len(logits)), chosen]
    return losses


def _classified(logits: Tensor, data: TaskData, rows: Tensor) -> dict[str, NumpyArray]:
    answers = [data.examples.answers[i][0] for i in rows.tolist()]
    return {
        "users": np.array([data.examples.users[i] for i in rows.tolist()]),
        "targets": np.array(answers),
        "logits": logits.numpy().astype(np.float32),
    }


def _ranked(logits: Tensor, data: TaskData, rows: Tensor) -> dict[str, NumpyArray]:
    """One entry for each (user, target); ranks are among all items and among sampled ones."""
    objective = data.objective
    assert isinstance(objective, RankingObjective)
    lists = [len(data.examples.answers[i]) for i in rows.tolist()]
    best = logits.topk(min(KEPT_ITEMS, logits.shape[1]), 1).indices  # [B, K] -> [B, 20]
    sampled = [
        sampled_ranks(own, objective, row, data.examples.users[row])
        for own, row in zip(logits, rows.tolist(), strict=True)
    ]
    return {
        "users": np.repeat([data.examples.users[i] for i in rows.tolist()], lists),
        "targets": np.array([t for i in rows.tolist() for t in data.examples.answers[i]]),
        "ranks": objective.predictions(logits, rows).numpy().astype(np.int32),
        "sampled_ranks": torch.cat(sampled).numpy().astype(np.int32),
        "best_items": np.repeat(best.numpy().astype(np.int32), lists, axis=0),
    }


def sampled_ranks(logits: Tensor, objective: RankingObjective, row: int, user: str) -> Tensor:
    """Rank each target [n] against 99 random items that are neither targets nor in the history.

    The items are drawn from the catalog without replacement, seeded by the user's id, so they are
    equal for every method. If scores are equal, the target comes last.
    """
    targets = objective.targets[row]
    is_rival = torch.ones(len(logits), dtype=torch.bool)
    is_rival[objective.seen[row]] = False
    is_rival[targets[targets != OUTSIDE]] = False
    pool = is_rival.nonzero().squeeze(1)  # [K] -> [R]
    generator = seeded(0, "sampled negatives", user)
    ranks = torch.full_like(targets, SAMPLED_NEGATIVES)
    if not len(pool):
        return ranks
    for at, target in enumerate(targets.tolist()):
        drawn = pool[torch.randint(len(pool), (4 * SAMPLED_NEGATIVES,), generator=generator)]
        rivals = torch.from_numpy(_first_distinct(drawn.numpy(), SAMPLED_NEGATIVES))
        if target != OUTSIDE:
            ranks[at] = (logits[rivals] >= logits[target]).sum()
    return ranks


def _first_distinct(drawn: np.ndarray, count: int) -> np.ndarray:
    """The first distinct values, in the order drawn."""
    _, first = np.unique(drawn, return_index=True)
    chosen: np.ndarray = drawn[np.sort(first)[:count]]
    return chosen
