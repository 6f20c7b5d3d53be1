"""A linear model of the items that a user has, weighted by TF-IDF as in text classification.

Logistic regression for labels and tags, ridge regression for numbers. The order of the items is not
seen. All arithmetic is in float64.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peterrec.model.errors import BaselineTooLarge
from peterrec.model.training.baselines.bags import (
    FLOAT_BYTES,
    BagModel,
    Sparse,
    item_bags,
)
from peterrec.model.training.batches import TokenRow
from peterrec.model.training.intervals import Floats, Ints

CERTAIN = 30.0
"""Logit of an answer that all training users have, and minus that of one that none has."""

MOST_WEIGHTS = 20_000_000
"""Most weights of the classes of one model: the optimiser (L-BFGS) keeps some 25 numbers in float64
for each, 4 GB."""

STEPS = 1000
"""Most steps of the optimiser; it converges earlier unless the regularisation is very weak."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a model learns from: histories in token ids, and one target or row of targets of each.

    ``items`` is the size of the vocabulary, ``outputs`` the number of classes or tags.
    """

    rows: Sequence[TokenRow]
    targets: Any  # Any: int64 [N] of classes, float64 [N, K] of tags, float64 [N] of numbers
    items: int
    outputs: int


def fit_linear(kind: str, known: Known, strength: float, steps: int = STEPS) -> BagModel:
    """Learn a linear model of a kind in ``LINEAR_KINDS``; its scores are logits, or numbers.

    ``strength`` is scikit-learn's ``C`` of a logistic regression (more is less regularisation), and
    ``1 / alpha`` of a ridge regression.
    """
    _require_room(kind, known)
    from sklearn.feature_extraction.text import TfidfTransformer

    transformer = TfidfTransformer(sublinear_tf=True)
    features = transformer.fit_transform(item_bags(known.rows, known.items))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not fully converged
        logits, weights = _LEARNERS[kind](features, known.targets, known.outputs, strength, steps)

    def scores(rows: Sequence[TokenRow]) -> Floats:
        return logits(transformer.transform(item_bags(rows, known.items)))

    weights += known.items  # the IDF of each item
    return BagModel(scores, weights, FLOAT_BYTES * weights)


def _require_room(kind: str, known: Known) -> None:
    weights = known.items * (known.outputs if kind == "classification" else 1)
    if weights > MOST_WEIGHTS:
        raise BaselineTooLarge(
            f"the linear model would have {weights:,} weights; {MOST_WEIGHTS:,} is the limit.",
            hint="Leave the linear model out of `methods`, or raise `min_count` of pretraining.",
        )


Logits = Callable[[Sparse], Floats]
"""Logits [N, K] of features [N, V]."""


def _class_logits(
    features: Sparse, targets: Ints, outputs: int, strength: float, steps: int
) -> tuple[Logits, int]:
    from sklearn.linear_model import LogisticRegression

    found = np.unique(targets)
    model = LogisticRegression(C=strength, max_iter=steps)
    if len(found) > 1:
        model.fit(features, targets)

    def logits(asked: Sparse) -> Floats:
        filled = np.full((asked.shape[0], outputs), -CERTAIN)
        filled[:, found] = model.predict_log_proba(asked) if len(found) > 1 else CERTAIN
        return filled

    return logits, model.coef_.size + model.intercept_.size if len(found) > 1 else 0


def _tag_logits(
    features: Sparse, targets: Floats, outputs: int, strength: float, steps: int
) -> tuple[Logits, int]:
    from sklearn.linear_model import LogisticRegression

    models: list[Any] = []  # Any: a model, or the logit of a tag that all or no user has
    for tag in range(outputs):
        own = targets[:, tag] > 0.5
        if own.all() or not own.any():
            models.append(CERTAIN if own.all() else -CERTAIN)
        else:
            models.append(LogisticRegression(C=strength, max_iter=steps).fit(features, own))

    def logits(asked: Sparse) -> Floats:
        filled = np.empty((asked.shape[0], outputs))
        for tag, model in enumerate(models):
            is_fixed = isinstance(model, float)
            filled[:, tag] = model if is_fixed else model.decision_function(asked)
        return filled

    fitted = sum(not isinstance(model, float) for model in models)
    return logits, outputs + fitted * features.shape[1]


def _numbers(
    features: Sparse, targets: Floats, outputs: int, strength: float, steps: int
) -> tuple[Logits, int]:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1 / strength).fit(features, targets.reshape(-1))

    def logits(asked: Sparse) -> Floats:
        answers: Floats = model.predict(asked)
        return answers.reshape(-1, 1)

    return logits, features.shape[1] + 1


Learner = Callable[[Sparse, Any, int, float, int], tuple[Logits, int]]  # Any: targets, by kind

_LEARNERS: Mapping[str, Learner] = {
    "classification": _class_logits,
    "tags": _tag_logits,
    "value": _numbers,
}
"""How a linear model of each kind is learned, and how many weights it has."""

LINEAR_KINDS = tuple(_LEARNERS)
