"""What a kind of head must bring so that a patch and a head can be trained and measured for it.

Also the checks that kinds with labels share.
"""

from collections.abc import Iterable
from typing import ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peterrec.model.data.examples import Examples
from peterrec.model.errors import LabelSeenOnce, LabelTooLong, LabelUnknown, SplitEmpty
from peterrec.model.kinds.value import ValueScale
from peterrec.model.network.heads import Head
from peterrec.model.spec import LONGEST_LABEL, HeadSpec
from peterrec.model.training.calibration import Samples
from peterrec.model.training.objectives.summary import AnswerSummary

Rows = npt.NDArray[np.int64]


class Objective(Protocol):
    """One task's answers as tensors, its loss and its metrics.

    Rows are indices into the examples that the objective was built from. ``primary_metric`` is the
    name of the metric by which methods are compared; more is better.
    """

    primary_metric: ClassVar[str]

    @classmethod
    def learn_outputs(cls, examples: Examples, train: Rows) -> tuple[str, ...]:
        """Labels, tags or catalog in the order of the head's rows; empty for a number.

        Answers from which nothing can be learned are refused.
        """

    @classmethod
    def summary(cls, examples: Examples, rows: Rows) -> AnswerSummary:
        """What the answers of some rows are, and what is doubtful about them."""

    @classmethod
    def of(cls, outputs: tuple[str, ...], examples: Examples) -> Self:
        """The objective of these users' answers for these outputs."""

    @property
    def head_spec(self) -> HeadSpec:
        """The head that this task needs."""

    def prior(self, rows: Tensor) -> Tensor:
        """The best logits [K] that ignore the history, learned on some rows."""

    def loss(self, head: Head, users: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Mean loss of user vectors [B, C] against the answers of rows int64 [B]."""

    def predictions(self, logits: Tensor, rows: Tensor) -> Tensor:
        """What the metrics need of logits [B, K]: one entry for each answer, in the rows' order."""

    def metrics(self, predictions: Tensor, rows: Tensor) -> dict[str, float]:
        """Quality over all rows from their predictions, by metric name."""


@runtime_checkable
class ProbableObjective(Objective, Protocol):
    """An objective whose task answers probabilities, so that they can be calibrated."""

    def samples(self, predictions: Tensor, rows: Tensor) -> Samples:
        """The logits and right answers, from predictions, that a temperature is fitted to."""


@runtime_checkable
class ScaledObjective(Objective, Protocol):
    """An objective that trains its head on standardised targets, so that it starts at zero.

    ``scale`` is the line from the head's logit to the answer; its bundle carries it.
    """

    scale: ValueScale

    def learn_scale(self, rows: Tensor) -> None:
        """Learn the scale from the targets of some rows."""


@runtime_checkable
class RestrainedObjective(Objective, Protocol):
    """An objective with so many outputs that a free head learns the training users by heart.

    ``head_rate_share`` is multiplied with the head's learning rate.
    """

    head_rate_share: ClassVar[float]

    def head_ridge(self, rows: Tensor) -> float:
        """Twice the weight of the head's squared weights in the loss, for these training rows."""


@runtime_checkable
class LogitObjective(Objective, Protocol):
    """An objective whose loss is a function of all logits, so that an item table can learn it.

    A ranking is none: its loss draws some of the catalog.
    """

    def logit_loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of logits [B, K] against the answers of rows int64 [B]."""


def learnable_labels(examples: Examples, train: Rows) -> tuple[str, ...]:
    """All labels in alphabetical order; refused if one cannot be both learned and checked."""
    counts = examples.counts()
    longest = max(counts, key=len)
    if len(longest) > LONGEST_LABEL:
        raise LabelTooLong(
            f"{examples.source}: the label {longest[:40]!r}… has {len(longest):,} characters; "
            f"{LONGEST_LABEL} is the limit.",
            hint="Shorten it, or check the label column: it may hold free text.",
        )
    once = sorted(label for label, count in counts.items() if count == 1)
    if once:
        raise LabelSeenOnce(
            f"{examples.source}: {_names(once)} seen with a single user, too few to learn and to "
            "check.",
            hint="Merge rare labels. A `min_label_count` of 2 leaves them out.",
        )
    trained = {label for i in train.tolist() for label in examples.answers[i]}
    untrained = sorted(set(counts) - trained)
    if untrained:
        raise SplitEmpty(
            f"{examples.source}: {_names(untrained)} not seen with any user of the training part.",
            hint="Merge rare labels. Or raise `min_label_count`, or choose another `seed`.",
        )
    return tuple(sorted(counts))


def label_indices(outputs: tuple[str, ...]) -> dict[str, int]:
    """Row of the head for each label."""
    return {label: index for index, label in enumerate(outputs)}


def require_labels(found: Iterable[str], outputs: tuple[str, ...]) -> None:
    """Refuse labels that the head has no row for."""
    unknown = sorted(set(found) - set(outputs))
    if unknown:
        raise LabelUnknown(
            f"{_names(unknown)} not among the task's {len(outputs)} labels.",
            hint=f"The labels are {', '.join(outputs[:20])}.",
        )


def _names(labels: list[str]) -> str:
    shown = ", ".join(repr(label) for label in labels[:5])
    if len(labels) == 1:
        return f"label {shown} is"
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return f"labels {shown}{more} are"
