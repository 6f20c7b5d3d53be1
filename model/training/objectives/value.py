"""The objective of value tasks: mean squared error of standardised targets."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.data.examples import Examples
from peterrec.model.kinds.value import ValueScale
from peterrec.model.network.heads import Head
from peterrec.model.spec import HeadSpec
from peterrec.model.training.objectives.objective import Rows


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
        return ()

    @classmethod
    def of(cls, outputs: tuple[str, ...], examples: Examples) -> Self:
        numbers = [[float(answer[0])] for answer in examples.answers]
        return cls(torch.tensor(numbers, dtype=torch.float64))

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
        wanted = self._standardised(rows).float()
        return functional.mse_loss(head.logits(users), wanted.to(users.device))

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


KIND = ValueObjective
