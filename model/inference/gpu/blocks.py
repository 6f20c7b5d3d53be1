"""A backbone's residual blocks on an NVIDIA device: two Triton launches per run of sequences."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peterrec.model.inference.gpu.conv_kernel import ConvWeights, Entries, PatchOperands, fused_conv
from peterrec.model.inference.gpu.layout import LevelConv, Levels
from peterrec.model.network.backbone import Backbone, DilatedConv, ResidualBlock
from peterrec.model.spec import PatchGeometry


@dataclass(frozen=True, slots=True)
class RunPatch:
    """A pool's tensors and each sequence's slot, int32 [rows]."""

    geometry: PatchGeometry
    tensors: Mapping[str, Tensor]
    slots: Tensor


@dataclass(frozen=True, slots=True)
class SequenceRun:
    """Sequences of one segment that run in the same launches: int32 tensors on the device.

    ``sequence_of`` and ``per_sequence`` are by level: the sequence of an entry, and how many
    entries a sequence has on average at most. offsets [levels, rows + 1] and counts [levels, rows]
    belong to the sequences, bounds [levels, 4] to the run.
    """

    rows: int
    sequence_of: list[Tensor]
    per_sequence: list[int]
    offsets: Tensor
    counts: Tensor
    bounds: Tensor
    patch: RunPatch | None


@dataclass(frozen=True, slots=True)
class States:
    """A block's input, the activations between its convolutions, and its output, each [entries, C].

    ``offsets`` [rows] say where the entries of each sequence begin in the input.
    """

    x: Tensor
    middle: Tensor
    out: Tensor
    offsets: Tensor


class FusedBlocks:
    """A backbone's blocks in the storage type of the forward, on the backbone's device."""

    def __init__(self, backbone: Backbone, table: Levels, dtype: torch.dtype) -> None:
        eps = backbone.spec.layer_norm_eps
        device = backbone.embedding.weight.device
        self._table = table
        self._convs = [_pack_block(block, eps, dtype) for block in backbone.blocks]
        self._taps = [
            (_on(device, block.first.taps), _on(device, block.second.taps))
            for block in table.blocks
        ]
        self._residuals = [_on(device, block.residual) for block in table.blocks]

    def run(self, states: States, number: int, run: SequenceRun) -> None:
        """Compute the run's entries of block ``number``'s output."""
        block = self._table.blocks[number]
        taps, convs = self._taps[number], self._convs[number]
        first = self._entries(run, block.first, taps[0], states.offsets)
        fused_conv(
            states.x, states.middle, states.x, first, convs[0], _operands(run.patch, number, 0)
        )
        middle_offsets = run.offsets[block.second.source]
        second = self._entries(
            run, block.second, taps[1], middle_offsets, states.offsets, self._residuals[number]
        )
        fused_conv(
            states.middle, states.out, states.x, second, convs[1], _operands(run.patch, number, 1)
        )

    def _entries(
        self,
        run: SequenceRun,
        conv: LevelConv,
        taps: Tensor,
        in_offsets: Tensor,
        skip_offsets: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Entries:
        return Entries(
            sequence_of=run.sequence_of[conv.target],
            bounds=run.bounds[conv.target],
            capacity=run.rows * run.per_sequence[conv.target],
            per_sequence=run.per_sequence[conv.target],
            out_offsets=run.offsets[conv.target],
            in_offsets=in_offsets,
            in_counts=run.counts[conv.source],
            taps=taps,
            centre=conv.centre,
            skip_offsets=skip_offsets,
            residual=residual,
        )


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(device)


def _operands(patch: RunPatch | None, block: int, conv: int) -> PatchOperands | None:
    if patch is None:
        return None
    geometry, tensors = patch.geometry, patch.tensors
    index = geometry.conv_index(block, conv)
    norm_index = geometry.norm_index(block, conv)
    if index is None:
        return None
    return PatchOperands(
        mode=geometry.kernel_mode,
        slots=patch.slots,
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
