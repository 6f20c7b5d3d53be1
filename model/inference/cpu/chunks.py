"""Cuts a batch into chunks of sequences whose activations fit the processor's cache."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from peterrec.model.inference.activation_cache import ActivationCache, ActivationKey
from peterrec.model.inference.batch_plan import (
    SHARED_OVERDRAFT,
    Branches,
    Group,
    Indices,
    RowPatches,
    Segment,
    Sequences,
    SlotRef,
    entry_block,
    number_histories,
    plan_sequences,
    resumed_sequences,
)
from peterrec.model.network.collate import Tokens, items_of
from peterrec.model.network.receptive_field import Plan
from peterrec.model.spec import BackboneSpec

ALONE = np.zeros(1, dtype=np.int32)
"""Indices of the only row, history or sequence."""

FEWEST_POSITIONS = 256
"""Positions below which chunks are not cut smaller just to give every thread one."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that run together.

    ``histories`` belong to the sequences at the start. ``keys`` belong to all rows of the batch;
    they are empty if no activations are to be cached. ``states`` are the cached block inputs of the
    sequences, if they continue from these. ``read`` is present if a row's patch reads its items.
    """

    sequences: Sequences
    histories: list[Indices]
    keys: list[bytes]
    states: list[Tensor] = field(default_factory=list)
    read: "ReadItems | None" = None


@dataclass(frozen=True, slots=True)
class ReadItems:
    """Items int32 of the distinct histories that a chunk's rows read.

    History ``i`` is ``tokens[offsets[i] : offsets[i + 1]]``; ``history`` [rows] is each
    row's number.
    """

    tokens: Indices
    offsets: Indices
    history: Indices

    @classmethod
    def of(cls, rows: Indices, newest: Sequence[Indices], history_of: Indices) -> "ReadItems":
        """Collect the items of the rows of a chunk, in their order."""
        number: dict[int, int] = {}
        history = [number.setdefault(at, len(number)) for at in history_of[rows].tolist()]
        items = [items_of(newest[row]) for row in number]
        offsets = np.cumsum([0, *map(len, items)], dtype=np.int32)
        return cls(np.concatenate(items), offsets, np.array(history, dtype=np.int32))


@dataclass(frozen=True, slots=True)
class Activation:
    """A history's block input, from which later rows may continue."""

    key: ActivationKey
    states: Tensor


def position_counts(needed: Plan, spec: BackboneSpec) -> Indices:
    """Number of positions of a row before and after each convolution, [2·blocks + 1, length].

    The positions of a shorter row are the newest ones of the longest row.
    """
    outputs = [needed.inputs]
    for block in needed.blocks:
        outputs += [block.first.outputs, block.second.outputs]
    lengths = np.arange(spec.frame_len + 1)
    below = [np.searchsorted(positions[::-1], lengths, side="left") for positions in outputs]
    return np.array(below, dtype=np.int32)


class ChunkPlanner:
    """Plans batches; ``counts`` is the result of ``position_counts``."""

    def __init__(
        self, spec: BackboneSpec, counts: Indices, chunk_positions: int, threads: int = 1
    ) -> None:
        self._spec = spec
        self._counts = counts
        self._longest: list[int] = counts[:, -1].tolist()
        self._chunk_positions = chunk_positions
        self._threads = threads
        self._block_count = len(spec.dilations)

    def plan(
        self, histories: Sequence[Tokens], refs: Sequence[SlotRef], cache: ActivationCache
    ) -> list[Chunk]:
        """Chunks of all rows; rows whose activations are cached continue from these."""
        if len(histories) == 1:
            return [self._plan_alone(histories[0], refs[0], cache)]
        newest = [np.asarray(h[-self._spec.max_len :], dtype=np.int32) for h in histories]
        keys, history_of = number_histories(newest)
        patches = RowPatches.of(refs, self._block_count)
        entries = [patches.pools[at].entry for at in patches.pool_of.tolist()]
        fresh, resumed = self._recall(keys, entries, cache)

        def read(sequences: Sequences) -> ReadItems | None:
            is_read = any(group.geometry.queries for group in sequences.segments[-1].groups)
            return ReadItems.of(sequences.rows, newest, history_of) if is_read else None

        chunks, kept_keys = [], keys if cache.is_on else []
        for rows in self._cut(fresh, newest, history_of.tolist(), entries) if fresh else ():
            sequences = plan_sequences(np.array(rows, dtype=np.int32), history_of, patches)
            histories_in = [newest[row] for row in sequences.histories.tolist()]
            chunks.append(Chunk(sequences, histories_in, kept_keys, read=read(sequences)))
        for block, states in resumed.items():
            for rows in self._split(list(states), block):
                sequences = resumed_sequences(np.array(rows, dtype=np.int32), patches, block)
                at = sequences.rows.tolist()
                known = [states[row] for row in at]
                chunks.append(
                    Chunk(sequences, [newest[row] for row in at], [], known, read(sequences))
                )
        return chunks

    def _plan_alone(self, history: Tokens, ref: SlotRef, cache: ActivationCache) -> Chunk:
        """Plan a batch of one row; the general planning would take half as long as the forward.

        With a cached trunk below the top two blocks, a row takes 0.22 to 0.26 of the time without
        one (``trunk_cache`` of ``bench card``); planned like a batch, it takes 0.31.
        """
        newest = np.asarray(history[-self._spec.max_len :], dtype=np.int32)
        entry = entry_block(ref.geometry, self._block_count)
        group = Group(0, 1, ref.geometry, ref.pool, np.array([ref.slot], dtype=np.int32))
        read = None
        if ref.geometry.queries:
            items = items_of(newest)
            read = ReadItems(items, np.array([0, len(items)], dtype=np.int32), ALONE)
        keys = [newest.tobytes()] if cache.is_on else []
        known = cache.get((keys[0], entry)) if keys and entry else None
        if known is not None:
            sequences = Sequences(ALONE, [Segment(entry, None, [group])], ALONE)
            return Chunk(sequences, [newest], [], [known], read)
        segments = [Segment(0, None, [] if entry else [group])]
        if entry:
            segments.append(Segment(entry, None, [group], Branches(ALONE, ALONE)))
        return Chunk(Sequences(ALONE, segments, ALONE), [newest], keys, read=read)

    def _recall(
        self, keys: Sequence[bytes], entries: Sequence[int], cache: ActivationCache
    ) -> tuple[list[int], dict[int, dict[int, Tensor]]]:
        """Rows to run from the start; and by block those that continue, with their activations."""
        if not cache.is_on or not any(entries):
            return list(range(len(keys))), {}
        fresh: list[int] = []
        resumed: defaultdict[int, dict[int, Tensor]] = defaultdict(dict)
        for row, (key, entry) in enumerate(zip(keys, entries, strict=True)):
            states = cache.get((key, entry)) if entry else None
            if states is None:
                fresh.append(row)
            else:
                resumed[entry][row] = states
        return fresh, resumed

    def _cost(self, history: Indices, entry: int) -> tuple[int, int]:
        """Positions at the input of a row's patched blocks, and those of the trunk below."""
        length = self._spec.framed_len(len(history))
        trunk = int(self._counts[0, length]) if entry else 0
        return int(self._counts[2 * entry, length]), trunk

    def _split(self, rows: list[int], block: int) -> list[list[int]]:
        """Cut rows that continue at ``block`` into chunks."""
        at_once = max(1, self._chunk_positions // self._longest[2 * block])
        return [rows[start : start + at_once] for start in range(0, len(rows), at_once)]

    def _cut(
        self,
        rows: Sequence[int],
        histories: Sequence[Indices],
        history_of: Sequence[int],
        entries: Sequence[int],
    ) -> list[list[int]]:
        """Cut rows into chunks, rows of one history together in as few chunks as hold them."""
        by_history: defaultdict[int, list[int]] = defaultdict(list)
        for row in rows:
            by_history[history_of[row]].append(row)
        cost = {row: self._cost(histories[row], entries[row]) for row in rows}
        at_once = self._even_share(sum(map(sum, cost.values())))
        chunks: list[list[int]] = []
        left = 0
        for members in by_history.values():
            for row in members:
                is_new = row is members[0]
                if not chunks or left <= (0 if is_new else -SHARED_OVERDRAFT * at_once):
                    chunks.append([])
                    left, is_new = at_once, True
                own, trunk = cost[row]
                left -= own + (trunk if is_new else 0)
                chunks[-1].append(row)
        return chunks

    def _even_share(self, total: int) -> int:
        """Positions per chunk: equal chunks of about the right size, a multiple of the threads."""
        chunks = max(1, round(total / self._chunk_positions))
        if total >= self._threads * FEWEST_POSITIONS:
            chunks = math.ceil(chunks / self._threads) * self._threads
        return math.ceil(total / chunks)
