"""Plans which rows of a chunk share computation: one sequence per history until the tasks diverge.

Below the first block that a patch touches, all rows of one history compute the same. So a chunk
starts with one sequence per distinct history, and rows branch off at the block where their patch
begins. A *segment* is a run of blocks between two such branch points.
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
"""Size limit, in normal chunks, of a chunk whose rows have one history and share its trunk."""


class SlotRef(NamedTuple):
    """The place of a row's patch: a slot of the weight pool for the patch's geometry."""

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
    """The patches of a batch's rows: each row's pool by number [B], and its slot there [B].

    ``pools`` are those of the batch, in the order of the blocks where their patches begin.
    """

    pools: list[PoolUse]
    pool_of: Indices
    slots: Indices

    @classmethod
    def of(cls, refs: Sequence[SlotRef], block_count: int) -> "RowPatches":
        """Collect ``refs``, one per row; this is the only pass over them row by row."""
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

    def of_each(self, histories: int) -> "RowPatches":
        """These patches for every history, of which each then has neighbouring rows."""
        pool_of, slots = np.tile(self.pool_of, histories), np.tile(self.slots, histories)
        return RowPatches(self.pools, pool_of, slots)

    @property
    def leave_trunk(self) -> bool:
        """True if a patch begins above blocks that rows of one history could share."""
        return any(use.entry for use in self.pools)


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring sequences [start, stop) whose patches are in one pool, at ``slots``."""

    start: int
    stop: int
    geometry: PatchGeometry
    pool: WeightPool
    slots: Indices


@dataclass(frozen=True, slots=True)
class Branches:
    """Rows that branch off where a segment begins: their histories, and the sequences they copy."""

    histories: Indices
    sequences: Indices


@dataclass(frozen=True, slots=True)
class Segment:
    """The blocks from ``block`` up to the next segment.

    ``gather`` has the number of each sequence in the segment before; None if numbers are equal.
    """

    block: int
    gather: Indices | None
    groups: list[Group]
    branches: Branches | None = None


@dataclass(frozen=True, slots=True)
class Sequences:
    """A chunk: histories of the sequences that begin, the segments, and rows of those that end."""

    histories: Indices
    segments: list[Segment]
    rows: Indices


def entry_block(geometry: PatchGeometry, block_count: int) -> int:
    """The first block whose input or weights depend on the patch; 0 if it has its own [CLS]."""
    if geometry.has_cls:
        return 0
    return geometry.blocks[0] if geometry.blocks else block_count


def number_histories(newest: Sequence[Indices]) -> tuple[list[bytes], Indices]:
    """Return a key for each row's history, and the first row with the same history, both [B]."""
    keys = [history.tobytes() for history in newest]
    first: dict[bytes, int] = {}
    history_of = [first.setdefault(key, row) for row, key in enumerate(keys)]
    return keys, np.array(history_of, dtype=np.int32)


def stable_order(numbers: Indices) -> Indices:
    """Indices that sort numbers >= 0 stably; a sort of two bytes takes a third of the time."""
    keys = numbers.astype(np.uint16) if numbers.max() < 1 << 16 else numbers
    return keys.argsort(kind="stable").astype(np.int32)


def plan_sequences(rows: Indices, history_of: Indices, patches: RowPatches) -> Sequences:
    """Plan a chunk of ``rows``; row i has history ``history_of[i]`` and the batch's i-th patch."""
    rows, spans = _by_pool(rows, patches)
    histories = history_of[rows]
    entries = {at: patches.pools[at].entry for at in spans}
    first, trunk, branched = histories, histories[:0], 0
    segments: list[Segment] = []
    for block in sorted({0, *entries.values()}):
        begun = [at for at in spans if entries[at] <= block]
        until = spans[begun[-1]].stop if begun else 0
        still = _distinct(histories[until:])
        groups = _groups({at: spans[at] for at in begun}, len(still), rows, patches)
        if block == 0:  # its sequences: one per history of the trunk, then the branched rows
            segments.append(Segment(0, None, groups))
            first = np.concatenate([still, histories[:until]]) if len(still) else histories
        else:
            leaving = histories[branched:until]
            branches = Branches(leaving, trunk.searchsorted(leaving).astype(np.int32))
            own = np.arange(len(trunk), len(trunk) + branched)
            gather = np.concatenate(
                [trunk.searchsorted(still), own, branches.sequences], dtype=np.int32
            )
            is_same = np.array_equal(gather, np.arange(len(trunk) + branched))
            segments.append(Segment(block, None if is_same else gather, groups, branches))
        trunk, branched = still, until
    return Sequences(first, segments, rows)


def resumed_sequences(rows: Indices, patches: RowPatches, block: int) -> Sequences:
    """Plan rows that continue from known states at ``block``: each row is a separate sequence."""
    rows, spans = _by_pool(rows, patches)
    return Sequences(rows, [Segment(block, None, _groups(spans, 0, rows, patches))], rows)


def _by_pool(rows: Indices, patches: RowPatches) -> tuple[Indices, dict[int, range]]:
    """The rows sorted by pool, and for each pool's number the places of its rows."""
    if len(patches.pools) == 1:
        return rows, {0: range(len(rows))}
    pool_of = patches.pool_of[rows]
    ends = np.cumsum(np.bincount(pool_of)).tolist()
    spans = {at: range(*span) for at, span in enumerate(pairwise([0, *ends])) if span[0] < span[1]}
    return rows[stable_order(pool_of)], spans


def _groups(
    spans: Mapping[int, range], start: int, rows: Indices, patches: RowPatches
) -> list[Group]:
    """Groups of the rows at ``spans``, numbered as sequences from ``start`` on."""
    groups: list[Group] = []
    for at, span in spans.items():
        use, slots = patches.pools[at], patches.slots[rows[span.start : span.stop]]
        place = (start + span.start, start + span.stop)
        groups.append(Group(*place, use.geometry, use.pool, slots))
    return groups


def _distinct(numbers: Indices) -> Indices:
    """Every distinct number, ascending."""
    if not len(numbers):
        return numbers
    return np.bincount(numbers).nonzero()[0].astype(np.int32)
