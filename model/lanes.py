"""Which rows of a chunk run together where: one lane per history until the tasks part.

Below the first block that a patch touches, a row computes what every row of the same history
computes. So a chunk starts with one lane per distinct history, and rows branch off at the block
where their patch begins: a *stage* is a stretch of blocks between two such points.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.slab import Slab
from model.spec import PatchGeometry

Indices = npt.NDArray[np.int32]

SHARED_OVERDRAFT = 3
"""So many chunks' worth of rows of one history may join one chunk, so that its trunk runs once."""


class SlotRef(NamedTuple):
    """Where a row's patch lies; slabs hold the tensors of ``PatchGeometry.shapes`` by name."""

    geometry: PatchGeometry
    slab: Slab
    slot: int


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring lanes [start, stop) whose patches lie in one slab, at ``slots``."""

    start: int
    stop: int
    geometry: PatchGeometry
    slab: Slab
    slots: Indices


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks from ``block`` on. ``select``: each lane's lane in the stage before; None if same.

    ``joined`` has the lanes of the stage before that rows branch off from, by their histories.
    """

    block: int
    select: Indices | None
    groups: list[Group]
    joined: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lanes:
    """A chunk: the histories of its first lanes, its stages, and its rows as the last lanes."""

    histories: list[int]
    stages: list[Stage]
    rows: list[int]


def entry_block(geometry: PatchGeometry, block_count: int) -> int:
    """The first block whose output depends on the patch; a patch's own [CLS] enters below it."""
    if geometry.has_cls:
        return 0
    return geometry.blocks[0] if geometry.blocks else block_count


def number_histories(newest: Sequence[Indices]) -> tuple[list[bytes], list[int]]:
    """A key for each row's history, and the first row that has the same one."""
    keys = [history.tobytes() for history in newest]
    first: dict[bytes, int] = {}
    return keys, [first.setdefault(key, row) for row, key in enumerate(keys)]


def plan_lanes(
    rows: Iterable[int], history_of: Sequence[int], refs: Sequence[SlotRef], block_count: int
) -> Lanes:
    """Plan a chunk of ``rows``; row i has history ``history_of[i]`` and patch ``refs[i]``."""
    rows = list(rows)
    own = [refs[row] for row in rows]
    if len({ref.slab for ref in own}) == 1 and entry_block(own[0].geometry, block_count) == 0:
        histories = [history_of[row] for row in rows]
        return Lanes(histories, [Stage(0, None, _groups([rows], 0, refs))], rows)
    by_slab: defaultdict[int, list[int]] = defaultdict(list)
    for row, ref in zip(rows, own, strict=True):
        by_slab[id(ref.slab)].append(row)
    entries = {
        slab: entry_block(refs[members[0]].geometry, block_count)
        for slab, members in by_slab.items()
    }
    slabs = sorted(by_slab, key=entries.__getitem__)
    ordered = [row for slab in slabs for row in by_slab[slab]]
    branched = sum(len(by_slab[slab]) for slab in slabs if entries[slab] == 0)
    trunk = list(dict.fromkeys(history_of[row] for row in ordered[branched:]))
    histories = [*trunk, *(history_of[row] for row in ordered[:branched])]
    groups = _groups([by_slab[slab] for slab in slabs if entries[slab] == 0], len(trunk), refs)
    stages = [Stage(0, None, groups)]  # its lanes: one per trunk history, then the branched rows
    for block in sorted({*entries.values()} - {0}):
        begun = [slab for slab in slabs if entries[slab] <= block]
        until = sum(len(by_slab[slab]) for slab in begun)
        still = list(dict.fromkeys(history_of[row] for row in ordered[until:]))
        lane_of = {history: lane for lane, history in enumerate(trunk)}
        joined = {history_of[row]: lane_of[history_of[row]] for row in ordered[branched:until]}
        select = [lane_of[history] for history in still]
        select += range(len(trunk), len(trunk) + branched)
        select += [joined[history_of[row]] for row in ordered[branched:until]]
        groups = _groups([by_slab[slab] for slab in begun], len(still), refs)
        is_same = select == list(range(len(trunk) + branched))
        stages.append(Stage(block, None if is_same else _indices(select), groups, joined))
        trunk, branched = still, until
    return Lanes(histories, stages, ordered)


def resumed_lanes(rows: Sequence[int], refs: Sequence[SlotRef], block: int) -> Lanes:
    """Rows that all go on from known states at ``block``: each row is a lane of its own."""
    by_slab: dict[int, list[int]] = {}
    for row in rows:
        by_slab.setdefault(id(refs[row].slab), []).append(row)
    ordered = [row for members in by_slab.values() for row in members]
    groups = _groups(list(by_slab.values()), 0, refs)
    return Lanes(ordered, [Stage(block, None, groups)], ordered)


def _groups(members: Sequence[list[int]], start: int, refs: Sequence[SlotRef]) -> list[Group]:
    groups: list[Group] = []
    for rows in members:
        ref, stop = refs[rows[0]], start + len(rows)
        slots = _indices([refs[row].slot for row in rows])
        groups.append(Group(start, stop, ref.geometry, ref.slab, slots))
        start = stop
    return groups


def _indices(numbers: list[int]) -> Indices:
    return np.array(numbers, dtype=np.int32)
