"""The mixed-task forward: rows of any tasks, lengths and patch geometries in one pass.

The shared convolutions run over all rows of a chunk; each row's own patch is gathered by slot.
Rows are sorted by length and cut into chunks that fit the processor's cache, so a row costs about
what its history costs; rows of one history share all blocks below their patches
(``model/lanes.py``). Convolutions are GEMMs over gathered taps, computed at the positions of the
cone (``model/cone.py``) only. Checked against ``Backbone.user_vectors`` row by row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model.backbone import Backbone, DilatedConv, ResidualBlock
from model.cone import ConvPlan, Plan, plan
from model.framing import Tokens, frame_histories
from model.kernels.cpu import Linear, bottleneck_hidden, packed_linear
from model.lanes import Group, Lanes, SlotRef, entry_block, plan_lanes
from model.spec import CLS, PAD, PatchGeometry

CHUNK_POSITIONS = 1_600
"""Tokens per chunk on a CPU: the activations of one convolution then stay in the second cache."""

SHARED_OVERDRAFT = 3
"""So many chunks' worth of rows of one history may join one chunk, so that its trunk runs once."""


@dataclass(frozen=True, slots=True)
class PackedConv:
    """A convolution as a product over its concatenated taps, and its LayerNorm."""

    linear: Linear
    norm_weight: Tensor
    norm_bias: Tensor


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A cone plan with its indices on the device."""

    plan: Plan
    taps: tuple[tuple[Tensor, Tensor], ...]
    residuals: tuple[Tensor, ...]
    entry_sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One convolution of one chunk, as the patches see it."""

    block: int
    conv: int
    groups: list[Group]


class MixedForward:
    """User vectors for rows of different tasks. Used by one thread, the device's owner."""

    def __init__(self, backbone: Backbone, chunk_positions: int = CHUNK_POSITIONS) -> None:
        self.spec = backbone.spec
        self._device = backbone.embedding.weight.device
        self._embedding = backbone.embedding.weight.detach()
        self._blocks = [_pack_block(block) for block in backbone.blocks]
        self._ones = torch.ones(self.spec.channels, device=self._device)
        self._zeros = torch.zeros(self.spec.channels, device=self._device)
        self._chunk_positions = chunk_positions
        self._plans: dict[int, DevicePlan] = {}

    @torch.inference_mode()
    def user_vectors(self, histories: Sequence[Tokens], refs: Sequence[SlotRef]) -> Tensor:
        """User vectors [B, C]: row i is history i through the backbone patched by slot i."""
        out = torch.empty(len(histories), self.spec.channels, device=self._device)
        history_of = _numbered(histories, self.spec.max_len)
        for rows in self._chunks(histories, history_of, refs):
            lanes = plan_lanes(rows, history_of, refs, len(self._blocks), self._device)
            tokens = frame_histories([histories[first] for first in lanes.histories], self.spec)
            vectors = self._run_chunk(tokens.to(self._device), lanes)
            out[torch.as_tensor(lanes.rows, device=self._device)] = vectors
        return out

    def _chunks(
        self, histories: Sequence[Tokens], history_of: Sequence[int], refs: Sequence[SlotRef]
    ) -> list[list[int]]:
        """Row numbers per chunk: rows of like length together, rows of one history as well."""
        lengths = np.minimum([len(history) for history in histories], self.spec.max_len) + 1
        order = np.lexsort((np.asarray(history_of), -lengths))
        chunks: list[list[int]] = []
        room, last = 0, -1
        for row in order.tolist():
            is_new = history_of[row] != last
            if not chunks or room < (0 if is_new else -SHARED_OVERDRAFT * self._chunk_positions):
                chunks.append([])
                room, is_new = self._chunk_positions, True
            sizes = self._plan(int(lengths[row])).entry_sizes
            entry = entry_block(refs[row].geometry, len(self._blocks))
            room -= sizes[entry] + (sizes[0] if is_new and entry > 0 else 0)
            chunks[-1].append(row)
            last = history_of[row]
        return chunks

    def _plan(self, length: int) -> DevicePlan:
        if length not in self._plans:
            self._plans[length] = _on_device(plan(self.spec, length), self._device)
        return self._plans[length]

    def _run_chunk(self, tokens: Tensor, lanes: Lanes) -> Tensor:
        """tokens int64 [histories, T] -> user vectors [rows, C] in the order of ``lanes.rows``."""
        length = tokens.shape[1]
        device_plan = self._plan(length)
        is_ragged = self.spec.padding == "exact" and bool((tokens == PAD).any())
        x: Tensor | None = None
        for stage, end in zip(lanes.stages, [*lanes.stages[1:], None], strict=True):
            if stage.select is not None:
                tokens = tokens.index_select(0, stage.select)
                x = None if x is None else x.index_select(0, stage.select)
            valid = (tokens != PAD).unsqueeze(2).float() if is_ragged else None  # [B, T, 1]
            if x is None:
                x = self._enter(tokens, valid, stage.groups, device_plan)
            for number in range(stage.block, end.block if end else stage.block):
                x = self._run_block(x, valid, number, device_plan, stage.groups)
        assert x is not None
        return self._pool(x, tokens)

    def _enter(
        self, tokens: Tensor, valid: Tensor | None, groups: list[Group], device_plan: DevicePlan
    ) -> Tensor:
        """Embedded rows [B, 1 + N, C] of the positions that the cone reads; entry 0 is zero."""
        start = tokens.shape[1] - 1 - int(device_plan.plan.inputs[0])  # the inputs are contiguous
        x = _with_zero_row(self._embed(tokens, groups)[:, start:])
        if valid is not None:
            x[:, 1:] *= valid[:, start:]
        return x

    def _embed(self, tokens: Tensor, groups: list[Group]) -> Tensor:
        x = functional.embedding(tokens, self._embedding)  # [B, T] -> [B, T, C]
        for group in groups:
            if group.geometry.has_cls:
                rows = slice(group.start, group.stop)
                own = group.tensors["patch.cls"][group.slots].unsqueeze(1)  # [b, C] -> [b, 1, C]
                x[rows] = torch.where((tokens[rows] == CLS).unsqueeze(2), own, x[rows])
        return x

    def _run_block(
        self,
        x: Tensor,
        valid: Tensor | None,
        number: int,
        device_plan: DevicePlan,
        groups: list[Group],
    ) -> Tensor:
        """x [B, 1 + N_in, C] -> [B, 1 + N_out, C]; entry 0 stays zero."""
        block = device_plan.plan.blocks[number]
        first_taps, second_taps = device_plan.taps[number]
        first, second = self._blocks[number]
        middle = self._conv(x, first_taps, block.first, first, Step(number, 0, groups))
        middle = _masked(middle, valid, block.first)
        out = self._conv(middle, second_taps, block.second, second, Step(number, 1, groups))
        out = _masked(out, valid, block.second)
        out[:, 1:] += x.index_select(1, device_plan.residuals[number])
        return out

    def _conv(
        self, x: Tensor, taps: Tensor, conv_plan: ConvPlan, conv: PackedConv, step: Step
    ) -> Tensor:
        """relu(LN(patched convolution)) of x [B, 1 + N_in, C] -> [B, 1 + N_out, C]."""
        rows, count, channels = len(x), len(conv_plan.outputs), self.spec.channels
        gathered = x.index_select(1, taps)  # [B, N_out·k, C]
        columns = gathered.view(rows * count, -1)  # [B·N_out, k·C]
        y = conv.linear(columns).view(rows, count, channels)
        source = gathered.view(rows, count, -1, channels)[:, :, conv_plan.centre]
        for group in step.groups:
            _graft(y, source, group, step)
        out = x.new_empty(rows, 1 + count, channels)
        out[:, 0] = 0
        self._normalize(y, conv, step, out[:, 1:])
        return out

    def _normalize(self, y: Tensor, conv: PackedConv, step: Step, out: Tensor) -> None:
        """relu(LN(y)) into out [B, N, C], with a row's own LayerNorm where its patch has one."""
        shape, eps = (self.spec.channels,), self.spec.layer_norm_eps
        own = [group for group in step.groups if _trains_norm(group.geometry, step)]
        if sum(group.stop - group.start for group in own) < len(y):
            normed = torch.layer_norm(y, shape, conv.norm_weight, conv.norm_bias, eps)
            torch.clamp_min(normed, 0, out=out)
        for group in own:
            rows, at = slice(group.start, group.stop), group.geometry.blocks.index(step.block)
            weight = group.weights("patch.norm_weight", at).unsqueeze(1)  # [b, 1, C]
            bias = group.weights("patch.norm_bias", at).unsqueeze(1)
            normed = torch.layer_norm(y[rows], shape, self._ones, self._zeros, eps)
            torch.addcmul(bias, normed, weight, out=out[rows]).relu_()

    def _pool(self, x: Tensor, tokens: Tensor) -> Tensor:
        """User vectors [B, C] of the top states x [B, 1 + N, C]."""
        last = x[:, -1]
        if self.spec.is_causal:
            return last
        if self.spec.padding == "embedded":
            return last + x[:, 1]
        first = (tokens != PAD).int().argmax(1)  # [B, T] -> [B]
        return last + x[torch.arange(len(x), device=x.device), 1 + first]


def _pack_block(block: torch.nn.Module) -> tuple[PackedConv, PackedConv]:
    assert isinstance(block, ResidualBlock)
    return _pack(block.conv1, block.norm1), _pack(block.conv2, block.norm2)


def _pack(conv: DilatedConv, norm: torch.nn.LayerNorm) -> PackedConv:
    weight = conv.weight.detach().transpose(1, 2).flatten(1)  # [C, C, k] -> [C, k·C]
    linear = packed_linear(weight, conv.bias.detach())
    return PackedConv(linear, norm.weight.detach(), norm.bias.detach())


def _on_device(cone: Plan, device: torch.device) -> DevicePlan:
    def indices(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array).reshape(-1)).to(device)

    return DevicePlan(
        cone,
        taps=tuple((indices(b.first.taps), indices(b.second.taps)) for b in cone.blocks),
        residuals=tuple(indices(b.residual + 1) for b in cone.blocks),
        entry_sizes=(len(cone.inputs), *(len(b.second.outputs) for b in cone.blocks)),
    )


def _numbered(histories: Sequence[Tokens], max_len: int) -> list[int]:
    """For each row the first row with the same history, as far as the network reads it."""
    first: dict[bytes, int] = {}
    keys = (np.asarray(history[-max_len:], dtype=np.int64).tobytes() for history in histories)
    return [first.setdefault(key, row) for row, key in enumerate(keys)]


def _with_zero_row(x: Tensor) -> Tensor:
    """[B, N, C] -> [B, 1 + N, C] with a zero row in front, for taps that reach outside."""
    return functional.pad(x, (0, 0, 1, 0))


def _masked(x: Tensor, valid: Tensor | None, conv_plan: ConvPlan) -> Tensor:
    """Zero the padded positions of x [B, 1 + N, C] in place."""
    if valid is not None:
        positions = valid.shape[1] - 1 - conv_plan.outputs  # offsets from the end -> columns
        x[:, 1:] *= valid[:, torch.from_numpy(positions).to(valid.device)]
    return x


def _graft(y: Tensor, source: Tensor, group: Group, step: Step) -> None:
    """Add each row's patch to y [B, N, C] in place, for the rows of one slab."""
    geometry = group.geometry
    index = geometry.conv_index(step.block, step.conv)
    if index is None:
        return
    rows = slice(group.start, group.stop)
    read = source[rows] if geometry.insertion == "parallel2" else y[rows]
    down, down_bias, up, up_bias = (
        group.weights(name, index)
        for name in ("patch.down", "patch.down_bias", "patch.up", "patch.up_bias")
    )  # [b, C, H], [b, H], [b, H, C], [b, C]
    hidden = bottleneck_hidden(read, down, down_bias)  # [b, N, H]
    y[rows].baddbmm_(hidden, up).add_(up_bias.unsqueeze(1))
    if geometry.has_inner_skip:
        y[rows] += read


def _trains_norm(geometry: PatchGeometry, step: Step) -> bool:
    return geometry.has_norms and step.conv == 1 and step.block in geometry.blocks
