"""Encoders: trainable maps from histories to user vectors, each with what a task trains of it."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import frame_histories
from peterrec.model.network.patch import Patch
from peterrec.model.training.batches import TokenRow
from peterrec.model.training.finetune.activation_cache import ActivationCache, first_patched
from peterrec.model.training.finetune.forward import FieldBlocks, user_vectors
from peterrec.model.training.finetune.patch_stack import PatchStack


@dataclass(frozen=True, slots=True)
class UserRows:
    """Histories in token ids, oldest first, and the example int64 [B] that each belongs to.

    While training, a row may lack items (item dropout); ``examples`` says which user it belongs to.
    """

    rows: Sequence[TokenRow]
    examples: Tensor


class Encoder(Protocol):
    """A trainable map from histories to user vectors; the head on top is not part of it."""

    @property
    def channels(self) -> int:
        """Width C of a user vector."""

    @property
    def max_len(self) -> int:
        """Number of newest items of a history that are read."""

    @property
    def device(self) -> torch.device:
        """The device that computes."""

    @property
    def trained(self) -> nn.Module:
        """The parameters that training changes and that the best epoch's weights replace."""

    def user_vectors(self, users: UserRows) -> Tensor:
        """User vectors [B, C]; differentiable with respect to what is trained."""


class OnBackbone:
    """Base of encoders that read histories through a backbone."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    @property
    def channels(self) -> int:
        return self.backbone.spec.channels

    @property
    def max_len(self) -> int:
        return self.backbone.spec.max_len

    @property
    def device(self) -> torch.device:
        return self.backbone.embedding.weight.device

    def tokens(self, users: UserRows) -> Tensor:
        """Collated tokens int64 [B, T] on the device."""
        return frame_histories(users.rows, self.backbone.spec).to(self.device)


class PatchedBackbone(OnBackbone):
    """PeterRec: a frozen backbone with a patch in it."""

    def __init__(self, backbone: Backbone, patch: Patch) -> None:
        super().__init__(backbone)
        self.patch = patch.to(self.device)

    @property
    def trained(self) -> nn.Module:
        return self.patch

    def user_vectors(self, users: UserRows) -> Tensor:
        return user_vectors(self.backbone, self.tokens(users), self.patch.weights())


class CachedPatchedBackbone(OnBackbone):
    """A frozen backbone with a patch in its top blocks; the blocks below are computed once."""

    def __init__(self, backbone: Backbone, patch: Patch, cache: ActivationCache) -> None:
        super().__init__(backbone)
        self.patch = patch.to(self.device)
        self._cache = cache
        self._blocks = FieldBlocks(backbone, backbone.spec.max_input_len, cache.block)

    @property
    def trained(self) -> nn.Module:
        return self.patch

    def user_vectors(self, users: UserRows) -> Tensor:
        below = self._cache.states(self._cache.slots(users.rows))
        return self._blocks.user_vectors(below, PatchStack.of_one(self.patch.weights()))


def patch_encoder(backbone: Backbone, patch: Patch, histories: int) -> Encoder:
    """Choose the fastest encoder for this number of distinct histories (0: unbounded)."""
    first = first_patched(backbone, patch.geometry)
    cache = ActivationCache.within(backbone, first, histories) if first and histories else None
    if cache is None:
        return PatchedBackbone(backbone, patch)
    return CachedPatchedBackbone(backbone, patch, cache)


class FrozenBackbone(OnBackbone):
    """FineCLS: the frozen backbone without a patch; only a head learns."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.trained: nn.Module = nn.ModuleList()

    @torch.no_grad()
    def user_vectors(self, users: UserRows) -> Tensor:
        return user_vectors(self.backbone, self.tokens(users), None)


class TunedBackbone(OnBackbone):
    """A copy of the backbone of which the ``chosen`` part learns; FineAll if that is all of it."""

    def __init__(
        self, backbone: Backbone, chosen: Callable[[Backbone], nn.Module] = lambda whole: whole
    ) -> None:
        super().__init__(deepcopy(backbone).requires_grad_(False))
        self.trained: nn.Module = chosen(self.backbone).requires_grad_(True)

    def user_vectors(self, users: UserRows) -> Tensor:
        return user_vectors(self.backbone, self.tokens(users), None)
