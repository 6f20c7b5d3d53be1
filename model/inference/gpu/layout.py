"""Receptive fields of sequences of any length: entries newest first, a shorter one has a prefix.

A *level* is a set of positions that convolutions read or compute. Its entries count back from the
last position; a sequence of a length has those that lie within it, the first so many of the level.

What the kernels of a chunk read of it: numbers in one buffer, so that one copy brings them.

A *shape* says which launches a chunk takes and how large they may become; chunks of one shape use
one layout, and so one captured graph. What changes from chunk to chunk is in the numbers.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from peterrec.model.inference.batch_plan import Indices, Sequences, Stage
from peterrec.model.network.receptive_field import ConvPlan, Positions, plan
from peterrec.model.spec import BackboneSpec


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

    ``counts`` [levels, lengths] has the entries of a sequence of each length, 0 … ``frame_len``;
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


ALIGNED = 4
"""Every part of the buffer begins at a multiple of 16 bytes: kernels are compiled for that once."""

LENGTH_STEPS = 4
"""Shapes are told apart by rows, in powers of two, and by so many steps of their length."""


@dataclass(frozen=True, slots=True)
class StageShape:
    """A stage's first block, whether some sequences carry no patch, and the pools of its groups, by
    identity and generation."""

    block: int
    has_trunk: bool
    pools: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """At most ``rows`` sequences with no more entries in all than if each had ``length``."""

    rows: int
    length: int
    stages: tuple[StageShape, ...]


@dataclass(frozen=True, slots=True)
class StageParts:
    """Where a stage's numbers lie; a run is the sequences without a patch (the first) or a group's.

    ``bases`` [levels, rows + 1] and ``counts`` [levels, rows]: where entries of a sequence begin,
    and how many it has. ``entries`` [rows]: where the stage before left them. ``slots`` [rows].
    ``bounds`` [runs, levels, 4]: first entry of a run and the one after its last; first sequence of
    the run and the one after its last.
    """

    bases: slice
    counts: slice
    entries: slice
    slots: slice
    bounds: slice


@dataclass(frozen=True, slots=True)
class Parts:
    """Where a chunk's numbers are: items of the first sequences one after the other, from
    ``starts`` [rows + 1] on; ``places`` int64 [rows] of the last sequences, which are the chunk's
    rows, in the batch; ``origins`` [rows], their sequences at the start."""

    items: slice
    starts: slice
    places: slice
    origins: slice
    stages: tuple[StageParts, ...]
    size: int


def padded(size: int) -> int:
    """The next multiple of ``ALIGNED``."""
    return -(-size // ALIGNED) * ALIGNED


def lay_out(shape: ChunkShape, spec: BackboneSpec, level_count: int) -> Parts:
    """The parts of the buffer of a shape."""
    at = 0

    def part(size: int) -> slice:
        nonlocal at
        start, at = at, at + padded(size)
        return slice(start, at)

    items, starts = part(shape.rows * spec.max_len), part(shape.rows + 1)
    places, origins = part(2 * shape.rows), part(shape.rows)
    stages = tuple(
        StageParts(
            bases=part(level_count * padded(shape.rows + 1)),
            counts=part(level_count * padded(shape.rows)),
            entries=part(shape.rows),
            slots=part(shape.rows),
            bounds=part((1 + len(stage.pools)) * level_count * ALIGNED),
        )
        for stage in shape.stages
    )
    return Parts(items, starts, places, origins, stages, at)


@dataclass(frozen=True, slots=True)
class ChunkNumbers:
    """A chunk: its sequences, the first ones' items (oldest first) and how many each has; by stage,
    the entries of each sequence and where they begin.

    counts [levels, sequences], bases [levels, sequences + 1].
    """

    sequences: Sequences
    items: Indices
    item_counts: Indices
    counts: list[Indices]
    bases: list[Indices]


def count_entries(sequences: Sequences, lengths: Indices, table: Levels) -> list[Indices]:
    """Entries [levels, sequences] by stage; the first sequences have framed ``lengths``."""
    counts = [table.counts.take(lengths, axis=1)]
    for stage in sequences.stages[1:]:
        before, select = counts[-1], stage.select
        counts.append(before if select is None else before.take(select, axis=1))
    return counts


def bases_of(counts: Indices) -> Indices:
    """Where each sequence's entries begin, and where the last one's end."""
    bases = np.zeros((len(counts), counts.shape[1] + 1), dtype=np.int32)
    counts.cumsum(axis=1, out=bases[:, 1:])
    return bases


def shape_of(chunk: ChunkNumbers, table: Levels) -> ChunkShape:
    """The smallest shape that holds a chunk."""
    rows = 1 << (max(len(chunk.sequences.rows), len(chunk.item_counts)) - 1).bit_length()
    most = chunk.bases[0][:, -1]  # [levels]
    for bases in chunk.bases[1:]:
        most = np.maximum(most, bases[:, -1])
    frame_len = table.counts.shape[1] - 1
    caps = [-(-frame_len * step // LENGTH_STEPS) for step in range(1, LENGTH_STEPS + 1)]
    holds = (most[:, None] <= rows * table.counts.take(caps, axis=1)).all(axis=0)  # [caps]
    return ChunkShape(
        rows, caps[holds.argmax()], tuple(_stage_shape(stage) for stage in chunk.sequences.stages)
    )


def _stage_shape(stage: Stage) -> StageShape:
    pools = tuple((id(group.pool), group.pool.generation) for group in stage.groups)
    return StageShape(stage.block, not stage.groups or stage.groups[0].start > 0, pools)


def fill(ints: Indices, parts: Parts, chunk: ChunkNumbers, table: Levels) -> None:
    """Write a chunk's numbers into its shape's buffer, int32 [size]."""
    ints[parts.items][: len(chunk.items)] = chunk.items
    starts = ints[parts.starts]
    starts[0] = 0
    chunk.item_counts.cumsum(out=starts[1 : len(chunk.item_counts) + 1])
    ints[parts.places].view(np.int64)[: len(chunk.sequences.rows)] = chunk.sequences.rows
    if any(group.geometry.queries for group in chunk.sequences.stages[-1].groups):
        ints[parts.origins][: len(chunk.sequences.rows)] = _origins(chunk)
    before = chunk.bases[0]
    for number, (stage, part) in enumerate(zip(chunk.sequences.stages, parts.stages, strict=True)):
        came = before[entry_level(table, stage.block), :-1]
        came = came if stage.select is None else came[stage.select]
        ints[part.entries][: len(came)] = came
        before = chunk.bases[number]
        _fill_stage(ints, part, stage, chunk.counts[number], before)


def _origins(chunk: ChunkNumbers) -> Indices:
    """Each row's sequence at the start, whose items are the row's history."""
    origins = np.arange(len(chunk.item_counts), dtype=np.int32)
    for stage in chunk.sequences.stages[1:]:
        origins = origins if stage.select is None else origins[stage.select]
    return origins


def _fill_stage(
    ints: Indices, part: StageParts, stage: Stage, counts: Indices, bases: Indices
) -> None:
    level_count, sequences = counts.shape
    ints[part.bases].reshape(level_count, -1)[:, : sequences + 1] = bases
    into = ints[part.counts].reshape(level_count, -1)
    into[:, :sequences], into[:, sequences:] = counts, 0
    bounds = ints[part.bounds].reshape(-1, level_count, ALIGNED)
    first = stage.groups[0].start if stage.groups else sequences
    bounds[0, :, 0], bounds[0, :, 1] = 0, bases[:, first]
    for run, group in enumerate(stage.groups, start=1):
        ints[part.slots][group.start : group.stop] = group.slots
        bounds[run, :, 0], bounds[run, :, 1] = bases[:, group.start], bases[:, group.stop]
        bounds[run, :, 2], bounds[run, :, 3] = group.start, group.stop


def entry_level(table: Levels, block: int) -> int:
    """The level of a block's input; above the last block, of what comes out."""
    if block == len(table.blocks):
        return table.blocks[-1].second.target
    return table.blocks[block].first.source
