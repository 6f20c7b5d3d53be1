"""The mixed-task forward on a GPU: rows of any tasks, padded to the length of their chunk.

Rows are sorted by length and cut into chunks, so that little is padding; rows of one history share
all blocks below their patches (``model/lanes.py``). Convolutions are products over gathered taps,
computed at the positions of the cone (``model/cone.py``) only.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model.backbone import Backbone
from model.cone import plan
from model.device_plan import DevicePlan, to_device
from model.framing import Tokens, frame_histories
from model.kernels.fused_blocks import FusedBlocks, RowGroup
from model.lanes import (
    SHARED_OVERDRAFT,
    Lanes,
    SlotRef,
    Stage,
    entry_block,
    number_histories,
    plan_lanes,
)
from model.spec import CLS, PAD

CHUNK_POSITIONS = 1 << 20
"""Tokens per chunk."""

CHUNK_COST = 1 << 22
"""A chunk more costs as much as this over C positions: so many may be padding before one is cut."""


class PaddedForward:
    """User vectors on a GPU. Used by one thread. Slabs hold their weights in ``dtype`` too."""

    def __init__(
        self,
        backbone: Backbone,
        dtype: torch.dtype = torch.float32,
        chunk_positions: int | None = None,
    ) -> None:
        self.spec = backbone.spec
        self._device = backbone.embedding.weight.device
        self._embedding = backbone.embedding.weight.detach().to(dtype)
        self._blocks = FusedBlocks(backbone, dtype)
        self._block_count = len(backbone.blocks)
        self._chunk_positions = chunk_positions or CHUNK_POSITIONS
        self._most_waste = CHUNK_COST // backbone.spec.channels
        self._plans: dict[int, DevicePlan] = {}

    @torch.inference_mode()
    def user_vectors(self, histories: Sequence[Tokens], refs: Sequence[SlotRef]) -> Tensor:
        """User vectors float32 [B, C]: history i through the backbone patched by slot i."""
        out = torch.empty(len(histories), self.spec.channels, device=self._device)
        newest = [np.asarray(h[-self.spec.max_len :], dtype=np.int32) for h in histories]
        _, history_of = number_histories(newest)
        for rows in self._chunks(histories, history_of, refs):
            lanes = plan_lanes(rows, history_of, refs, self._block_count)
            vectors = self._run_chunk([histories[first] for first in lanes.histories], lanes)
            out[torch.as_tensor(lanes.rows, device=self._device)] = vectors.float()
        return out

    def _chunks(
        self, histories: Sequence[Tokens], history_of: Sequence[int], refs: Sequence[SlotRef]
    ) -> list[list[int]]:
        """Row numbers per chunk: rows of like length together, rows of one history as well."""
        lengths = np.array([self.spec.framed_len(len(h[-self.spec.max_len :])) for h in histories])
        order = np.lexsort((np.asarray(history_of), -lengths))
        chunks: list[list[int]] = []
        room, waste, longest, last = 0, 0, 0, -1
        for row in order.tolist():
            is_new, length = history_of[row] != last, int(lengths[row])
            least_room = 0 if is_new else -SHARED_OVERDRAFT * self._chunk_positions
            is_wasteful = is_new and waste + longest - length > self._most_waste
            if not chunks or room < least_room or is_wasteful:
                chunks.append([])
                room, waste, longest, is_new = self._chunk_positions, 0, length, True
            sizes = self._plan(longest).entry_sizes
            entry = entry_block(refs[row].geometry, self._block_count)
            room -= sizes[entry] + (sizes[0] if is_new and entry > 0 else 0)
            waste += longest - length if is_new else 0
            chunks[-1].append(row)
            last = history_of[row]
        return chunks

    def _plan(self, length: int) -> DevicePlan:
        if length not in self._plans:
            self._plans[length] = to_device(plan(self.spec, length), self._device)
        return self._plans[length]

    def _run_chunk(self, histories: Sequence[Tokens], lanes: Lanes) -> Tensor:
        """Distinct histories -> user vectors [rows, C] in the order of ``lanes.rows``."""
        framed = frame_histories(histories, self.spec)  # [histories, T]
        tokens, lengths = framed.to(self._device), self._lengths(framed)
        device_plan = self._plan(framed.shape[1])
        x = self._enter(tokens, self._groups(lanes.stages[0]), device_plan)
        for stage, following in zip(lanes.stages, [*lanes.stages[1:], None], strict=True):
            if stage.select is not None:
                select = torch.from_numpy(stage.select).to(self._device)
                tokens, x = tokens.index_select(0, select), x.index_select(0, select)
                lengths = None if lengths is None else lengths.index_select(0, select)
            groups = self._groups(stage)
            for number in range(stage.block, following.block if following else self._block_count):
                x = self._blocks.run(x, number, device_plan.blocks[number], lengths, groups)
        return self._pool(x, tokens)

    def _groups(self, stage: Stage) -> list[RowGroup]:
        """The stage's groups with their slots on the device."""
        return [
            RowGroup(
                group.start,
                group.stop,
                group.geometry,
                group.slab.tensors,
                torch.from_numpy(group.slots).to(self._device),
            )
            for group in stage.groups
        ]

    def _lengths(self, framed: Tensor) -> Tensor | None:
        """Real tokens of each row, int32 [B]; None if no row is padded."""
        if self.spec.padding == "embedded":
            return None
        lengths = (framed != PAD).sum(1, dtype=torch.int32)
        is_ragged = bool((lengths < framed.shape[1]).any())
        return lengths.to(self._device) if is_ragged else None

    def _enter(self, tokens: Tensor, groups: list[RowGroup], device_plan: DevicePlan) -> Tensor:
        """Embedded rows [B, 1 + N, C] of the positions that the cone reads; entry 0 is zero."""
        x = functional.embedding(tokens, self._embedding)  # [B, T] -> [B, T, C]
        if self.spec.padding == "exact":
            x *= (tokens != PAD).unsqueeze(2)
        for group in groups:
            if group.geometry.has_cls:
                rows = slice(group.start, group.stop)
                own = group.tensors["patch.cls"][group.slots].unsqueeze(1)  # [b, C] -> [b, 1, C]
                x[rows] = torch.where((tokens[rows] == CLS).unsqueeze(2), own, x[rows])
        read = x.index_select(1, x.shape[1] - 1 - device_plan.inputs)
        return functional.pad(read, (0, 0, 1, 0))  # a zero row in front, for taps outside

    def _pool(self, x: Tensor, tokens: Tensor) -> Tensor:
        """User vectors [B, C] of the top states x [B, 1 + N, C]."""
        last = x[:, -1]
        if self.spec.is_causal:
            return last
        if self.spec.padding == "embedded":
            return last + x[:, 1]
        first = (tokens != PAD).int().argmax(1)  # [B, T] -> [B]
        return last + x[torch.arange(len(x), device=x.device), 1 + first]
