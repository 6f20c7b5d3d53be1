"""A cone plan with its indices as tensors on the device.

User vectors with gradients, computed only where the last position looks
(``model/network/receptive_field.py``).

Where nothing but user vectors is read, the cone gives the full forward's gradients. With dilations
1, 4, 16, 32 and 200 items it computes 206 of 1,600 convolution positions: forward and backward of
a patch take 37 ms of processor time instead of 296 (128 rows, 64 channels, one thread). With eight
blocks of 1 and 4 and 50 items it is 88 ms instead of 104.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.network.backbone import Backbone, DilatedConv, ResidualBlock, pool
from peterrec.model.network.patch import PatchWeights
from peterrec.model.network.receptive_field import ConvPlan, Plan, plan
from peterrec.model.spec import PAD, BackboneSpec
from peterrec.model.training.products import linear


@dataclass(frozen=True, slots=True)
class DeviceConv:
    """``taps`` int32 [N, k] index the input's entries (0: the zero row), ``centre`` names the tap
    of the output's own position, ``offsets`` int32 [N] count back from the last position."""

    taps: Tensor
    centre: int
    offsets: Tensor


@dataclass(frozen=True, slots=True)
class DeviceBlock:
    """A residual block; ``residual`` int32 [N_out] indexes the block's input entries."""

    first: DeviceConv
    second: DeviceConv
    residual: Tensor


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """``inputs`` int32 count back from the last position; ``entry_sizes`` has the positions at each
    block's input."""

    inputs: Tensor
    blocks: tuple[DeviceBlock, ...]
    entry_sizes: tuple[int, ...]


def to_device(cone: Plan, device: torch.device) -> DevicePlan:
    """Copy a plan's indices to the device."""
    blocks = tuple(
        DeviceBlock(
            _conv_plan(block.first, device),
            _conv_plan(block.second, device),
            _indices(block.residual + 1, device),
        )
        for block in cone.blocks
    )
    sizes = (len(cone.inputs), *(len(block.second.outputs) for block in cone.blocks))
    return DevicePlan(_indices(cone.inputs, device), blocks, sizes)


def _conv_plan(conv: ConvPlan, device: torch.device) -> DeviceConv:
    return DeviceConv(_indices(conv.taps, device), conv.centre, _indices(conv.outputs, device))


def _indices(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32)).to(device)


def user_vectors(backbone: Backbone, tokens: Tensor, patch: PatchWeights | None) -> Tensor:
    """What ``Backbone.user_vectors`` gives, [B, C] of framed tokens [B, T]; differentiable."""
    if not backbone.spec.is_causal:  # a non-causal user vector looks everywhere
        return backbone.user_vectors(tokens, patch)
    *_, last = _cone_states(backbone, tokens, patch)
    reader = patch.reader if patch is not None else None
    return last if reader is None else last + backbone.read_items(tokens, reader)


def user_states(backbone: Backbone, tokens: Tensor) -> Tensor:
    """User vectors as they would be read below the first block and above each, [B, L + 1, C]."""
    states = _cone_states if backbone.spec.is_causal else _whole_states
    return torch.stack(list(states(backbone, tokens, None)), 1)


@torch.no_grad()
def first_conv(backbone: Backbone, tokens: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """A block's input and its first convolution's output where the cone needs the latter.

    Both [B, M, C], oldest position first; zero, or what no one reads, where a row has no item.
    """
    entering, cone = _device_plan(backbone.spec, tokens.shape[1], tokens.device)
    x, valid = _entered(backbone, tokens, entering, None)
    for number in range(block):
        x = _block(x, _residual_block(backbone, number), cone.blocks[number], valid, None)
    step = cone.blocks[block].first
    gathered = _gathered(x, step)  # [B, M, k, C]
    return gathered[:, :, step.centre], _product(gathered, _residual_block(backbone, block).conv1)


def _whole_states(
    backbone: Backbone, tokens: Tensor, patch: PatchWeights | None
) -> Iterator[Tensor]:
    is_exact = backbone.spec.padding == "exact"
    x, valid = backbone.embed(tokens, patch), None  # [B, T] -> [B, T, C]
    if is_exact:
        valid = (tokens != PAD).unsqueeze(2).to(x.dtype)  # [B, T, 1]
        x = x * valid
    yield pool(x, tokens, backbone.spec)
    for block in backbone.blocks:
        x = block(x, valid, patch)
        yield pool(x, tokens, backbone.spec)


def _cone_states(
    backbone: Backbone, tokens: Tensor, patch: PatchWeights | None
) -> Iterator[Tensor]:
    """States [B, C] of the last position, below the first block and above each."""
    entering, cone = _device_plan(backbone.spec, tokens.shape[1], tokens.device)
    x, valid = _entered(backbone, tokens, entering, patch)
    yield x[:, -1]
    for number, steps in enumerate(cone.blocks):
        x = _block(x, _residual_block(backbone, number), steps, valid, patch)
        yield x[:, -1]


def _entered(
    backbone: Backbone, tokens: Tensor, entering: Tensor, patch: PatchWeights | None
) -> tuple[Tensor, Tensor | None]:
    """Embedded positions [B, N, C], and what marks the real ones [B, T, 1] if not all are."""
    is_ragged = backbone.spec.padding == "exact" and bool((tokens == PAD).any())
    valid = (tokens != PAD).unsqueeze(2).float() if is_ragged else None  # [B, T, 1]
    x = backbone.embed(tokens.index_select(1, entering), patch)  # [B, T] -> [B, N, C]
    return x if valid is None else x * valid.index_select(1, entering), valid


def _residual_block(backbone: Backbone, number: int) -> ResidualBlock:
    block = backbone.blocks[number]
    assert isinstance(block, ResidualBlock)
    return block


def _block(
    x: Tensor,
    block: ResidualBlock,
    steps: DeviceBlock,
    valid: Tensor | None,
    patch: PatchWeights | None,
) -> Tensor:
    """A patched block's outputs [B, M, C] at the cone's positions."""
    middle = _conv(x, block.conv1, steps.first, (block.block, 0), patch)
    middle = _masked(functional.relu(block.norm1(middle)), valid, steps.first)
    out = _conv(middle, block.conv2, steps.second, (block.block, 1), patch)
    out = _masked(functional.relu(block.second_norm(out, patch)), valid, steps.second)
    return out + x.index_select(1, steps.residual - 1)  # the plan counts a zero row before x


@cache
def _device_plan(
    spec: BackboneSpec, length: int, device: torch.device
) -> tuple[Tensor, DevicePlan]:
    """The positions int64 [N] that enter, oldest first, and the plan above them."""
    cone = plan(spec, length)
    entering = torch.from_numpy(length - 1 - cone.inputs).to(device)
    return entering, to_device(cone, device)


def _conv(
    x: Tensor, conv: DilatedConv, step: DeviceConv, at: tuple[int, int], patch: PatchWeights | None
) -> Tensor:
    """A patched convolution of x [B, N, C] at the plan's outputs -> [B, M, C]."""
    gathered = _gathered(x, step)
    out = _product(gathered, conv)
    return out if patch is None else patch.join(out, gathered[:, :, step.centre], *at)


def _gathered(x: Tensor, step: DeviceConv) -> Tensor:
    """What the taps read of x [B, N, C] -> [B, M, k, C]."""
    padded = functional.pad(x, (0, 0, 1, 0))  # entry 0 is the zero row that taps outside read
    gathered = padded.index_select(1, step.taps.flatten())  # [M, k] -> [B, M·k, C]
    return gathered.view(len(x), *step.taps.shape, -1)


def _product(gathered: Tensor, conv: DilatedConv) -> Tensor:
    weight = conv.weight.permute(0, 2, 1).flatten(1)  # [C, C, k] -> [C, k·C]
    return linear(gathered.flatten(2), weight, conv.bias)  # [B, M, k·C] -> [B, M, C]


def _masked(x: Tensor, valid: Tensor | None, step: DeviceConv) -> Tensor:
    """Zero where the row has no item."""
    if valid is None:
        return x
    return x * valid.index_select(1, valid.shape[1] - 1 - step.offsets)
