"""Activations of the frozen blocks below all patches, computed once for each history.

With patches in the top blocks only, everything below depends on the history alone, and so does the
first patched convolution, whose output a patch joins. With blocks of dilations 1 and 4 and the top
two patched, that is 30 of the 1,600 vectors of a history of 100 items: 7.7 kB in float32.
"""

from collections.abc import Sequence
from math import prod
from typing import Self

import torch
from torch import Tensor

from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import frame_histories
from peterrec.model.network.receptive_field import plan
from peterrec.model.spec import PAD, PatchGeometry
from peterrec.model.training.batches import TokenRow
from peterrec.model.training.finetune.forward import BlockInput, FieldBlocks, Rows

COMPUTED_ROWS = 64
"""Histories whose activations are computed in one forward."""

CACHE_LIMIT_BYTES = 2 << 30
"""Memory of a cache: 270,000 histories in float32, at 64 channels with two top blocks patched."""


def first_patched(backbone: Backbone, geometry: PatchGeometry) -> int | None:
    """The lowest patched block if everything below it depends on the history alone, else None.

    It is one past the last block if none is patched: then the whole network is frozen. A non-causal
    user vector reads every position, so caching its activations would save little.
    """
    lowest = min(geometry.blocks, default=len(backbone.blocks))
    is_cacheable = backbone.spec.is_causal and lowest > 0 and not geometry.has_cls
    return lowest if is_cacheable else None


class ActivationCache:
    """The input of block ``block`` for up to ``capacity`` histories, stored in ``dtype``."""

    def __init__(
        self, backbone: Backbone, block: int, capacity: int, dtype: torch.dtype = torch.float32
    ) -> None:
        spec, device = backbone.spec, backbone.embedding.weight.device
        self.block = block
        self.dtype = dtype
        self._backbone = backbone
        shape = (capacity, *_stored_shape(backbone, block))
        self._stored = torch.empty(shape, dtype=dtype, device=device)
        self._tokens = torch.full((capacity, spec.max_len), PAD, dtype=torch.int32, device=device)
        self._lengths = torch.empty(capacity, dtype=torch.int64, device=device)
        self._slot_of: dict[bytes, int] = {}

    @classmethod
    def within(
        cls, backbone: Backbone, block: int, histories: int, limit_bytes: int = CACHE_LIMIT_BYTES
    ) -> Self | None:
        """A cache for this number of histories; None if they need more than the limit.

        Activations are stored in float32, or in bfloat16 if only that fits.
        """
        numbers = histories * cls.numbers_per_history(backbone, block)
        for dtype in (torch.float32, torch.bfloat16):
            if numbers * dtype.itemsize <= limit_bytes:
                return cls(backbone, block, histories, dtype)
        return None

    @property
    def device(self) -> torch.device:
        """The device that stores and computes the activations."""
        return self._stored.device

    @staticmethod
    def numbers_per_history(backbone: Backbone, block: int) -> int:
        """Numbers that are stored for each history, without its tokens."""
        return prod(_stored_shape(backbone, block))

    def states(self, slots: Tensor) -> BlockInput:
        """The block's input in float32 for the histories at slots int64 [R]."""
        stored = self._stored[slots].float()  # [R, 2 or 1, M, C]
        lengths = self._lengths[slots]
        rows = Rows(self._tokens[slots], lengths, int(lengths.min()))
        return BlockInput(source=stored[:, -1], conv=stored[:, 0], rows=rows)

    def slots(self, rows: Sequence[TokenRow]) -> Tensor:
        """Slots int64 [B] of histories (token ids, oldest first); new histories are computed."""
        newest = [row[-self._backbone.spec.max_len :] for row in rows]
        keys = [row.tobytes() for row in newest]
        fresh = {k: row for k, row in zip(keys, newest, strict=True) if k not in self._slot_of}
        by_length = sorted(fresh, key=lambda key: len(fresh[key]))
        for start in range(0, len(by_length), COMPUTED_ROWS):
            part = by_length[start : start + COMPUTED_ROWS]
            self._compute([fresh[key] for key in part])
            self._slot_of.update(
                zip(part, range(len(self._slot_of), len(self._stored)), strict=False)
            )
        return torch.tensor([self._slot_of[key] for key in keys], device=self.device)

    @torch.no_grad()
    def _compute(self, histories: list[TokenRow]) -> None:
        """Compute histories into the next free slots."""
        tokens = frame_histories(histories, self._backbone.spec).to(self.device)  # [B, T]
        slots = slice(len(self._slot_of), len(self._slot_of) + len(histories))
        self._stored[slots] = 0
        blocks = FieldBlocks(self._backbone, tokens.shape[1])
        below = blocks.input_of(self.block, tokens)
        reached = slice(self._stored.shape[2] - below.source.shape[1], None)  # within T tokens
        self._stored[slots, 0, reached] = below.conv
        self._stored[slots, -1, reached] = below.source
        items = tokens[:, :-1].int()  # all but [CLS], PAD in front
        self._tokens[slots, self._tokens.shape[1] - items.shape[1] :] = items
        self._lengths[slots] = below.rows.lengths


def _stored_shape(backbone: Backbone, block: int) -> tuple[int, int, int]:
    """The first patched convolution's outputs and inputs [2, M, C]; or a user vector [1, 1, C]."""
    spec = backbone.spec
    if block == len(backbone.blocks):
        return 1, 1, spec.channels
    return 2, len(plan(spec, spec.max_input_len).blocks[block].first.outputs), spec.channels
