"""Metrics of a task, computed with the plain reference forward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peterrec.model.data.examples import Examples
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import frame_histories
from peterrec.model.network.heads import Head
from peterrec.model.network.item_table import ItemTable, logits_of
from peterrec.model.network.patch import PatchWeights
from peterrec.model.progress import OnProgress, Progress, no_progress
from peterrec.model.training.calibration import calibration_metrics, fit_temperature
from peterrec.model.training.objectives import Objective, ProbableObjective

EVALUATION_ROWS = 256
"""Users in one forward without gradients."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TaskModel:
    """A backbone with one task's patch, head and item table, in the plain reference forward."""

    backbone: Backbone
    patch: PatchWeights | None
    head: Head
    table: ItemTable | None = None

    def logits(self, histories: Sequence[Rows]) -> Tensor:
        """Logits [B, K] of whole histories in token ids."""
        tokens = frame_histories(histories, self.backbone.spec)  # [B, T]
        users = self.backbone.user_vectors(tokens, self.patch)
        return logits_of(self.head, users, self.table, histories)


def evaluate_task(
    model: TaskModel,
    objective: Objective,
    examples: Examples,
    rows: Rows,
    temperature: float = 1.0,
    on_progress: OnProgress = no_progress,
) -> dict[str, float]:
    """Metrics on some of the examples; an undefined one (an AUC of one class) is left out.

    If the kind answers with probabilities, their calibration errors are included, before and after
    logits are divided by the temperature.
    """
    reports = partial(_report, on_progress, "evaluating")
    found = _predictions(model, objective, examples, rows, reports)
    on_progress(Progress("computing metrics"))
    return quality(objective, *found, temperature)


def quality(
    objective: Objective, predictions: Tensor, rows: Tensor, temperature: float
) -> dict[str, float]:
    """Metrics of some rows' predictions, and how well their probabilities are calibrated."""
    metrics = defined(objective.metrics(predictions, rows))
    if isinstance(objective, ProbableObjective):
        metrics |= calibration_metrics(objective.samples(predictions, rows), temperature)
    return metrics


def calibrate_task(
    model: TaskModel,
    objective: Objective,
    examples: Examples,
    rows: Rows,
    on_progress: OnProgress = no_progress,
) -> float:
    """The temperature fitted to some examples; 1 if the kind does not answer with probabilities."""
    if not isinstance(objective, ProbableObjective):
        return 1.0
    reports = partial(_report, on_progress, "calibrating")
    found = _predictions(model, objective, examples, rows, reports)
    return fit_temperature(objective.samples(*found))


Reports = Callable[[int, int], None]
"""Called with the number of users that were predicted so far, and the number of all."""


def _report(on_progress: OnProgress, phase: str, done: int, total: int) -> None:
    on_progress(Progress(phase, done, total, unit="users"))


@torch.no_grad()
def _predictions(
    model: TaskModel, objective: Objective, examples: Examples, rows: Rows, reports: Reports
) -> tuple[Tensor, Tensor]:
    """The objective's predictions, and the rows in their order."""
    ordered = torch.from_numpy(rows[np.argsort(examples.lengths[rows], kind="stable")])
    parts: list[Tensor] = []
    reports(0, len(ordered))
    for part in torch.split(ordered, EVALUATION_ROWS):
        logits = model.logits([examples.rows[i] for i in part.tolist()])
        parts.append(objective.predictions(logits, part))
        reports(min(len(parts) * EVALUATION_ROWS, len(ordered)), len(ordered))
    return torch.cat(parts), ordered


@torch.no_grad()
def evaluate_prior(objective: Objective, train: Rows, test: Rows) -> dict[str, float]:
    """Metrics on ``test`` of the best answer that ignores the history, learned on ``train``.

    For classes it is the majority class, for a catalog the most popular items.
    """
    prior, rows = objective.prior(torch.from_numpy(train)), torch.from_numpy(test)
    parts = [
        objective.predictions(prior.expand(len(part), -1), part)  # [K] -> [B, K]
        for part in torch.split(rows, EVALUATION_ROWS)
    ]
    return defined(objective.metrics(torch.cat(parts), rows))


def defined(metrics: dict[str, float]) -> dict[str, float]:
    """Leave out metrics that are NaN or infinite, such as the AUC of a single class."""
    return {name: value for name, value in metrics.items() if np.isfinite(value)}
