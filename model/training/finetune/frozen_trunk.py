"""What a frozen trunk gives each history, computed once and kept while the patches above it train.

With patches in the top blocks only, everything below depends on the history alone, and so does the
first patched convolution, whose output a patch joins. With blocks of 1 and 4 and the top two
patched, that is 30 of 1,600 vectors of a history of 100 items: 7.7 kB in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import frame_histories
from peterrec.model.network.receptive_field import plan
from peterrec.model.spec import PAD, PatchGeometry
from peterrec.model.training.finetune.cone_training import first_conv, user_vectors

TokenRow = npt.NDArray[np.int64]

TRUNK_ROWS = 64
"""Histories whose trunk is computed at once."""


def first_patched(backbone: Backbone, geometry: PatchGeometry) -> int | None:
    """The lowest patched block if all below depends on the history alone, else None.

    One past the last block if none is patched: then the whole network does. A non-causal user
    vector looks at every position, so keeping its trunk would gain little.
    """
    lowest = min(geometry.blocks, default=len(backbone.blocks))
    is_kept = backbone.spec.is_causal and lowest > 0 and not geometry.has_cls
    return lowest if is_kept else None


@dataclass(frozen=True, slots=True)
class TopStates:
    """What the blocks from the first patched one up read of B histories.

    ``source`` [B, M, C] enters the first patched block at the M positions where its first
    convolution is needed, ``conv`` [B, M, C] is that convolution's output, and ``lengths`` int64
    [B] are the histories' positions: what is further back is zero. Above the last block both are
    the user vector [B, 1, C]. ``tokens`` int32 [B, T] are what a reader looks at, PAD in front.
    """

    conv: Tensor
    source: Tensor
    lengths: Tensor
    tokens: Tensor


class FrozenTrunk:
    """The states of up to ``capacity`` histories below block ``block``, kept in ``dtype``."""

    def __init__(
        self, backbone: Backbone, block: int, capacity: int, dtype: torch.dtype = torch.float32
    ) -> None:
        spec, device = backbone.spec, backbone.embedding.weight.device
        self.block = block
        self._backbone = backbone
        shape = (capacity, *_kept_shape(backbone, block))
        self._kept = torch.empty(shape, dtype=dtype, device=device)
        self._tokens = torch.full((capacity, spec.max_len), PAD, dtype=torch.int32, device=device)
        self._lengths = torch.empty(capacity, dtype=torch.int64, device=device)
        self._slot_of: dict[bytes, int] = {}

    @property
    def device(self) -> torch.device:
        """Where states are kept and computed."""
        return self._kept.device

    @staticmethod
    def history_numbers(backbone: Backbone, block: int) -> int:
        """Numbers kept of each history, its tokens apart."""
        return prod(_kept_shape(backbone, block))

    def states(self, slots: Tensor) -> TopStates:
        """States in float32 of the histories at slots int64 [B]."""
        kept = self._kept[slots].float()  # [B, 2 or 1, M, C]
        return TopStates(kept[:, 0], kept[:, -1], self._lengths[slots], self._tokens[slots])

    def slots(self, rows: Sequence[TokenRow]) -> Tensor:
        """Where histories (token ids, oldest first) are kept, int64 [B]; new ones are computed."""
        newest = [row[-self._backbone.spec.max_len :] for row in rows]
        keys = [row.tobytes() for row in newest]
        fresh = {k: row for k, row in zip(keys, newest, strict=True) if k not in self._slot_of}
        by_length = sorted(fresh, key=lambda key: len(fresh[key]))
        for start in range(0, len(by_length), TRUNK_ROWS):
            part = by_length[start : start + TRUNK_ROWS]
            self._keep([fresh[key] for key in part])
            self._slot_of.update(
                zip(part, range(len(self._slot_of), len(self._kept)), strict=False)
            )
        return torch.tensor([self._slot_of[key] for key in keys], device=self._kept.device)

    def _keep(self, rows: list[TokenRow]) -> None:
        """Compute histories into the next free slots."""
        tokens = frame_histories(rows, self._backbone.spec).to(self.device)  # [B, T]
        slots = slice(len(self._slot_of), len(self._slot_of) + len(rows))
        self._kept[slots] = 0
        if self.block == len(self._backbone.blocks):
            self._kept[slots, 0, 0] = user_vectors(self._backbone, tokens, None)
        else:
            source, conv = first_conv(self._backbone, tokens, self.block)  # [B, M', C], M' <= M
            reached = slice(self._kept.shape[2] - source.shape[1], None)  # within T tokens
            self._kept[slots, 0, reached], self._kept[slots, 1, reached] = conv, source
        items = tokens[:, :-1].int()  # all but [CLS], PAD in front
        self._tokens[slots, self._tokens.shape[1] - items.shape[1] :] = items
        is_read = (tokens != PAD) | (self._backbone.spec.padding == "embedded")
        self._lengths[slots] = is_read.sum(1)


def _kept_shape(backbone: Backbone, block: int) -> tuple[int, int, int]:
    """The first patched convolution's outputs and inputs [2, M, C]; or a user vector [1, 1, C]."""
    spec = backbone.spec
    if block == len(backbone.blocks):
        return 1, 1, spec.channels
    return 2, len(plan(spec, spec.frame_len).blocks[block].first.outputs), spec.channels
