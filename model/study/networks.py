"""Networks that only a comparison trains: a side network, and two towers without order."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from peterrec.model.network.backbone import Backbone
from peterrec.model.spec import MAX_HISTORY_ITEMS, BackboneSpec
from peterrec.model.training.finetune.encoders import OnBackbone, UserRows
from peterrec.model.training.finetune.forward import user_states


class SideNetwork(nn.Module):
    """A small network outside the backbone that reads its states and never changes them.

    It is a ladder of width H along the backbone's L + 1 user states (compare IISAN, SIGIR 2024):
    ``s ← s + gelu(LN(h_l) D_l + s R_l + d_l)`` from the embedding to the top, then
    ``u = h_L + s U``. ``U`` starts at zero, so an untrained ladder leaves the user vector
    unchanged.
    """

    def __init__(
        self, states: int, channels: int, width: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(states, channels, width))
        self.ladder = nn.Parameter(torch.zeros(states, width, width))
        self.down_bias = nn.Parameter(torch.zeros(states, width))
        self.up = nn.Parameter(torch.zeros(width, channels))
        nn.init.normal_(self.down, std=channels**-0.5, generator=generator)

    def forward(self, states: Tensor) -> Tensor:
        """User vectors [B, C] from the backbone's states [B, L + 1, C]."""
        normal = functional.layer_norm(states, states.shape[2:])
        read = torch.einsum("blc,lch->blh", normal, self.down) + self.down_bias
        side = torch.zeros_like(read[:, 0])  # [B, H]
        for layer in range(read.shape[1]):
            step = read[:, layer] + side @ self.ladder[layer]
            side = side + functional.gelu(step, approximate="tanh")
        return states[:, -1] + side @ self.up  # [B, H] @ [H, C] -> [B, C]


class SidePatchedBackbone(OnBackbone):
    """A frozen backbone with a side network; one pass of the backbone serves every task."""

    def __init__(
        self, backbone: Backbone, width: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(backbone)
        states = len(backbone.blocks) + 1
        side = SideNetwork(states, backbone.spec.channels, width, generator)
        self.side = side.to(self.device)

    @property
    def trained(self) -> nn.Module:
        return self.side

    def user_vectors(self, users: UserRows) -> Tensor:
        with torch.no_grad():
            states = user_states(self.backbone, self.tokens(users))  # [B, L + 1, C]
        vectors: Tensor = self.side(states)
        return vectors


class TwoTower(nn.Module):
    """The user tower of a model that ignores the order of items (DSSM, CIKM 2013).

    It is what one would use without a sequence model. It reads the mean of a whole history's item
    vectors through two tanh layers, and has its own item vectors; its sizes are those of a
    backbone's spec.
    The other tower is the head: targets are known by their ids only, so a network over a free
    embedding of each id could learn no more than the embedding itself. Nothing is pretrained.
    """

    def __init__(
        self, spec: BackboneSpec, device: torch.device, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.channels, self.max_len = spec.channels, MAX_HISTORY_ITEMS
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
