"""What the kernels of a chunk read of it: numbers in one buffer, so that one copy brings them.

A *shape* says which launches a chunk takes and how large they may become; chunks of one shape use
one layout, and so one captured graph. What changes from chunk to chunk is in the numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from model.lanes import Indices, Lanes, Stage
from model.levels import Levels
from model.slab import Slab
from model.spec import BackboneSpec, PatchGeometry

ALIGNED = 4
"""Every part of the buffer begins at a multiple of 16 bytes: kernels are compiled for that once."""

LENGTH_STEPS = 4
"""Shapes are told apart by rows, in powers of two, and by so many steps of their length."""


@dataclass(frozen=True, slots=True)
class StageShape:
    """A stage's first block and the slabs of its groups, each with its geometry and generation."""

    block: int
    slabs: tuple[tuple[int, int], ...]
    geometries: tuple[PatchGeometry, ...]


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """At most ``rows`` lanes, which together have no more entries than if all had ``length``."""

    rows: int
    length: int
    stages: tuple[StageShape, ...]


@dataclass(frozen=True, slots=True)
class StageParts:
    """Where a stage's numbers lie; a run is the lanes without a patch (the first) or a group's.

    ``bases`` [levels, rows + 1] and ``counts`` [levels, rows]: where a lane's entries begin, and
    how many it has. ``entries`` [rows]: where the stage before left them. ``slots`` [rows].
    ``bounds`` [runs, levels, 4]: first entry of a run and the one after its last; two are unused.
    """

    bases: slice
    counts: slice
    entries: slice
    slots: slice
    bounds: slice


@dataclass(frozen=True, slots=True)
class Parts:
    """Where a chunk's numbers lie: items of the first lanes one after the other, from ``starts``
    [rows + 1] on; ``places`` [rows] of the last lanes' user vectors, -1 for none."""

    items: slice
    starts: slice
    places: slice
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
    places = part(shape.rows)
    stages = tuple(
        StageParts(
            bases=part(level_count * padded(shape.rows + 1)),
            counts=part(level_count * padded(shape.rows)),
            entries=part(shape.rows),
            slots=part(shape.rows),
            bounds=part((1 + len(stage.slabs)) * level_count * ALIGNED),
        )
        for stage in shape.stages
    )
    return Parts(items, starts, places, stages, at)


def shape_of(lanes: Lanes, lengths: Indices, table: Levels, spec: BackboneSpec) -> ChunkShape:
    """The smallest shape that holds a chunk whose first lanes have framed ``lengths``."""
    rows = 1 << (max(len(lanes.rows), len(lanes.histories)) - 1).bit_length()
    totals = [table.counts[:, own].sum(1) for own in _stage_lengths(lanes.stages, lengths)]
    most = np.max(totals, axis=0)  # [levels]
    steps = range(1, LENGTH_STEPS + 1)
    caps = [-(-spec.frame_len * step // LENGTH_STEPS) for step in steps]
    length = next(cap for cap in caps if (most <= rows * table.counts[:, cap]).all())
    return ChunkShape(rows, length, tuple(_stage_shape(stage) for stage in lanes.stages))


def _stage_shape(stage: Stage) -> StageShape:
    return StageShape(
        stage.block,
        tuple((id(group.slab), group.slab.generation) for group in stage.groups),
        tuple(group.geometry for group in stage.groups),
    )


def _stage_lengths(stages: Iterable[Stage], lengths: Indices) -> Iterable[Indices]:
    for stage in stages:
        lengths = lengths if stage.select is None else lengths[stage.select]
        yield lengths


@dataclass(frozen=True, slots=True)
class ChunkNumbers:
    """A chunk: its lanes, their items (int32, oldest first), item counts, framed lengths, and the
    place of each row's user vector."""

    lanes: Lanes
    items: Indices
    item_counts: Indices
    lengths: Indices
    places: Indices


def fill(ints: Indices, parts: Parts, chunk: ChunkNumbers, table: Levels) -> None:
    """Write a chunk's numbers into its shape's buffer, int32 [size]."""
    ints[parts.items][: len(chunk.items)] = chunk.items
    starts = ints[parts.starts]
    starts[0] = 0
    np.cumsum(chunk.item_counts, out=starts[1 : len(chunk.item_counts) + 1])
    places = ints[parts.places]
    places[: len(chunk.places)], places[len(chunk.places) :] = chunk.places, -1
    before: Indices | None = None
    lengths = _stage_lengths(chunk.lanes.stages, chunk.lengths)
    for stage, own, part in zip(chunk.lanes.stages, lengths, parts.stages, strict=True):
        before = _fill_stage(ints, part, stage, table.counts[:, own], table, before)


def _fill_stage(
    ints: Indices,
    part: StageParts,
    stage: Stage,
    counts: Indices,
    table: Levels,
    before: Indices | None,
) -> Indices:
    """Write a stage whose lanes have ``counts`` [levels, lanes]; its bases [levels, lanes + 1]."""
    level_count, lanes = counts.shape
    bases = np.zeros((level_count, lanes + 1), dtype=np.int32)
    np.cumsum(counts, axis=1, out=bases[:, 1:])
    ints[part.bases].reshape(level_count, -1)[:, : lanes + 1] = bases
    into = ints[part.counts].reshape(level_count, -1)
    into[:, :lanes], into[:, lanes:] = counts, 0
    entry = entry_level(table, stage.block)
    came = bases[entry, :-1] if before is None else before[entry, :-1]
    ints[part.entries][:lanes] = came if stage.select is None else came[stage.select]
    bounds = ints[part.bounds].reshape(-1, level_count, ALIGNED)
    first = stage.groups[0].start if stage.groups else lanes
    bounds[0, :, 0], bounds[0, :, 1] = 0, bases[:, first]
    for run, group in enumerate(stage.groups, start=1):
        ints[part.slots][group.start : group.stop] = group.slots
        bounds[run, :, 0], bounds[run, :, 1] = bases[:, group.start], bases[:, group.stop]
    return bases


def entry_level(table: Levels, block: int) -> int:
    """The level of a block's input; above the last block, of what comes out."""
    if block == len(table.blocks):
        return table.blocks[-1].second.target
    return table.blocks[block].first.source


def slabs_of(lanes: Lanes) -> list[Slab]:
    """The slabs that a chunk's groups read."""
    return list({id(g.slab): g.slab for stage in lanes.stages for g in stage.groups}.values())
