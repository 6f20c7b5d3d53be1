"""Fine-tuning in the top blocks on kept trunk states: epochs compute nothing but those blocks."""

import torch
from torch import Tensor, nn

from peterrec.model.network.backbone import Backbone
from peterrec.model.network.patch import Patch
from peterrec.model.training.finetune.encoders import Encoder, OnBackbone, PatchedBackbone, UserRows
from peterrec.model.training.finetune.frozen_trunk import FrozenTrunk, first_patched
from peterrec.model.training.finetune.grouped_blocks import GroupedBlocks
from peterrec.model.training.finetune.patch_stack import PatchStack

TRUNK_LIMIT_BYTES = 2 << 30
"""Memory for kept states: 270,000 histories in float32 at 64 channels and two blocks of 1 and 4."""


class PatchedTop(OnBackbone):
    """A frozen backbone with a patch in its top blocks, whose trunk is kept for each history."""

    def __init__(self, backbone: Backbone, patch: Patch, trunk: FrozenTrunk) -> None:
        super().__init__(backbone)
        self.patch = patch.to(self.device)
        self._trunk = trunk
        self._blocks = GroupedBlocks(backbone, trunk.block)

    @property
    def trained(self) -> nn.Module:
        return self.patch

    def user_vectors(self, users: UserRows) -> Tensor:
        states = self._trunk.states(self._trunk.slots(users.rows))
        return self._blocks.user_vectors(states, PatchStack.of_one(self.patch.weights()))


def patch_encoder(backbone: Backbone, patch: Patch, histories: int) -> Encoder:
    """What trains a patch fastest that will meet so many different histories; 0: ever new ones."""
    first = first_patched(backbone, patch.geometry)
    if first is None or not histories:
        return PatchedBackbone(backbone, patch)
    trunk = keep_trunk(backbone, first, histories)
    return PatchedBackbone(backbone, patch) if trunk is None else PatchedTop(backbone, patch, trunk)


def keep_trunk(
    backbone: Backbone, first: int, histories: int, limit_bytes: int = TRUNK_LIMIT_BYTES
) -> FrozenTrunk | None:
    """Room for so many histories' states below block ``first``; None if there is too little.

    They are kept in float32, or in bfloat16 if only that fits.
    """
    numbers = histories * FrozenTrunk.history_numbers(backbone, first)
    for dtype in (torch.float32, torch.bfloat16):
        if numbers * dtype.itemsize <= limit_bytes:
            return FrozenTrunk(backbone, first, histories, dtype)
    return None
