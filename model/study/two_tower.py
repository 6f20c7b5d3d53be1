"""A two-tower model without order (DSSM, CIKM 2013): what one would use without a sequence model.

The user tower reads the mean of a history's item vectors through two tanh layers. The other tower
is the head: with nothing but ids of targets, a network over a free embedding of each id could
learn no more than that embedding itself. Nothing is pretrained.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from peterrec.model.spec import BackboneSpec
from peterrec.model.training.finetune.encoders import UserRows


class TwoTower(nn.Module):
    """The user tower, with item vectors of its own; sizes are those of a backbone's spec."""

    def __init__(
        self, spec: BackboneSpec, device: torch.device, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.channels, self.max_len = spec.channels, spec.max_len
        self.items = nn.Embedding(spec.token_count, spec.channels)
        self.layers = nn.Sequential(
            nn.Linear(spec.channels, 2 * spec.channels),
            nn.Tanh(),
            nn.Linear(2 * spec.channels, spec.channels),
            nn.Tanh(),
        )
        nn.init.normal_(self.items.weight, std=0.1, generator=generator)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)
        self.to(device)

    @property
    def device(self) -> torch.device:
        return self.items.weight.device

    @property
    def trained(self) -> nn.Module:
        return self

    def user_vectors(self, users: UserRows) -> Tensor:
        newest = [row[-self.max_len :] for row in users.rows]
        tokens = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *newest]))
        starts = torch.tensor([0, *(len(row) for row in newest[:-1])]).cumsum(0)
        bags = functional.embedding_bag(
            tokens.to(self.device), self.items.weight, starts.to(self.device), mode="mean"
        )  # [B, C]; an empty history has the zero vector
        vectors: Tensor = self.layers(bags)
        return vectors
