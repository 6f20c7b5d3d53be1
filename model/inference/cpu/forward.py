"""The mixed-task forward on a CPU: packed sequences of any length, without padding.

A batch is cut into chunks of sequences whose activations fit the processor's cache. A chunk goes
through a segment of blocks in one call (``blocks.py``). Chunks run on as many threads as PyTorch
had when the forward was created.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from peterrec.model.inference.activation_cache import ActivationCache
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
from peterrec.model.inference.cpu.amx import may_use_tiles
from peterrec.model.inference.cpu.blocks import Activation, Chunk, PackedBlocks, ReadItems
from peterrec.model.inference.cpu.compiled import compilations_of_this_thread, remove_unfinished
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import PackedHistories, Tokens, filled, items_of
from peterrec.model.spec import FIRST_ITEM, BackboneSpec, PatchGeometry

Result = TypeVar("Result")

CHUNK_POSITIONS = 1_600
"""Positions per chunk; the activations of one convolution then stay in the second-level cache."""

ALONE = np.zeros(1, dtype=np.int32)
"""Indices of the only row, history or sequence."""

WARM_UP_LENGTHS = (0, 1, 8, 64)
"""Lengths of the histories that are run before the first request."""

CPU = torch.device("cpu")

FEWEST_POSITIONS = 256
"""Positions below which chunks are not cut smaller just to give every thread one."""


def _newest(history: Tokens, spec: BackboneSpec) -> Indices:
    return np.asarray(history[-spec.max_len :], dtype=np.int32)


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
        newest = [_newest(history, self._spec) for history in histories]
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
        newest = _newest(history, self._spec)
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
        """Split rows into those that start anew and, by block, those with cached activations."""
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
        length = self._spec.input_len(len(history))
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


class PackedForward:
    """User vectors on a CPU. Used by one thread, which runs chunks on a pool of threads."""

    def __init__(
        self,
        backbone: Backbone,
        dtype: torch.dtype,
        chunk_positions: int | None = None,
        trunk_cache_bytes: int = 0,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """``progress`` is called after each chunk."""
        remove_unfinished()
        self._progress = progress
        threads = torch.get_num_threads()
        is_rounded = dtype == torch.bfloat16 and may_use_tiles()
        self._blocks = PackedBlocks(backbone, is_rounded)
        self.activation_cache = ActivationCache(trunk_cache_bytes)
        positions = chunk_positions or CHUNK_POSITIONS
        self._planner = ChunkPlanner(backbone.spec, self._blocks.counts, positions, threads)
        self._pool = ThreadPoolExecutor(threads, "forward") if threads > 1 else None

    def user_vectors(
        self, histories: Sequence[Tokens], refs: Sequence[SlotRef], passing: Sequence[bool] = ()
    ) -> Tensor:
        """User vectors float32 [B, C]: history i through the backbone patched by slot i.

        Activations of a history that is ``passing`` are not cached.
        """
        histories = filled(histories, self._blocks.spec)
        chunks = self._planner.plan(histories, refs, self.activation_cache)
        done = self._run_all(chunks)
        if kept := [state for _, states in done for state in states]:
            left = {
                _newest(history, self._blocks.spec).tobytes()
                for history, is_passing in zip(histories, passing, strict=False)
                if is_passing
            }
            for state in kept:
                if state.key[0] not in left:
                    self.activation_cache.put(state.key, state.states)
        if len(chunks) == 1 and chunks[0].sequences.rows.tolist() == list(range(len(histories))):
            return done[0][0]
        out = torch.empty(len(histories), self._blocks.spec.channels)
        for chunk, (vectors, _) in zip(chunks, done, strict=True):
            out[chunk.sequences.rows] = vectors
        return out

    def user_vectors_of_all(self, histories: PackedHistories, refs: Sequence[SlotRef]) -> Tensor:
        """User vectors float32 [B, T, C] of every history by every patch; none is cached."""
        rows = [history for history in histories.listed() for _ in refs]
        users = self.user_vectors(rows, [*refs] * len(histories), [True] * len(rows))
        return users.view(len(histories), len(refs), users.shape[1])  # [B · T, C] -> [B, T, C]

    @property
    def compilations(self) -> int:
        """How many kernels the calling thread has compiled, or read from the disk."""
        return compilations_of_this_thread()

    def prepare(
        self, geometry: PatchGeometry, dtype: torch.dtype, progress: Callable[[], None]
    ) -> None:
        """Compile what rows with patches run: most geometries run the same kernels."""
        pool = WeightPool(geometry.shapes(self._blocks.spec.channels), CPU, dtype, capacity=2)
        refs = [SlotRef(geometry, pool, pool.write(pool.zeros()))] * 2
        for length in WARM_UP_LENGTHS:
            histories = [np.full(length, FIRST_ITEM, np.int32)] * 2
            self.user_vectors(histories, refs, [True, True])
            progress()

    def capture(self, ref: SlotRef) -> Iterator[None]:
        """Nothing: kernels are called directly."""
        return iter(())

    def capture_next(self) -> bool:
        """False: kernels are called directly."""
        return False

    def _run_all(self, chunks: Sequence[Chunk]) -> list[tuple[Tensor, list[Activation]]]:
        """Run each chunk on one thread: products this small are not worth sharing."""
        if self._pool is None:
            return [self._shown(self._blocks.run(chunk)) for chunk in chunks]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            run = self._pool.map if len(chunks) > 1 else map
            return [self._shown(done) for done in run(self._blocks.run, chunks)]
        finally:
            torch.set_num_threads(threads)

    def _shown(self, done: Result) -> Result:
        self._progress()
        return done
