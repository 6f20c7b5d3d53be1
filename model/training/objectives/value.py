"""The objective of value tasks: mean squared error of standardised targets."""

from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.data.examples import Examples
from peterrec.model.errors import TooFewClasses
from peterrec.model.network.heads import Head
from peterrec.model.spec import HeadSpec
from peterrec.model.training.objectives.objective import Rows


@dataclass(slots=True)
class ValueObjective:
    """``targets`` [N, 1] are the numbers.

    The head learns them standardised: Adam's steps are absolute, so incomes and ages need the same
    scale. ``restore_scale`` gives the trained head the numbers' own scale.
    """

    primary_metric: ClassVar[str] = "r2"

    targets: Tensor
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    scale: Tensor = field(default_factory=lambda: torch.ones(()))

    @classmethod
    def learn_outputs(cls, examples: Examples, train: Rows) -> tuple[str, ...]:
        """Return nothing: the only output has no name."""
        distinct = {float(examples.answers[i][0]) for i in train.tolist()}
        if len(distinct) < 2:
            raise TooFewClasses(
                f"all training users have the value {distinct.pop():g}.",
                hint="A constant needs no model.",
            )
        return ()

    @classmethod
    def of(cls, outputs: tuple[str, ...], examples: Examples) -> Self:
        return cls(torch.tensor([[float(answer[0])] for answer in examples.answers]))

    @property
    def head_spec(self) -> HeadSpec:
        return HeadSpec("value", 1)

    def prior(self, rows: Tensor) -> Tensor:
        """The mean of the targets: the best answer that ignores the history."""
        return self.targets[rows].mean(0)

    def learn_scale(self, rows: Tensor) -> None:
        self.mean, self.scale = self.targets[rows].mean(), self.targets[rows].std()

    def restore_scale(self, head: Head) -> None:
        """``scale (u w + b) + mean`` as one linear layer."""
        assert head.bias is not None
        with torch.no_grad():
            head.weight.mul_(self.scale.item())
            head.bias.mul_(self.scale.item()).add_(self.mean.item())

    def loss(self, head: Head, users: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the standardised numbers."""
        wanted = (self.targets[rows] - self.mean) / self.scale
        return functional.mse_loss(head.logits(users), wanted.to(users.device))

    def predictions(self, logits: Tensor, rows: Tensor) -> Tensor:
        return logits

    def metrics(self, predictions: Tensor, rows: Tensor) -> dict[str, float]:
        """Root mean squared and mean absolute error, and the share of variance explained."""
        targets = self.targets[rows]
        error = predictions - targets
        spread = (targets - targets.mean()).square().mean().item()
        squared = error.square().mean().item()
        return {
            "rmse": squared**0.5,
            "mae": error.abs().mean().item(),
            "r2": 1 - squared / max(spread, 1e-12),
        }


KIND = ValueObjective
