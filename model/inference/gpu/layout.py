"""Levels of the receptive field, and the layout of a chunk's numbers in one buffer.

A *level* is a set of positions that convolutions read or compute. Its entries are numbered from the
newest position back, so a shorter sequence has the first entries of the level.

The kernels of a chunk read its numbers (offsets, counts, slots, items) from one buffer, which is
filled by one copy. A ``GraphKey`` says which launches a chunk takes and how large they may become.
Chunks of one key have one layout and share a captured CUDA graph; only the numbers differ.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from peterrec.model.inference.batch_plan import Indices, Segment, Sequences
from peterrec.model.network.receptive_field import ConvPlan, Positions, plan
from peterrec.model.spec import BackboneSpec


@dataclass(frozen=True, slots=True)
class LevelConv:
    """A convolution between two levels, given by number.

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

    ``counts`` [levels, lengths] has the entries of a sequence of each length up to the longest;
    ``entering`` [N] has the positions of level 0, ascending.
    """

    counts: Indices
    entering: Indices
    blocks: tuple[LevelBlock, ...]


@cache
def levels(spec: BackboneSpec) -> Levels:
    """The levels of a backbone's receptive field over a full history."""
    needed = plan(spec, spec.max_input_len)
    numbers: dict[bytes, int] = {}
    members: list[Positions] = []

    def number(positions: Positions) -> int:
        key = positions.tobytes()
        if key not in numbers:
            numbers[key] = len(members)
            members.append(positions[::-1])
        return numbers[key]

    below, blocks = needed.inputs, []
    source = number(below)
    for block in needed.blocks:
        middle, target = number(block.first.outputs), number(block.second.outputs)
        first = _conv(block.first, source, middle, len(below))
        second = _conv(block.second, middle, target, len(block.first.outputs))
        residual = (len(below) - 1 - block.residual)[::-1]
        blocks.append(LevelBlock(first, second, _indices(residual)))
        source, below = target, block.second.outputs
    lengths = np.arange(spec.max_input_len + 1)
    counts = np.stack([np.searchsorted(ascending, lengths) for ascending in members])
    return Levels(_indices(counts), _indices(members[0]), tuple(blocks))


def _conv(conv: ConvPlan, source: int, target: int, inputs: int) -> LevelConv:
    """Renumber taps: a plan counts from the oldest with 0 for none, a level from the newest, -1."""
    taps = np.where(conv.taps > 0, inputs - conv.taps, -1)[::-1]
    return LevelConv(source, target, _indices(taps), conv.centre)


def _indices(array: np.ndarray) -> Indices:
    return np.ascontiguousarray(array, dtype=np.int32)


ALIGNED = 4
"""Numbers between starts of parts: multiples of 16 bytes, so one compiled kernel serves all."""

LENGTH_STEPS = 4
"""Keys differ by rows, in powers of two, and by length, in this many steps up to the longest."""


@dataclass(frozen=True, slots=True)
class SegmentKey:
    """A segment's first block, whether some sequences carry no patch, and its groups' pools.

    Pools are given by identity and generation.
    """

    block: int
    has_trunk: bool
    pools: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class GraphKey:
    """Up to ``rows`` sequences with no more entries in all than if each had ``length``."""

    rows: int
    length: int
    segments: tuple[SegmentKey, ...]


@dataclass(frozen=True, slots=True)
class SegmentParts:
    """Places of a segment's numbers in the buffer.

    ``offsets`` [levels, rows + 1] and ``counts`` [levels, rows]: where entries of a sequence begin,
    and how many it has. ``entries`` [rows]: where the segment before left them. ``slots`` [rows].
    ``bounds`` [runs, levels, 4]: first entry of a run and the one after its last; first sequence of
    the run and the one after its last. The first run has the sequences without a patch, each
    following one those of a group.
    """

    offsets: slice
    counts: slice
    entries: slice
    slots: slice
    bounds: slice


@dataclass(frozen=True, slots=True)
class Parts:
    """Places of a chunk's numbers in the buffer.

    ``items`` of the sequences that begin, one history after the other, at ``item_offsets``
    [rows + 1]. ``places`` int64 [rows]: the places in the batch of the sequences that end, which
    are the chunk's rows. ``origins`` [rows]: the sequence at the start that each comes from.
    """

    items: slice
    item_offsets: slice
    places: slice
    origins: slice
    segments: tuple[SegmentParts, ...]
    size: int


def padded(size: int) -> int:
    """Round up to a multiple of ``ALIGNED``."""
    return -(-size // ALIGNED) * ALIGNED


def lay_out(key: GraphKey, spec: BackboneSpec, level_count: int) -> Parts:
    """Lay out the buffer of a key."""
    at = 0

    def part(size: int) -> slice:
        nonlocal at
        start, at = at, at + padded(size)
        return slice(start, at)

    items, item_offsets = part(key.rows * spec.max_len), part(key.rows + 1)
    places, origins = part(2 * key.rows), part(key.rows)
    segments = tuple(
        SegmentParts(
            offsets=part(level_count * padded(key.rows + 1)),
            counts=part(level_count * padded(key.rows)),
            entries=part(key.rows),
            slots=part(key.rows),
            bounds=part((1 + len(segment.pools)) * level_count * ALIGNED),
        )
        for segment in key.segments
    )
    return Parts(items, item_offsets, places, origins, segments, at)


@dataclass(frozen=True, slots=True)
class ChunkNumbers:
    """A chunk: its sequences, and the items of those that begin, oldest first.

    ``item_counts`` is the number of items of each. By segment, ``counts`` [levels, sequences] is
    the number of entries of each sequence, ``offsets`` [levels, sequences + 1] where they begin.
    """

    sequences: Sequences
    items: Indices
    item_counts: Indices
    counts: list[Indices]
    offsets: list[Indices]


def count_entries(sequences: Sequences, lengths: Indices, table: Levels) -> list[Indices]:
    """Count entries [levels, sequences] by segment; ``lengths`` are those of the inputs."""
    counts = [table.counts.take(lengths, axis=1)]
    for segment in sequences.segments[1:]:
        before, gather = counts[-1], segment.gather
        counts.append(before if gather is None else before.take(gather, axis=1))
    return counts


def offsets_of(counts: Indices) -> Indices:
    """Exclusive prefix sums of counts [levels, sequences], with the total as the last column."""
    offsets = np.zeros((len(counts), counts.shape[1] + 1), dtype=np.int32)
    counts.cumsum(axis=1, out=offsets[:, 1:])
    return offsets


def length_caps(table: Levels) -> list[int]:
    """Lengths of inputs up to which chunks share a key, ascending."""
    longest = table.counts.shape[1] - 1
    return [-(-longest * step // LENGTH_STEPS) for step in range(1, LENGTH_STEPS + 1)]


def graph_key(chunk: ChunkNumbers, table: Levels) -> GraphKey:
    """The smallest key that holds a chunk."""
    rows = 1 << (max(len(chunk.sequences.rows), len(chunk.item_counts)) - 1).bit_length()
    most = chunk.offsets[0][:, -1]  # [levels]
    for offsets in chunk.offsets[1:]:
        most = np.maximum(most, offsets[:, -1])
    caps = length_caps(table)
    holds = (most[:, None] <= rows * table.counts.take(caps, axis=1)).all(axis=0)  # [caps]
    return GraphKey(
        rows,
        caps[holds.argmax()],
        tuple(_segment_key(segment) for segment in chunk.sequences.segments),
    )


def _segment_key(segment: Segment) -> SegmentKey:
    pools = tuple((id(group.pool), group.pool.generation) for group in segment.groups)
    return SegmentKey(segment.block, not segment.groups or segment.groups[0].start > 0, pools)


def fill(ints: Indices, parts: Parts, chunk: ChunkNumbers, table: Levels) -> None:
    """Write a chunk's numbers into its key's buffer, int32 [size]."""
    ints[parts.items][: len(chunk.items)] = chunk.items
    item_offsets = ints[parts.item_offsets]
    item_offsets[0] = 0
    chunk.item_counts.cumsum(out=item_offsets[1 : len(chunk.item_counts) + 1])
    ints[parts.places].view(np.int64)[: len(chunk.sequences.rows)] = chunk.sequences.rows
    if any(group.geometry.queries for group in chunk.sequences.segments[-1].groups):
        ints[parts.origins][: len(chunk.sequences.rows)] = _origins(chunk)
    before = chunk.offsets[0]
    for number, (segment, part) in enumerate(
        zip(chunk.sequences.segments, parts.segments, strict=True)
    ):
        came = before[entry_level(table, segment.block), :-1]
        came = came if segment.gather is None else came[segment.gather]
        ints[part.entries][: len(came)] = came
        before = chunk.offsets[number]
        _fill_segment(ints, part, segment, chunk.counts[number], before)


def _origins(chunk: ChunkNumbers) -> Indices:
    """For each row, the sequence at the start whose items are the row's history."""
    origins = np.arange(len(chunk.item_counts), dtype=np.int32)
    for segment in chunk.sequences.segments[1:]:
        origins = origins if segment.gather is None else origins[segment.gather]
    return origins


def _fill_segment(
    ints: Indices, part: SegmentParts, segment: Segment, counts: Indices, offsets: Indices
) -> None:
    level_count, sequences = counts.shape
    ints[part.offsets].reshape(level_count, -1)[:, : sequences + 1] = offsets
    into = ints[part.counts].reshape(level_count, -1)
    into[:, :sequences], into[:, sequences:] = counts, 0
    bounds = ints[part.bounds].reshape(-1, level_count, ALIGNED)
    first = segment.groups[0].start if segment.groups else sequences
    bounds[0, :, 0], bounds[0, :, 1] = 0, offsets[:, first]
    for run, group in enumerate(segment.groups, start=1):
        ints[part.slots][group.start : group.stop] = group.slots
        bounds[run, :, 0], bounds[run, :, 1] = offsets[:, group.start], offsets[:, group.stop]
        bounds[run, :, 2], bounds[run, :, 3] = group.start, group.stop


def entry_level(table: Levels, block: int) -> int:
    """The level of a block's input, or of the output if ``block`` is one past the last."""
    if block == len(table.blocks):
        return table.blocks[-1].second.target
    return table.blocks[block].first.source
