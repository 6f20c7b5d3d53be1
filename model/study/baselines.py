"""Baselines of a comparison: what one would try in an afternoon, without a backbone.

They read the whole histories, in the vocabulary that the backbones have. ``docs/compare.md``
describes each of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from peterrec.model.kinds import KINDS
from peterrec.model.spec import HeadKind
from peterrec.model.study.predictions import Scorer, scored
from peterrec.model.study.task_data import TaskData
from peterrec.model.training.baselines.bags import BagModel
from peterrec.model.training.baselines.linear import Known, fit_linear
from peterrec.model.training.baselines.rankings import Taken, ease, item_knn, linear_to_items
from peterrec.model.training.evaluation import Rows
from peterrec.model.training.objectives import ProbableObjective
from peterrec.model.training.objectives.classification import ClassificationObjective
from peterrec.model.training.objectives.ranking import OUTSIDE, RankingObjective

PRIOR, POPULAR = "prior", "popular"
"""The best answer that ignores the history: the majority class, or the most popular items.

Every table has one of them.
"""

PRIORS = (PRIOR, POPULAR)


@dataclass(frozen=True, slots=True)
class Strength:
    """The one setting of a baseline that is chosen on validation users, such as ``C`` 10."""

    name: str
    value: float

    @property
    def order(self) -> tuple[float, ...]:
        """By what the strengths of a method are sorted."""
        return (self.value,)

    def to_json(self) -> dict[str, float]:
        """The value by its name."""
        return {self.name: self.value}


@dataclass(frozen=True, slots=True)
class Baseline:
    """How a baseline learns from some rows of a task, and the strengths that it tries."""

    fit: Callable[[TaskData, Rows, float], BagModel]
    strengths: tuple[Strength, ...]


def _linear(data: TaskData, train: Rows, strength: float) -> BagModel:
    assert isinstance(data.objective, ClassificationObjective)
    rows = [data.examples.rows[i] for i in train]
    targets = data.objective.targets.numpy()[train]
    known = Known(rows, targets, len(data.examples.items), len(data.outputs))
    return fit_linear(data.kind, known, strength)


def _taken(data: TaskData, train: Rows) -> Taken:
    assert isinstance(data.objective, RankingObjective)
    items = data.examples.items
    index = {item: place for place, item in enumerate(items)}
    places = [index.setdefault(item, len(index)) for item in data.outputs]
    targets = [data.objective.targets[i].numpy() for i in train]
    return Taken(
        [data.examples.rows[i] for i in train],
        [own[own != OUTSIDE] for own in targets],
        len(items),
        np.array(places),
    )


def _strengths(name: str, *values: float) -> tuple[Strength, ...]:
    return tuple(Strength(name, value) for value in values)


BASELINES: Mapping[str, Mapping[HeadKind, Baseline]] = {
    "linear": {
        "classification": Baseline(_linear, _strengths("C", 0.3, 1, 3, 10, 30)),
        "ranking": Baseline(
            lambda data, train, strength: linear_to_items(_taken(data, train), strength),
            _strengths("λ", 0.3, 1, 3, 10, 30, 100, 300),
        ),
    },
    "item-knn": {
        "ranking": Baseline(
            lambda data, train, strength: item_knn(_taken(data, train), int(strength)),
            _strengths("k", 10, 30, 100, 300, 1000),
        )
    },
    "ease": {
        "ranking": Baseline(
            lambda data, train, strength: ease(_taken(data, train), strength),
            _strengths("λ", 10, 30, 100, 300, 1000, 3000),
        )
    },
}
"""Baselines by name, and by the kinds of task that each has.

All strengths are tried, whatever ``rate_trials`` is: it takes seconds, and a comparison should
rather favour them.
"""


def bag_scorer(model: BagModel) -> Scorer:
    """The scorer of a learned baseline, in float64."""
    return lambda users: torch.from_numpy(model.scores(users.rows))


def validation_loss(scorer: Scorer, data: TaskData) -> float:
    """What a baseline's strength is chosen by, on the validation users.

    It is the log-loss where scores are logits. Scores of items are no logits for every baseline, so
    for a ranking it is one minus the primary metric.
    """
    objective = data.objective
    predictions, rows = scored(scorer, data, data.split.validation)
    if isinstance(objective, ProbableObjective):
        samples = objective.samples(predictions, rows)
        return functional.cross_entropy(samples.logits, samples.chosen).item()
    return 1 - objective.metrics(predictions, rows)[objective.primary_metric]


def prior_of(kind: HeadKind) -> str:
    """What the best answer that ignores the history is called for a kind of task."""
    return POPULAR if KINDS[kind].has_catalog else PRIOR
