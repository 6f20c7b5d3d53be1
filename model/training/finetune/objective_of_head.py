"""What user vectors are trained for: an objective with its head."""

from typing import Protocol

import torch
from torch import Tensor, nn

from peterrec.model.network.heads import Head
from peterrec.model.training.objectives import Objective

JUDGED_ROWS = 256
"""Users whose logits are in memory at once."""


class Goal(Protocol):
    """A head, or several, and the loss that trains them with the encoder."""

    @property
    def head(self) -> nn.Module:
        """What is trained on top of the user vectors."""

    def prepare(self, rows: Tensor) -> None:
        """Start where the answers of these training examples say, before the first step."""

    def loss(self, vectors: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Mean loss of user vectors [B, C] against the answers of examples int64 [B]."""

    def metrics(self, vectors: Tensor, rows: Tensor) -> dict[str, float]:
        """Quality of user vectors [B, C] of examples int64 [B], by metric name."""

    def finish(self) -> None:
        """Bring the head into the form that is served."""


class TaskGoal:
    """One task."""

    def __init__(
        self, objective: Objective, channels: int, generator: torch.Generator | None = None
    ) -> None:
        self.objective = objective
        self.head = Head(objective.head_spec, channels, generator)

    def prepare(self, rows: Tensor) -> None:
        self.objective.prepare(self.head, rows)

    def loss(self, vectors: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        return self.objective.loss(self.head, vectors, rows, generator)

    def metrics(self, vectors: Tensor, rows: Tensor) -> dict[str, float]:
        return self.objective.metrics(self.judged(vectors, rows), rows)

    def judged(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """What the objective judges by, of user vectors [B, C] of examples int64 [B]."""
        parts = zip(torch.split(vectors, JUDGED_ROWS), torch.split(rows, JUDGED_ROWS), strict=True)
        return torch.cat([self.objective.judge(self.head.logits(u).cpu(), r) for u, r in parts])

    def finish(self) -> None:
        self.objective.finish(self.head)
