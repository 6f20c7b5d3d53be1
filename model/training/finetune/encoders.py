"""What maps histories to user vectors, and which of its parameters a task trains."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import frame_histories
from peterrec.model.network.patch import Patch
from peterrec.model.training.finetune.cone_training import user_vectors

TokenRow = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class UserRows:
    """Histories in token ids, oldest first, and the example int64 [B] that each belongs to.

    While training, items may be missing from a row; ``examples`` names its user all the same.
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
        """Newest items of a history that are read."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def trained(self) -> nn.Module:
        """All that training changes: what the optimiser gets and what the best epoch restores."""

    def user_vectors(self, users: UserRows) -> Tensor:
        """User vectors [B, C]; differentiable with respect to what is trained."""


class OnBackbone:
    """What encoders that read through a backbone share."""

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
        """Framed tokens int64 [B, T] on the device."""
        return frame_histories(users.rows, self.backbone.spec).to(self.device)


class PatchedBackbone(OnBackbone):
    """A frozen backbone with a patch in it: PeterRec."""

    def __init__(self, backbone: Backbone, patch: Patch) -> None:
        super().__init__(backbone)
        self.patch = patch.to(self.device)

    @property
    def trained(self) -> nn.Module:
        return self.patch

    def user_vectors(self, users: UserRows) -> Tensor:
        return user_vectors(self.backbone, self.tokens(users), self.patch.weights())


class FrozenBackbone(OnBackbone):
    """The backbone as it is: only a head learns (FineCLS)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.trained: nn.Module = nn.ModuleList()

    @torch.no_grad()
    def user_vectors(self, users: UserRows) -> Tensor:
        return user_vectors(self.backbone, self.tokens(users), None)


class TunedBackbone(OnBackbone):
    """A copy of the backbone of which the ``chosen`` part learns; all of it is FineAll."""

    def __init__(
        self, backbone: Backbone, chosen: Callable[[Backbone], nn.Module] = lambda whole: whole
    ) -> None:
        super().__init__(deepcopy(backbone).requires_grad_(False))
        self.trained: nn.Module = chosen(self.backbone).requires_grad_(True)

    def user_vectors(self, users: UserRows) -> Tensor:
        return user_vectors(self.backbone, self.tokens(users), None)
