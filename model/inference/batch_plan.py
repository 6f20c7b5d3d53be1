"""Which rows of a chunk run together where: one sequence per history until the tasks part.

Below the first block that a patch touches, a row computes what every row of the same history
computes. So a chunk starts with one sequence per distinct history, and rows branch off at the block
where their patch begins: a *stage* is a stretch of blocks between two such points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.spec import PatchGeometry

Indices = npt.NDArray[np.int32]

SHARED_OVERDRAFT = 3
"""So many chunks' worth of rows of one history may join one chunk, so that its trunk runs once."""


class SlotRef(NamedTuple):
    """Where a row's patch lies; pools hold the tensors of ``PatchGeometry.shapes`` by name."""

    geometry: PatchGeometry
    pool: WeightPool
    slot: int


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool, and the first block whose output depends on its patches."""

    geometry: PatchGeometry
    pool: WeightPool
    entry: int


@dataclass(frozen=True, slots=True)
class RowPatches:
    """Where the patches of a batch's rows lie: each row's pool by number [B], and its slot [B].

    ``pools`` are those of the batch, in the order of the blocks where their patches begin.
    """

    pools: list[PoolUse]
    pool_of: Indices
    slots: Indices

    @classmethod
    def of(cls, refs: Sequence[SlotRef], block_count: int) -> "RowPatches":
        """Row i has ``refs[i]``: looked at once here, and never again row by row."""
        geometries, pools, slots_of = zip(*refs, strict=True) if refs else ((), (), ())
        found = dict(zip(pools, geometries, strict=True))
        uses = [PoolUse(own, pool, entry_block(own, block_count)) for pool, own in found.items()]
        slots = np.fromiter(slots_of, np.int32, len(refs))
        if len(uses) <= 1:
            return cls(uses, np.zeros(len(slots), dtype=np.int32), slots)
        uses.sort(key=lambda use: use.entry)
        number = {use.pool: at for at, use in enumerate(uses)}
        pool_of = np.fromiter(map(number.__getitem__, pools), np.int32, len(refs))
        return cls(uses, pool_of, slots)

    @property
    def leave_trunk(self) -> bool:
        """True if some patches begin above blocks that rows of one history could share."""
        return any(use.entry for use in self.pools)


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring sequences [start, stop) whose patches lie in one pool, at ``slots``."""

    start: int
    stop: int
    geometry: PatchGeometry
    pool: WeightPool
    slots: Indices


@dataclass(frozen=True, slots=True)
class Joined:
    """Rows that branch off at a stage: their histories, and their sequences in the stage before."""

    histories: Indices
    sequences: Indices


@dataclass(frozen=True, slots=True)
class Stage:
    """The blocks from ``block`` on.

    ``select`` has each sequence's sequence in the stage before, or is None if they are the same.
    """

    block: int
    select: Indices | None
    groups: list[Group]
    joined: Joined | None = None


@dataclass(frozen=True, slots=True)
class Sequences:
    """A chunk: the histories of its first sequences, its stages, and the rows of its last ones."""

    histories: Indices
    stages: list[Stage]
    rows: Indices


def entry_block(geometry: PatchGeometry, block_count: int) -> int:
    """The first block whose output depends on the patch; a patch's own [CLS] enters below it."""
    if geometry.has_cls:
        return 0
    return geometry.blocks[0] if geometry.blocks else block_count


def number_histories(newest: Sequence[Indices]) -> tuple[list[bytes], Indices]:
    """A key for each row's history, and the first row that has the same one [B]."""
    keys = [history.tobytes() for history in newest]
    first: dict[bytes, int] = {}
    history_of = [first.setdefault(key, row) for row, key in enumerate(keys)]
    return keys, np.array(history_of, dtype=np.int32)


def stable_order(numbers: Indices) -> Indices:
    """What sorts numbers of 0 or more: in a third of the time if they fit in two bytes."""
    keys = numbers.astype(np.uint16) if numbers.max() < 1 << 16 else numbers
    return keys.argsort(kind="stable").astype(np.int32)


def plan_sequences(rows: Indices, history_of: Indices, patches: RowPatches) -> Sequences:
    """Plan a chunk of ``rows``; row i has history ``history_of[i]`` and the batch's i-th patch."""
    rows, spans = _by_pool(rows, patches)
    histories = history_of[rows]
    entries = {at: patches.pools[at].entry for at in spans}
    first, trunk, branched = histories, histories[:0], 0
    stages: list[Stage] = []
    for block in sorted({0, *entries.values()}):
        begun = [at for at in spans if entries[at] <= block]
        until = spans[begun[-1]].stop if begun else 0
        still = _distinct(histories[until:])
        groups = _groups({at: spans[at] for at in begun}, len(still), rows, patches)
        if block == 0:  # its sequences: one per history of the trunk, then the branched rows
            stages.append(Stage(0, None, groups))
            first = np.concatenate([still, histories[:until]]) if len(still) else histories
        else:
            leaving = histories[branched:until]
            joined = Joined(leaving, trunk.searchsorted(leaving).astype(np.int32))
            own = np.arange(len(trunk), len(trunk) + branched)
            select = np.concatenate(
                [trunk.searchsorted(still), own, joined.sequences], dtype=np.int32
            )
            is_same = np.array_equal(select, np.arange(len(trunk) + branched))
            stages.append(Stage(block, None if is_same else select, groups, joined))
        trunk, branched = still, until
    return Sequences(first, stages, rows)


def resumed_sequences(rows: Indices, patches: RowPatches, block: int) -> Sequences:
    """Rows that all go on from known states at ``block``: each row is a sequence of its own."""
    rows, spans = _by_pool(rows, patches)
    return Sequences(rows, [Stage(block, None, _groups(spans, 0, rows, patches))], rows)


def _by_pool(rows: Indices, patches: RowPatches) -> tuple[Indices, dict[int, range]]:
    """The rows, those of one pool together, and by the pool's number where they stand."""
    if len(patches.pools) == 1:
        return rows, {0: range(len(rows))}
    pool_of = patches.pool_of[rows]
    ends = np.cumsum(np.bincount(pool_of)).tolist()
    spans = {at: range(*span) for at, span in enumerate(pairwise([0, *ends])) if span[0] < span[1]}
    return rows[stable_order(pool_of)], spans


def _groups(
    spans: Mapping[int, range], start: int, rows: Indices, patches: RowPatches
) -> list[Group]:
    """Groups of the rows that stand at ``spans``, as sequences from ``start`` on."""
    groups: list[Group] = []
    for at, span in spans.items():
        use, slots = patches.pools[at], patches.slots[rows[span.start : span.stop]]
        place = (start + span.start, start + span.stop)
        groups.append(Group(*place, use.geometry, use.pool, slots))
    return groups


def _distinct(numbers: Indices) -> Indices:
    """Each number once, ascending."""
    if not len(numbers):
        return numbers
    return np.bincount(numbers).nonzero()[0].astype(np.int32)
