"""A linear model of the items that a user has, as a yardstick, if scikit-learn is installed.

Items are weighted by TF-IDF, as in text classification; their order and repetitions are not seen.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from peterrec.model.data.examples import Examples
from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.batches import TokenRow
from peterrec.model.training.intervals import Floats, Ints
from peterrec.model.training.objectives import Objective, ScaledObjective

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MOST_USERS = 5_000
"""Training users that the model learns from; of more, evenly spaced ones. With 5,000 items and
labels that are noise, which takes longest, ten classes took 13 s on two busy cores, twenty tags
10 s."""

STEPS = 100
"""Most steps of the optimiser."""

MOST_OUTPUTS = 100
"""Classes or tags that it learns; a task with more has no such baseline."""

CERTAIN = 30.0
"""Logit of an answer that all training users have, and minus that of one that none has."""

Features = Any  # Any: scipy's sparse matrices are untyped


def linear_logits(
    kind: str, examples: Examples, objective: Objective, train: Ints, rows: Ints
) -> Tensor | None:
    """Logits [N, K] of a linear model for some examples, learned on others.

    None if scikit-learn is not installed, or the kind or the number of outputs has no such model.
    """
    learn = _LEARNERS.get(kind)
    if learn is None or objective.head_spec.outputs > MOST_OUTPUTS or not len(train):
        return None
    try:
        from sklearn.feature_extraction.text import TfidfTransformer
    except ImportError:
        return None
    chosen = train[np.unique(np.linspace(0, len(train) - 1, MOST_USERS).astype(int))]
    transformer = TfidfTransformer(sublinear_tf=True)
    known = transformer.fit_transform(_bags([examples.rows[i] for i in chosen], examples))
    asked = transformer.transform(_bags([examples.rows[i] for i in rows], examples))
    targets = _targets(objective)[chosen]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not fully converged
        logits = learn(known, targets, asked, objective.head_spec.outputs)
    return torch.from_numpy(logits).float()


def _targets(objective: Objective) -> Any:  # Any: numbers whose form depends on the kind
    targets: Tensor = objective.targets  # type: ignore[attr-defined]  # of each kind below
    if isinstance(objective, ScaledObjective):
        targets = (targets - objective.scale.shift) / objective.scale.scale
    return targets.numpy()


def _bags(rows: list[TokenRow], examples: Examples) -> "csr_matrix":
    """How often each user [N] has each item [V]."""
    from scipy.sparse import csr_matrix

    ends = np.cumsum([0, *(len(row) for row in rows)])
    places = np.concatenate(rows) - FIRST_ITEM if rows else np.empty(0, dtype=np.int64)
    is_item = places >= 0
    counts = is_item.astype(np.float64)
    shape = (len(rows), len(examples.items))
    matrix = csr_matrix((counts, np.maximum(places, 0), ends), shape=shape)
    matrix.sum_duplicates()
    return matrix


def _class_logits(known: Features, targets: Ints, asked: Features, outputs: int) -> Floats:
    from sklearn.linear_model import LogisticRegression

    logits = np.full((asked.shape[0], outputs), -CERTAIN)
    found = np.unique(targets)
    if len(found) == 1:
        logits[:, found] = CERTAIN
        return logits
    model = LogisticRegression(C=10.0, max_iter=STEPS).fit(known, targets)
    logits[:, model.classes_] = model.predict_log_proba(asked)
    return logits


def _tag_logits(known: Features, targets: Floats, asked: Features, outputs: int) -> Floats:
    from sklearn.linear_model import LogisticRegression

    logits = np.empty((asked.shape[0], outputs))
    for tag in range(outputs):
        own = targets[:, tag] > 0.5
        if own.all() or not own.any():
            logits[:, tag] = CERTAIN if own.all() else -CERTAIN
        else:
            model = LogisticRegression(C=10.0, max_iter=STEPS).fit(known, own)
            logits[:, tag] = model.decision_function(asked)
    return logits


def _numbers(known: Features, targets: Floats, asked: Features, outputs: int) -> Floats:
    from sklearn.linear_model import Ridge

    answers: Floats = Ridge(alpha=1.0).fit(known, targets.reshape(-1)).predict(asked)
    return answers.reshape(-1, 1)


Learner = Callable[[Features, Any, Features, int], Floats]  # Any: targets, by kind

_LEARNERS: Mapping[str, Learner] = {
    "classification": _class_logits,
    "tags": _tag_logits,
    "value": _numbers,
}
"""How a linear model of each kind is learned; a ranking has none."""
