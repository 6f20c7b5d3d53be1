"""A cone plan with its indices as tensors on the device."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.cone import ConvPlan, Plan


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
            _conv(block.first, device),
            _conv(block.second, device),
            _indices(block.residual + 1, device),
        )
        for block in cone.blocks
    )
    sizes = (len(cone.inputs), *(len(block.second.outputs) for block in cone.blocks))
    return DevicePlan(_indices(cone.inputs, device), blocks, sizes)


def _conv(conv: ConvPlan, device: torch.device) -> DeviceConv:
    return DeviceConv(_indices(conv.taps, device), conv.centre, _indices(conv.outputs, device))


def _indices(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32)).to(device)
