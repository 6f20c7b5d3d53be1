"""The top blocks over rows of several tasks, each task's rows through its own patch.

Every row has the positions of the last position's cone (``model/network/receptive_field.py``),
those that its history
lacks as zeros, so rows of any length stand side by side.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.network.backbone import Backbone, DilatedConv, ResidualBlock
from peterrec.model.network.receptive_field import ConvPlan, plan
from peterrec.model.spec import CLS
from peterrec.model.training.finetune.frozen_trunk import TopStates
from peterrec.model.training.finetune.patch_stack import PatchStack
from peterrec.model.training.products import linear


@dataclass(frozen=True, slots=True)
class _Step:
    """A convolution's flattened taps [M·k] into the inputs behind a zero row, and its outputs."""

    taps: Tensor
    outputs: Tensor
    centre: int
    furthest: int


class GroupedBlocks:
    """The blocks from ``first`` up, or none; if patches bring their own [CLS], it must be 0."""

    def __init__(self, backbone: Backbone, first: int) -> None:
        blocks = plan(backbone.spec, backbone.spec.frame_len).blocks[first:]
        self._backbone = backbone
        device = backbone.embedding.weight.device
        self._blocks = [
            block for block in backbone.blocks[first:] if isinstance(block, ResidualBlock)
        ]
        self._cls = backbone.embedding.weight[CLS].detach()
        self._kernel_size = backbone.spec.kernel_size
        self._steps = [
            (_step(block.first, device), _step(block.second, device)) for block in blocks
        ]
        among = [
            np.flatnonzero(np.isin(lowest.first.outputs, lowest.second.outputs))
            for lowest in blocks[:1]
        ]
        residuals = [*among, *(block.residual for block in blocks[1:])]
        self._residuals = [torch.from_numpy(places.copy()).to(device) for places in residuals]

    def user_vectors(self, states: TopStates, patches: PatchStack) -> Tensor:
        """User vectors [G·B, C] of the rows of G tasks, B each, one task after the other."""
        states = states if patches.cls is None else self._with_own_cls(states, patches.cls)
        x, shortest = states.source, int(states.lengths.min())
        for number, (block, steps) in enumerate(zip(self._blocks, self._steps, strict=True)):
            first, second = steps
            if number:
                gathered = self._gathered(x, first)  # [R, M, k, C]
                source, conv = gathered[:, :, first.centre], _product(gathered, block.conv1)
            else:
                source, conv = states.source, states.conv
            middle = functional.relu(block.norm1(patches.join(conv, source, block.block, 0)))
            middle = _masked(middle, states.lengths, shortest, first)
            gathered = self._gathered(middle, second)
            out = _product(gathered, block.conv2)
            out = patches.join(out, gathered[:, :, second.centre], block.block, 1)
            out = functional.relu(patches.second_norm(out, block.norm2, block.block))
            out = _masked(out, states.lengths, shortest, second)
            x = out + x.index_select(1, self._residuals[number])
        users, reader = x[:, -1], patches.reader
        return users if reader is None else users + self._backbone.read_items(states.tokens, reader)

    def _with_own_cls(self, states: TopStates, cls: Tensor) -> TopStates:
        """Embedded rows whose last position holds their task's [CLS] [G, C], not the shared one.

        Only the last output of a causal convolution reads it, through the last tap.
        """
        change = (cls - self._cls).repeat_interleave(len(states.source) // len(cls), 0)  # [G·B, C]
        last = torch.zeros_like(states.source[:1, :, :1])  # [1, M, 1]
        last[:, -1] = 1
        of_conv = linear(change, self._blocks[0].conv1.weight[:, :, -1])  # [G·B, C]
        return TopStates(
            states.conv + last * of_conv.unsqueeze(1),
            states.source + last * change.unsqueeze(1),
            states.lengths,
            states.tokens,
        )

    def _gathered(self, x: Tensor, step: _Step) -> Tensor:
        """What the taps read: x [R, N, C] -> [R, M, k, C]."""
        padded = functional.pad(x, (0, 0, 1, 0))  # entry 0 is the zero row that taps outside read
        read = padded.index_select(1, step.taps)  # [R, 1 + N, C] -> [R, M·k, C]
        return read.view(len(x), -1, self._kernel_size, x.shape[2])


def _product(gathered: Tensor, conv: DilatedConv) -> Tensor:
    weight = conv.weight.permute(0, 2, 1).flatten(1)  # [C, C, k] -> [C, k·C]
    return linear(gathered.flatten(2), weight, conv.bias)  # [R, M, k·C] -> [R, M, C]


def _masked(x: Tensor, lengths: Tensor, shortest: int, step: _Step) -> Tensor:
    """Zero where a row has no position: x [R, M, C], lengths [R]."""
    if shortest > step.furthest:
        return x
    return x * (step.outputs < lengths.unsqueeze(1)).unsqueeze(2)


def _step(conv: ConvPlan, device: torch.device) -> _Step:
    return _Step(
        torch.from_numpy(conv.taps.flatten()).to(device),
        torch.from_numpy(conv.outputs.copy()).to(device),
        conv.centre,
        int(conv.outputs[0]),
    )
