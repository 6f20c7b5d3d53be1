"""A patch beside the backbone: it reads the frozen trunk's states and never changes them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from peterrec.model.network.backbone import Backbone
from peterrec.model.training.finetune.encoders import OnBackbone, UserRows
from peterrec.model.training.finetune.forward import user_states


class SideNetwork(nn.Module):
    """A ladder of width H along the trunk's L + 1 user states (compare IISAN, SIGIR 2024).

    ``s ← s + gelu(LN(h_l) D_l + s R_l + d_l)`` from the embedding to the top, then
    ``u = h_L + s U``. ``U`` starts at zero, so an untrained one leaves the user vector unchanged.
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
        """User vectors [B, C] of the trunk's states [B, L + 1, C]."""
        normal = functional.layer_norm(states, states.shape[2:])
        read = torch.einsum("blc,lch->blh", normal, self.down) + self.down_bias
        side = torch.zeros_like(read[:, 0])  # [B, H]
        for level in range(read.shape[1]):
            step = read[:, level] + side @ self.ladder[level]
            side = side + functional.gelu(step, approximate="tanh")
        return states[:, -1] + side @ self.up  # [B, H] @ [H, C] -> [B, C]


class SidePatchedBackbone(OnBackbone):
    """A frozen backbone with a side network: one pass of the trunk serves every task."""

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
