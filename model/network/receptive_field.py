"""The receptive field of a user vector: the positions that each convolution has to compute.

Only the last position of a causal network is read. Going down from it, each convolution needs only
the positions that the taps above it reach. Positions are counted back from the end (0 = last), so
one plan serves all rows of one length.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from peterrec.model.spec import BackboneSpec

Positions = np.ndarray
"""Positions counted back from the last one, descending: oldest first, as rows are stored."""


@dataclass(frozen=True, slots=True)
class ConvPlan:
    """One convolution: its ``outputs`` and where its taps read the previous positions.

    ``taps`` int64 [N, k] index a buffer whose entry 0 is a zero row and entry 1 + i is the i-th of
    the input positions. ``centre`` is the tap that reads the output's own position.
    """

    outputs: Positions
    taps: np.ndarray
    centre: int


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """A residual block: two convolutions, and the places of its outputs among its inputs."""

    first: ConvPlan
    second: ConvPlan
    residual: np.ndarray


@dataclass(frozen=True, slots=True)
class Plan:
    """The forward of rows of one length: input positions, and blocks bottom to top.

    ``conv_positions`` is the number of outputs of all convolutions.
    """

    inputs: Positions
    blocks: tuple[BlockPlan, ...]
    conv_positions: int


@cache
def plan(spec: BackboneSpec, length: int) -> Plan:
    """Plan the forward of rows of ``length`` tokens; non-causal rows keep all positions."""
    every = np.arange(length)[::-1]
    wanted = np.array([0]) if spec.is_causal else every
    blocks: list[BlockPlan] = []
    for dilation in reversed(spec.dilations):
        second_inputs = _reached(spec, wanted, 2 * dilation, length)
        first_inputs = _reached(spec, second_inputs, dilation, length)
        blocks.append(
            BlockPlan(
                first=_conv(spec, second_inputs, first_inputs, dilation),
                second=_conv(spec, wanted, second_inputs, 2 * dilation),
                residual=_ranks(wanted, first_inputs) - 1,
            )
        )
        wanted = first_inputs
    return Plan(
        inputs=wanted,
        blocks=tuple(reversed(blocks)),
        conv_positions=sum(len(b.first.outputs) + len(b.second.outputs) for b in blocks),
    )


def read_items(spec: BackboneSpec) -> int:
    """The number of newest items that a user vector without a reader depends on."""
    if not spec.is_causal:
        return spec.max_len
    return int(plan(spec, spec.max_input_len).inputs[0])  # [CLS] is at 0, so this many are items


def tap_shifts(spec: BackboneSpec, dilation: int) -> np.ndarray:
    """Positions int64 [k] that each tap reads back; negative is forward (non-causal only)."""
    taps = np.arange(spec.kernel_size)
    reach = spec.kernel_size - 1 if spec.is_causal else (spec.kernel_size - 1) // 2
    return (reach - taps) * dilation


def _reached(spec: BackboneSpec, outputs: Positions, dilation: int, length: int) -> Positions:
    offsets = np.unique(outputs[:, None] + tap_shifts(spec, dilation))  # ascending
    return offsets[(offsets >= 0) & (offsets < length)][::-1]


def _conv(spec: BackboneSpec, outputs: Positions, inputs: Positions, dilation: int) -> ConvPlan:
    shifts = tap_shifts(spec, dilation)
    sources = outputs[:, None] + shifts  # [N, k]
    return ConvPlan(outputs, _ranks(sources, inputs), centre=int(np.flatnonzero(shifts == 0)[0]))


def _ranks(offsets: np.ndarray, among: Positions) -> np.ndarray:
    """1 + the index of each position in the descending ``among``; 0 where it is missing."""
    ascending = among[::-1]
    at = np.searchsorted(ascending, offsets).clip(max=len(ascending) - 1)
    return np.where(ascending[at] == offsets, len(ascending) - at, 0)
