"""Which rows of a chunk run together where: one lane per history until the tasks part.

Below the first block that a patch touches, a row computes what every row of the same history
computes. So a chunk starts with one lane per distinct history, and rows branch off at the block
where their patch begins: a *stage* is a stretch of blocks between two such points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from model.slab import Slab
from model.spec import PatchGeometry


@dataclass(frozen=True, slots=True)
class SlotRef:
    """Where a row's patch lies; slabs hold the tensors of ``PatchGeometry.shapes`` by name."""

    geometry: PatchGeometry
    slab: Slab
    slot: int


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring lanes [start, stop) whose patches lie in one slab."""

    start: int
    stop: int
    geometry: PatchGeometry
    tensors: dict[str, Tensor]
    first_slot: int
    slots: Tensor

    def weights(self, name: str, index: int) -> Tensor:
        """Each lane's own tensor [stop - start, ...] at stacked position ``index``."""
        stacked = self.tensors[name].select(1, index)  # [S, P, ...] -> [S, ...]
        if self.stop - self.start == 1:
            return stacked.narrow(0, self.first_slot, 1)
        return stacked.index_select(0, self.slots)


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks from ``block`` on. ``select``: each lane's lane in the stage before; None if same."""

    block: int
    select: Tensor | None
    groups: list[Group]


@dataclass(frozen=True, slots=True)
class Lanes:
    """A chunk: its distinct histories, its stages, and its rows in the order of the last one."""

    histories: list[int]
    stages: list[Stage]
    rows: list[int]


def entry_block(geometry: PatchGeometry, block_count: int) -> int:
    """The first block whose output depends on the patch; a patch's own [CLS] enters below it."""
    if geometry.has_cls:
        return 0
    return geometry.blocks[0] if geometry.blocks else block_count


def plan_lanes(
    rows: Sequence[int],
    history_of: Sequence[int],
    refs: Sequence[SlotRef],
    block_count: int,
    device: torch.device,
) -> Lanes:
    """Plan a chunk of ``rows``; row i has history ``history_of[i]`` and patch ``refs[i]``."""
    entries = {row: entry_block(refs[row].geometry, block_count) for row in rows}
    ordered = sorted(rows, key=lambda row: (entries[row], id(refs[row].slab)))
    histories = list(dict.fromkeys(history_of[row] for row in ordered))
    trunk, branched = histories, 0  # the lanes now: one per trunk history, then the branched rows
    stages: list[Stage] = []
    for block in sorted({0, block_count, *entries.values()}):
        until = sum(entries[row] <= block for row in ordered)
        still = list(dict.fromkeys(history_of[row] for row in ordered[until:]))
        lane_of = {history: lane for lane, history in enumerate(trunk)}
        select = [lane_of[history] for history in still]
        select += range(len(trunk), len(trunk) + branched)
        select += [lane_of[history_of[row]] for row in ordered[branched:until]]
        is_same = select == list(range(len(trunk) + branched))
        groups = _groups(ordered[:until], len(still), refs, device)
        stages.append(Stage(block, None if is_same else _indices(select, device), groups))
        trunk, branched = still, until
    return Lanes(histories, stages, ordered)


def _groups(
    rows: Sequence[int], start: int, refs: Sequence[SlotRef], device: torch.device
) -> list[Group]:
    groups: list[Group] = []
    for _, members in groupby(rows, key=lambda row: id(refs[row].slab)):
        own = [refs[row] for row in members]
        ref, slots, stop = own[0], [r.slot for r in own], start + len(own)
        groups.append(
            Group(start, stop, ref.geometry, ref.slab.tensors, slots[0], _indices(slots, device))
        )
        start = stop
    return groups


def _indices(numbers: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)
