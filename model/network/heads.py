"""The output layer that every kind of head shares."""

import torch
from torch import Tensor, nn

from peterrec.model.spec import HeadSpec


class Head(nn.Module):
    """``logits = u W^T + b``: one row of W per class, tag or catalog item."""

    def __init__(
        self, spec: HeadSpec, channels: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.outputs, channels))
        self.bias = nn.Parameter(torch.zeros(spec.outputs)) if spec.has_bias else None
        nn.init.normal_(self.weight, std=0.02, generator=generator)

    def logits(self, users: Tensor) -> Tensor:
        """Logits [B, K] of user vectors [B, C]."""
        return nn.functional.linear(users, self.weight, self.bias)

    def named(self) -> dict[str, Tensor]:
        """Detached tensors by their names in a bundle."""
        named = {"head.weight": self.weight.detach().clone()}
        if self.bias is not None:
            named["head.bias"] = self.bias.detach().clone()
        return named
