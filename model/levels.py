"""The cone as lanes of any length share it: entries newest first, so a shorter lane has a prefix.

A *level* is a set of positions that convolutions read or compute. Its entries count back from the
last position; a lane of a length has those that lie within it, the first so many of the level.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from model.cone import ConvPlan, Positions, plan
from model.spec import BackboneSpec

Indices = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class LevelConv:
    """A convolution from one level to another, both by number.

    ``taps`` [N, k] index the source's entries, -1 where a tap reads nothing; ``centre`` is the tap
    that reads the output's own position.
    """

    source: int
    target: int
    taps: Indices
    centre: int


@dataclass(frozen=True, slots=True)
class LevelBlock:
    """A residual block; ``residual`` [N_out] indexes the entries of its input."""

    first: LevelConv
    second: LevelConv
    residual: Indices


@dataclass(frozen=True, slots=True)
class Levels:
    """All levels of a backbone, level 0 being the embedded history.

    ``counts`` [levels, lengths] has the entries of a lane of each length, 0 … ``frame_len``;
    ``entering`` [N] the offsets of level 0, ascending.
    """

    counts: Indices
    entering: Indices
    blocks: tuple[LevelBlock, ...]


@cache
def levels(spec: BackboneSpec) -> Levels:
    """The levels of a backbone's cone over a full history."""
    cone = plan(spec, spec.frame_len)
    numbers: dict[bytes, int] = {}
    offsets: list[Positions] = []

    def number(positions: Positions) -> int:
        key = positions.tobytes()
        if key not in numbers:
            numbers[key] = len(offsets)
            offsets.append(positions[::-1])
        return numbers[key]

    below, blocks = cone.inputs, []
    source = number(below)
    for block in cone.blocks:
        middle, target = number(block.first.outputs), number(block.second.outputs)
        first = _conv(block.first, source, middle, len(below))
        second = _conv(block.second, middle, target, len(block.first.outputs))
        residual = (len(below) - 1 - block.residual)[::-1]
        blocks.append(LevelBlock(first, second, _indices(residual)))
        source, below = target, block.second.outputs
    lengths = np.arange(spec.frame_len + 1)
    counts = np.stack([np.searchsorted(ascending, lengths) for ascending in offsets])
    return Levels(_indices(counts), _indices(offsets[0]), tuple(blocks))


def _conv(conv: ConvPlan, source: int, target: int, inputs: int) -> LevelConv:
    """A plan's ranks count from the oldest, 0 for none; entries from the newest, -1 for none."""
    taps = np.where(conv.taps > 0, inputs - conv.taps, -1)[::-1]
    return LevelConv(source, target, _indices(taps), conv.centre)


def _indices(array: np.ndarray) -> Indices:
    return np.ascontiguousarray(array, dtype=np.int32)
