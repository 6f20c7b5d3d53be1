"""The objective of value tasks: mean squared error of standardised targets."""

import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.data.examples import Examples
from peterrec.model.errors import TooFewClasses, ValuesUnresolved
from peterrec.model.kinds.value import LARGEST, ValueScale
from peterrec.model.network.heads import Head
from peterrec.model.spec import HeadSpec
from peterrec.model.training.objectives.doubtful_numbers import Numbers, doubts_of_numbers
from peterrec.model.training.objectives.objective import Rows
from peterrec.model.training.objectives.summary import AnswerSummary, counted

FARTHEST = 2.0**24
"""Standard deviations of the training users beyond which a value is refused: beside its error, a
sum in float32 loses the errors of the others."""

FEWEST_RESOLVED = 1000
"""Different numbers that are enough for a head, even if float32 merges others of a large set."""


@dataclass(slots=True)
class ValueObjective:
    """``targets`` float64 [N, 1] are the numbers.

    The head learns them standardised by ``scale``: Adam's steps are absolute, so incomes and ages
    need the same scale, and float32 cannot tell large numbers with small differences apart.
    Metrics are computed in float64 on the numbers' own scale.
    """

    primary_metric: ClassVar[str] = "r2"

    targets: Tensor
    scale: ValueScale = field(default_factory=ValueScale)

    @classmethod
    def learn_outputs(cls, examples: Examples, train: Rows) -> tuple[str, ...]:
        """Return nothing: the only output has no name."""
        numbers = _numbers(examples)
        _require_different(examples, train, numbers)
        _require_resolved(examples, numbers, mean_and_deviation(torch.from_numpy(numbers[train])))
        return ()

    @classmethod
    def summary(cls, examples: Examples, rows: Rows) -> AnswerSummary:
        numbers = _numbers(examples)[rows]
        distinct, line = np.unique(numbers), mean_and_deviation(torch.from_numpy(numbers))
        spread = line.scale if len(distinct) > 1 else 0
        text = (
            f"{examples.source}: {counted(len(rows), 'user')} with "
            f"{counted(len(distinct), 'different value')} from {distinct[0]:.15g} to "
            f"{distinct[-1]:.15g}, mean {line.shift:.15g}, standard deviation {spread:.6g}."
        )
        texts = [examples.answers[i][0] for i in rows.tolist()]
        users = [examples.users[i] for i in rows.tolist()]
        return AnswerSummary(text, tuple(doubts_of_numbers(numbers, texts, users)))

    @classmethod
    def of(cls, outputs: tuple[str, ...], examples: Examples) -> Self:
        return cls(torch.from_numpy(_numbers(examples)).unsqueeze(1))

    @property
    def head_spec(self) -> HeadSpec:
        return HeadSpec("value", 1)

    def prior(self, rows: Tensor) -> Tensor:
        """The mean of the targets, standardised: the best answer that ignores the history."""
        return self._standardised(rows).mean(0)

    def learn_scale(self, rows: Tensor) -> None:
        self.scale = mean_and_deviation(self.targets[rows, 0])

    def loss(self, head: Head, users: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the standardised numbers."""
        return self.logit_loss(head.logits(users), rows)

    def logit_loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        return functional.mse_loss(logits, self._standardised(rows).to(logits))

    def predictions(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The numbers [B, 1] that the task answers, float64."""
        return self.scale.apply(logits.double())

    def metrics(self, predictions: Tensor, rows: Tensor) -> dict[str, float]:
        """Root mean squared and mean absolute error, and the share of variance explained.

        The share is NaN if the targets are all equal.
        """
        targets = self.targets[rows]
        unit = _unit(torch.stack([predictions, targets]))  # so that squares do not overflow
        error, spread = (predictions - targets) / unit, (targets - targets.mean()) / unit
        squared, variance = error.square().mean().item(), spread.square().mean().item()
        is_constant = bool((targets == targets[:1]).all())
        return {
            "rmse": squared**0.5 * unit,
            "mae": error.abs().mean().item() * unit,
            "r2": math.nan if is_constant or not variance else 1 - squared / variance,
        }

    def _standardised(self, rows: Tensor) -> Tensor:
        return (self.targets[rows] - self.scale.shift) / self.scale.scale  # [B, 1]


def mean_and_deviation(numbers: Tensor) -> ValueScale:
    """The line that standardises float64 numbers [n]: their mean and sample standard deviation.

    Distances from the first number are exact where all are close together, and in units of a power
    of two nothing overflows. Equal numbers keep their scale.
    """
    unit = _unit(numbers)
    start = numbers[0] / unit
    distances = numbers / unit - start
    deviation = distances.std().item() * unit if len(numbers) > 1 else 0.0
    return ValueScale(deviation or 1.0, (start + distances.mean()).item() * unit)


def _unit(numbers: Tensor) -> float:
    """A power of two near the largest absolute number; 1 for zeros."""
    largest = numbers.abs().max().item()
    return 2.0 ** (math.frexp(largest)[1] - 1) if largest else 1.0


def _numbers(examples: Examples) -> Numbers:
    return np.array([float(answer[0]) for answer in examples.answers], dtype=np.float64)


def _require_different(examples: Examples, train: Rows, numbers: Numbers) -> None:
    found = numbers[train]
    if (found != found[0]).any():
        return
    texts = sorted({Decimal(examples.answers[i][0]) for i in train.tolist()})
    if len(texts) > 1:
        raise ValuesUnresolved(
            f"{examples.source}: the values {texts[0]} to {texts[-1]} are one number in float64, "
            f"{found[0]:.17g}.",
            hint="Subtract a constant from them.",
        )
    raise TooFewClasses(
        f"{examples.source}: all {len(train):,} training users have the value {texts[0]}.",
        hint="A constant needs no model.",
    )


def _require_resolved(examples: Examples, numbers: Numbers, line: ValueScale) -> None:
    """Refuse numbers of which many are equal in float32 after they were standardised."""
    unit = np.abs(numbers).max()
    if max(unit, line.scale) <= LARGEST and _is_resolved(np.unique(numbers), line):
        return
    at = int(np.abs(numbers / unit - np.median(numbers / unit)).argmax())
    raise ValuesUnresolved(
        f"{examples.source}: user {examples.users[at]!r} has the value {examples.answers[at][0]}, "
        f"beside which float32 cannot tell the others apart; their median is "
        f"{np.median(np.delete(numbers, at)):.15g}, and {LARGEST:g} is the limit.",
        hint="Correct or leave out such values, or train on their logarithm.",
    )


def _is_resolved(distinct: Numbers, line: ValueScale) -> bool:
    """True if hardly any of the numbers are equal in float32 on the line, and none is too far."""
    with np.errstate(over="ignore"):
        standard = ((distinct - line.shift) / line.scale).astype(np.float32)
    kept = len(np.unique(standard))
    is_fine = kept >= FEWEST_RESOLVED or (len(distinct) - kept) * 4 <= len(distinct)
    return is_fine and bool(np.abs(standard).max() <= FARTHEST)


KIND = ValueObjective
