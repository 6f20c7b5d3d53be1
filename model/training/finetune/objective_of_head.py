"""What user vectors are trained for: objectives together with the heads that they train."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from peterrec.model.network.heads import Head
from peterrec.model.training.objectives import (
    Objective,
    RestrainedObjective,
    ScaledObjective,
)

EVALUATED_ROWS = 256
"""Users whose logits are in memory together while metrics are computed."""


class TrainedObjective(Protocol):
    """A head, or several, and the loss that trains them with the encoder."""

    @property
    def head(self) -> nn.Module:
        """The layers that are trained on top of the user vectors."""

    def prepare(self, rows: Tensor) -> None:
        """Start the head at the answers of these training examples, before the first step."""

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:  # Any: torch's own type
        """Groups of parameters for the optimiser: each head with its own learning rate."""

    def loss(self, vectors: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Mean loss of user vectors [B, C] against the answers of examples int64 [B]."""

    def penalty(self) -> Tensor:
        """What training adds to the loss so that the head's weights stay small; a number []."""

    def metrics(self, vectors: Tensor, rows: Tensor) -> dict[str, float]:
        """Quality of user vectors [B, C] of examples int64 [B], by metric name."""


class HeadObjective:
    """One task's objective with its head."""

    def __init__(
        self, objective: Objective, channels: int, generator: torch.Generator | None = None
    ) -> None:
        self.objective = objective
        self.head = Head(objective.head_spec, channels, generator)
        self._ridge = 0.0

    def prepare(self, rows: Tensor) -> None:
        """Start the bias at the prior of some rows: 0 if the targets are standardised.

        The ridge of the head's weights is set for these rows, too.
        """
        self.restrain(rows)
        if isinstance(self.objective, ScaledObjective):
            self.objective.learn_scale(rows)
            return
        assert self.head.bias is not None
        with torch.no_grad():
            self.head.bias.copy_(self.objective.prior(rows))

    def restrain(self, rows: Tensor) -> None:
        """Set the ridge of the head's weights for some rows."""
        if isinstance(self.objective, RestrainedObjective):
            self._ridge = self.objective.head_ridge(rows)

    def loss(self, vectors: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        return self.objective.loss(self.head, vectors, rows, generator)

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        objective = self.objective
        share = objective.head_rate_share if isinstance(objective, RestrainedObjective) else 1.0
        return [{"params": self.head.parameters(), "lr": share * learning_rate}]

    def penalty(self) -> Tensor:
        if not self._ridge:
            return self.head.weight.new_zeros(())
        return self.head.weight.square().sum() * (self._ridge / 2)

    def metrics(self, vectors: Tensor, rows: Tensor) -> dict[str, float]:
        return self.objective.metrics(self.predictions(vectors, rows), rows)

    def predictions(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """What the objective's metrics need of user vectors [B, C] of examples int64 [B]."""
        parts = zip(
            torch.split(vectors, EVALUATED_ROWS), torch.split(rows, EVALUATED_ROWS), strict=True
        )
        return torch.cat(
            [self.objective.predictions(self.head.logits(u).cpu(), r) for u, r in parts]
        )
