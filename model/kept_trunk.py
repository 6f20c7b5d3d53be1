"""Fine-tuning in the top blocks on kept trunk states: epochs compute nothing but those blocks."""

import torch
from torch import Tensor, nn

from model.backbone import Backbone
from model.encoders import Encoder, OnBackbone, PatchedBackbone, UserRows
from model.frozen_trunk import FrozenTrunk, first_patched
from model.grouped_blocks import GroupedBlocks
from model.patch import Patch
from model.patch_stack import PatchStack
from model.spec import PatchGeometry

TRUNK_LIMIT_BYTES = 2 << 30
"""Memory for kept states: 270,000 histories in float32 at 64 channels and two blocks of 1 and 4."""


class PatchedTop(OnBackbone):
    """A frozen backbone with a patch in its top blocks, whose trunk is kept for each history."""

    def __init__(self, backbone: Backbone, patch: Patch, trunk: FrozenTrunk, first: int) -> None:
        super().__init__(backbone)
        self.patch = patch.to(self.device)
        self._trunk = trunk
        self._blocks = GroupedBlocks(backbone, first)

    @property
    def trained(self) -> nn.Module:
        return self.patch

    def user_vectors(self, users: UserRows) -> Tensor:
        states = self._trunk.states(self._trunk.slots(users.rows))
        return self._blocks.user_vectors(states, PatchStack.of_one(self.patch.weights()))


def patch_encoder(backbone: Backbone, patch: Patch, histories: int) -> Encoder:
    """What trains a patch fastest that will meet so many different histories; 0: ever new ones."""
    trunk = keep_trunk(backbone, patch.geometry, histories)
    first = first_patched(backbone, patch.geometry)
    if trunk is None or first is None:
        return PatchedBackbone(backbone, patch)
    return PatchedTop(backbone, patch, trunk, first)


def keep_trunk(
    backbone: Backbone,
    geometry: PatchGeometry,
    histories: int,
    limit_bytes: int = TRUNK_LIMIT_BYTES,
) -> FrozenTrunk | None:
    """Room for the trunk of so many histories, in float32 or else bfloat16; None if neither fits.

    Also None if the patch leaves no trunk that depends on the history alone.
    """
    first = first_patched(backbone, geometry)
    if first is None or not histories:
        return None
    numbers = histories * FrozenTrunk.history_numbers(backbone, first)
    for dtype in (torch.float32, torch.bfloat16):
        if numbers * dtype.itemsize <= limit_bytes:
            return FrozenTrunk(backbone, first, histories, dtype)
    return None
