"""Residual blocks as two Triton launches per group of rows: chosen on an NVIDIA device."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.backbone import Backbone, DilatedConv, ResidualBlock
from model.device_plan import DeviceBlock, DeviceConv
from model.kernels.fused_conv import (
    ConvWeights,
    PatchOperands,
    Positions,
    fused_conv,
)
from model.kernels.patch_modes import mode_of
from model.spec import PatchGeometry


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Neighbouring rows [start, stop) whose patches lie in one slab, at ``slots`` int32."""

    start: int
    stop: int
    geometry: PatchGeometry
    tensors: Mapping[str, Tensor]
    slots: Tensor


class FusedBlocks:
    """A backbone's blocks in the storage type of the forward."""

    def __init__(self, backbone: Backbone, dtype: torch.dtype) -> None:
        eps = backbone.spec.layer_norm_eps
        self._frame_len = backbone.spec.frame_len
        self._convs = [_pack_block(block, eps, dtype) for block in backbone.blocks]

    def run(
        self,
        x: Tensor,
        number: int,
        at: DeviceBlock,
        lengths: Tensor | None,
        groups: list[RowGroup],
    ) -> Tensor:
        """Block ``number`` of x [B, 1 + N_in, C] -> [B, 1 + N_out, C]; entry 0 stays zero.

        ``lengths`` int32 [B] are the rows' real tokens; None if no row is padded.
        """
        if lengths is None:
            lengths = torch.full((len(x),), self._frame_len, dtype=torch.int32, device=x.device)
        first, second = self._convs[number]
        middle = x.new_empty(len(x), 1 + len(at.first.offsets), x.shape[2])
        out = x.new_empty(len(x), 1 + len(at.second.offsets), x.shape[2])
        for start, stop, group in _ranges(len(x), groups):
            rows = slice(start, stop)
            own = lengths[rows]
            before = _positions(at.first, own)
            after = _positions(at.second, own, at.residual)
            patches = [_operands(group, number, conv) for conv in (0, 1)]
            fused_conv(x[rows], middle[rows], x[rows], before, first, patches[0])
            fused_conv(middle[rows], out[rows], x[rows], after, second, patches[1])
        return out


def _ranges(rows: int, groups: list[RowGroup]) -> list[tuple[int, int, RowGroup | None]]:
    """Rows by group; those before the first group carry no patch."""
    ranges: list[tuple[int, int, RowGroup | None]] = [(g.start, g.stop, g) for g in groups]
    first = groups[0].start if groups else rows
    return [(0, first, None), *ranges] if first else ranges


def _positions(at: DeviceConv, lengths: Tensor, residual: Tensor | None = None) -> Positions:
    return Positions(at.taps, at.centre, at.offsets, lengths, residual)


def _operands(group: RowGroup | None, block: int, conv: int) -> PatchOperands | None:
    if group is None:
        return None
    geometry, tensors = group.geometry, group.tensors
    index = geometry.conv_index(block, conv)
    norm_index = geometry.norm_index(block, conv)
    if index is None:
        return None
    return PatchOperands(
        mode=mode_of(geometry),
        slots=group.slots,
        index=index,
        down=tensors["patch.down"],
        down_bias=tensors["patch.down_bias"],
        up=tensors["patch.up"],
        up_bias=tensors["patch.up_bias"],
        norm_index=-1 if norm_index is None else norm_index,
        norm_weight=tensors.get("patch.norm_weight"),
        norm_bias=tensors.get("patch.norm_bias"),
    )


def _pack_block(
    block: torch.nn.Module, eps: float, dtype: torch.dtype
) -> tuple[ConvWeights, ConvWeights]:
    assert isinstance(block, ResidualBlock)
    return _pack(block.conv1, block.norm1, eps, dtype), _pack(block.conv2, block.norm2, eps, dtype)


def _pack(
    conv: DilatedConv, norm: torch.nn.LayerNorm, eps: float, dtype: torch.dtype
) -> ConvWeights:
    weight = conv.weight.detach().permute(2, 1, 0).flatten(0, 1)  # [C, C, k] -> [k·C, C]
    return ConvWeights(
        weight.to(dtype).contiguous(),
        conv.bias.detach().to(dtype),
        norm.weight.detach().float(),
        norm.bias.detach().float(),
        eps,
    )
