"""A linear model of the items that a user has, as a yardstick."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from peterrec.model.data.examples import Examples
from peterrec.model.errors import BaselineTooLarge
from peterrec.model.training.baselines.linear import LINEAR_KINDS, Known, fit_linear
from peterrec.model.training.intervals import Ints
from peterrec.model.training.objectives import Objective, ScaledObjective

MOST_USERS = 5_000
"""Training users that the model learns from; of more, evenly spaced ones. With 5,000 items and
labels that are noise, which takes longest, ten classes took 13 s on two busy cores, twenty tags
10 s."""

STEPS = 100
"""Most steps of the optimiser."""

MOST_OUTPUTS = 100
"""Classes or tags that it learns; a task with more has no such baseline."""

STRENGTHS = {"value": 1.0}
"""Inverse regularisation by kind; nothing is tuned, since a report has no validation users."""

STRENGTH = 10.0
"""Inverse regularisation of the other kinds."""


def linear_logits(
    kind: str, examples: Examples, objective: Objective, train: Ints, rows: Ints
) -> Tensor | None:
    """Logits [N, K] of a linear model for some examples, learned on others.

    None if the kind or the number of outputs has no such model, or it would take too much memory.
    """
    outputs = objective.head_spec.outputs
    if kind not in LINEAR_KINDS or outputs > MOST_OUTPUTS or not len(train):
        return None
    chosen = train[np.unique(np.linspace(0, len(train) - 1, MOST_USERS).astype(int))]
    histories = [examples.rows[i] for i in chosen]
    known = Known(histories, _targets(objective)[chosen], len(examples.items), outputs)
    try:
        model = fit_linear(kind, known, STRENGTHS.get(kind, STRENGTH), STEPS)
    except BaselineTooLarge:
        return None
    return torch.from_numpy(model.scores([examples.rows[i] for i in rows])).float()


def _targets(objective: Objective) -> Any:  # Any: numbers whose form depends on the kind
    targets: Tensor = objective.targets  # type: ignore[attr-defined]  # of each kind below
    if isinstance(objective, ScaledObjective):
        targets = (targets - objective.scale.shift) / objective.scale.scale
    return targets.numpy()
