"""The mixed-task forward on a GPU: packed sequences of any length, without padding.

A chunk's numbers go to the device in one copy, and its key selects the launches
(``cuda_graph.py``). Rows of one history share all blocks below their patches (``batch_plan.py``),
and only positions in the receptive field are computed (``layout.py``).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, pairwise

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor

from peterrec.model.inference.batch_plan import (
    Indices,
    RowPatches,
    Segment,
    SlotRef,
    number_histories,
    plan_sequences,
    stable_order,
)
from peterrec.model.inference.gpu import compilations
from peterrec.model.inference.gpu.cuda_graph import ChunkGraph, FusedNetwork, Workspace
from peterrec.model.inference.gpu.layout import (
    ChunkNumbers,
    GraphKey,
    count_entries,
    fill,
    graph_key,
    length_caps,
    offsets_of,
)
from peterrec.model.inference.gpu.staging import StagingBuffer
from peterrec.model.inference.weight_pool import WeightPool, new_stream
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import PackedHistories, Tokens, filled, filled_packed
from peterrec.model.spec import FIRST_ITEM, PatchGeometry

CHUNK_ROWS = 512
"""Most rows of a chunk; the device starts on a chunk while the next one is planned."""

STREAMS = 4
"""CUDA streams, and so chunks that may run together."""

MOST_NUMBERS = 1 << 27
"""Most numbers in a chunk's activations; long histories on wide backbones get fewer rows."""

MOST_GRAPHS = 512
"""Keys whose launches a stream keeps; the least recently used one is dropped. A geometry alone has
up to 40, one for each of ``_sizes``."""

MOST_PLANS = 1024
"""Pools and lengths of which a single row is planned only once."""

ALONE = np.zeros(1, np.int32)
"""The number of the only row, or of its history."""

STAGING_BUFFERS = 2
"""Staging buffers of a stream: a chunk is planned while the one before is copied."""


class FusedForward:
    """User vectors on a GPU. Used by one thread."""

    def __init__(
        self,
        backbone: Backbone,
        dtype: torch.dtype = torch.float32,
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        compilations.remove_unfinished()
        self.spec = backbone.spec
        self._network = FusedNetwork(backbone, dtype)
        entries = int(self._network.table.counts[:, -1].max()) * self.spec.channels
        self._chunk_rows = max(1, min(chunk_rows, MOST_NUMBERS // entries))
        self._streams = [ChunkStream(self._network) for _ in range(STREAMS)]
        self._plans: LRUCache[tuple[int, int, int], RowPlan] = LRUCache(MOST_PLANS)

    @property
    def compilations(self) -> int:
        """How many kernels the calling thread has compiled, or read from the disk."""
        return compilations.of_this_thread()

    def prepare(
        self, geometry: PatchGeometry, dtype: torch.dtype, progress: Callable[[], None]
    ) -> None:
        """Compile every kernel that rows with patches of one geometry may run.

        May be called from any thread, also while another one runs batches: it has a stream and
        memory of its own. Calls ``progress`` after each size of a batch.
        """
        pool = WeightPool(geometry.shapes(self.spec.channels), self._network.device, dtype)
        slot = pool.write(pool.zeros())
        stream, device = ChunkStream(self._network), self._network.device
        caller = torch.cuda.current_stream(device) if device.type == "cuda" else None
        pool.await_writes()
        with stream.after(caller):
            for rows, length in self._sizes():
                self._run_alone(stream, [SlotRef(geometry, pool, slot)] * rows, length)
                progress()
        stream.join(caller)
        if caller is not None:
            caller.synchronize()

    def capture(self, ref: SlotRef) -> Iterator[None]:
        """Capture the launches of each size of a batch with patches of one pool.

        Used by the thread that runs batches, which may run some between two items.
        """
        generation = ref.pool.generation
        for rows, length in self._sizes():
            if ref.pool.generation != generation:
                return  # the pool has moved: its next load captures anew
            ref.pool.await_writes()
            self._run_alone(self._streams[0], [ref] * rows, length)
            self._streams[0].capture_next()
            yield

    def capture_next(self) -> bool:
        """Capture the launches of a batch that ran without; False if there is none."""
        return any(stream.capture_next() for stream in self._streams)

    def _sizes(self) -> Iterator[tuple[int, int]]:
        """Rows and lengths of histories so that a batch of each has a graph's key of its own.

        The largest come first, so that memory is allocated once.
        """
        shortest = self.spec.input_len(0)
        for rows in reversed(range(self._chunk_rows.bit_length())):
            for length in reversed(length_caps(self._network.table)):
                yield 1 << rows, max(0, length - shortest)

    @torch.inference_mode()
    def _run_alone(self, stream: "ChunkStream", refs: Sequence[SlotRef], length: int) -> None:
        """Run a batch of different histories of one length, whose answers nobody reads."""
        histories = [np.full(length, FIRST_ITEM, np.int32) for _ in refs]
        rows = np.arange(len(refs), dtype=np.int32)
        patches = RowPatches.of(refs, len(self._network.table.blocks))
        batch = Batch(filled(histories, self.spec), rows, patches)
        out = torch.empty(len(refs), self.spec.channels, device=self._network.device)
        stream.run(self._numbers(rows, batch), out)

    @torch.inference_mode()
    def user_vectors(
        self, histories: Sequence[Tokens], refs: Sequence[SlotRef], passing: Sequence[bool] = ()
    ) -> Tensor:
        """User vectors float32 [B, C]: history i through the backbone patched by slot i.

        Nothing is cached, whether a history is ``passing`` or not.

        Raises IndexError for a token id that the backbone does not have.
        """
        histories = filled(histories, self.spec)
        if len(refs) == 1:
            return self._alone(histories[0], refs[0])
        patches = RowPatches.of(refs, len(self._network.table.blocks))
        return self._run(Batch(histories, self._history_of(histories, patches), patches))

    @torch.inference_mode()
    def user_vectors_of_all(self, histories: PackedHistories, refs: Sequence[SlotRef]) -> Tensor:
        """User vectors float32 [B, T, C] of every history by every patch.

        No step is per row, so that one thread can keep the device busy.

        Raises IndexError for a token id that the backbone does not have.
        """
        patches = RowPatches.of(refs, len(self._network.table.blocks)).of_each(len(histories))
        history_of = np.repeat(np.arange(len(histories), dtype=np.int32), len(refs))
        users = self._run(Batch(filled_packed(histories, self.spec), history_of, patches))
        return users.view(len(histories), len(refs), self.spec.channels)  # [B · T, C] -> [B, T, C]

    def _run(self, batch: "Batch") -> Tensor:
        """The user vectors [B, C] of a batch's rows, chunk by chunk on several streams."""
        out = torch.empty(len(batch.history_of), self.spec.channels, device=self._network.device)
        if not len(out):
            return out
        for use in batch.patches.pools:
            use.pool.await_writes()
        chunks = self._chunks(batch)
        if len(chunks) == 1:
            self._streams[0].run(self._numbers(chunks[0], batch), out)
            return out
        device = self._network.device
        caller = torch.cuda.current_stream(device) if device.type == "cuda" else None
        try:
            for rows, stream in zip(chunks, cycle(self._streams), strict=False):
                numbers = self._numbers(rows, batch)
                with stream.after(caller):
                    stream.run(numbers, out)
        finally:  # also after a failure, as the next batch reuses the streams' memory
            for stream in self._streams[: len(chunks)]:
                stream.join(caller)
        return out

    def _alone(self, history: Tokens, ref: SlotRef) -> Tensor:
        """The user vector [1, C] of one row. Planned like a batch it would take twice as long.

        Rows of one pool and length differ in their items and slot alone.
        """
        items, _ = self._items([history])
        ref.pool.await_writes()
        key = (id(ref.pool), ref.pool.generation, len(items))
        plan = self._plans.get(key)
        if plan is None or not self._streams[0].keeps(plan.run):
            patches = RowPatches.of([ref], len(self._network.table.blocks))
            numbers = self._numbers(ALONE, Batch([items], ALONE, patches))
            plan = self._plans[key] = self._streams[0].plan(numbers)
        return self._streams[0].run_plan(plan, items, ref.slot)

    def _history_of(self, histories: Sequence[Tokens], patches: RowPatches) -> Indices:
        """For each row, the first row with its history; the row itself if trunks are not shared."""
        if not patches.leave_trunk:
            return np.arange(len(histories), dtype=np.int32)
        newest = [np.asarray(history[-self.spec.max_len :], np.int32) for history in histories]
        return number_histories(newest)[1]

    def _chunks(self, batch: "Batch") -> list[Indices]:
        """Row numbers by chunk.

        Rows of one history are neighbours, so that they share a trunk. If no trunk is shared, rows
        of one slot are neighbours, so that its patch is read from memory once.
        """
        patches = batch.patches
        order = stable_order(batch.history_of if patches.leave_trunk else patches.slots)
        count = -(-len(order) // self._chunk_rows)
        cuts = [len(order) * at // count for at in range(count + 1)]
        return [order[start:stop] for start, stop in pairwise(cuts)]

    def _numbers(self, rows: Indices, batch: "Batch") -> ChunkNumbers:
        sequences = plan_sequences(rows, batch.history_of, batch.patches)
        items, item_counts = self._items_of(batch.histories, sequences.histories)
        lengths = item_counts + self.spec.input_len(0)
        counts = count_entries(sequences, lengths, self._network.table)
        return ChunkNumbers(
            sequences, items, item_counts, counts, [offsets_of(own) for own in counts]
        )

    def _items_of(
        self, histories: Sequence[Tokens] | PackedHistories, rows: Indices
    ) -> tuple[Indices, Indices]:
        """The items of some histories, see ``_items``."""
        if not isinstance(histories, PackedHistories):
            return self._items([histories[row] for row in rows.tolist()])
        return self._checked(histories.joined(rows)), histories.lengths[rows].astype(np.int32)

    def _items(self, histories: Sequence[Tokens]) -> tuple[Indices, Indices]:
        """The histories' newest items int32, one history after the other, and how many each has.

        This runs per chunk, so that the device starts before all histories have been read.
        """
        counts = np.fromiter(map(len, histories), np.int32, len(histories))
        if counts.max() > self.spec.max_len:
            histories = [history[-self.spec.max_len :] for history in histories]
            counts = np.minimum(counts, self.spec.max_len)
        items = np.concatenate(
            histories, dtype=np.int32, casting="unsafe"
        )  # an empty list would make floats
        return self._checked(items), counts

    def _checked(self, items: Indices) -> Indices:
        largest = items.view(np.uint32).max(initial=0)  # a negative id is large as uint32
        if largest >= self.spec.token_count:
            raise IndexError(f"a history has a token outside 0..{self.spec.token_count - 1}")
        return items


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to run; ``history_of`` [B] says which of ``histories`` each row has.

    Packed histories have ``max_len`` tokens at most.
    """

    histories: Sequence[Tokens] | PackedHistories
    history_of: Indices
    patches: RowPatches


@dataclass(frozen=True, slots=True)
class RowPlan:
    """A chunk of one row: its launches, and all numbers int32 but for its items and slot."""

    run: ChunkGraph
    numbers: Indices


class ChunkStream:
    """A CUDA stream with separate memory.

    Chunks on two streams overlap: while the last programs of one, or the few programs of its top
    blocks, leave multiprocessors idle, those of the other fill the device.
    """

    def __init__(self, network: FusedNetwork) -> None:
        self._network = network
        self._stream = new_stream(network.device)
        self._space: Workspace | None = None
        self._graphs: LRUCache[GraphKey, ChunkGraph] = LRUCache(MOST_GRAPHS)
        self._wanted: dict[GraphKey, ChunkGraph] = {}
        self._staging = [StagingBuffer(network.device) for _ in range(STAGING_BUFFERS)]

    @contextmanager
    def after(self, caller: torch.cuda.Stream | None) -> Iterator[None]:
        """Run the enclosed work on this stream, after all earlier work of the caller's stream."""
        if self._stream is None or caller is None:
            yield
            return
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield

    def join(self, caller: torch.cuda.Stream | None) -> None:
        """Let the caller's stream wait for this one."""
        if self._stream is not None and caller is not None:
            caller.wait_stream(self._stream)

    def run(self, numbers: ChunkNumbers, out: Tensor) -> None:
        """Write the user vectors of a chunk's rows into ``out`` [B, C]."""
        table = self._network.table
        run = self._graph_of(graph_key(numbers, table), numbers.sequences.segments)
        staging = self._staging[0]
        self._staging.reverse()
        fill(staging.free(run.parts.size), run.parts, numbers, table)
        staging.send(run.ints)
        users = run.run()[: len(numbers.sequences.rows)]
        out.index_copy_(0, run.places[: len(users)], users)
        if run.is_wanted:
            self._wanted[run.key] = run

    def keeps(self, run: ChunkGraph) -> bool:
        """True if the launches are still those of their key."""
        return self._graphs.get(run.key) is run

    def plan(self, numbers: ChunkNumbers) -> RowPlan:
        """Plan a chunk of one row, for other rows of its pool and length, too."""
        table = self._network.table
        run = self._graph_of(graph_key(numbers, table), numbers.sequences.segments)
        template = np.zeros(run.parts.size, np.int32)
        fill(template, run.parts, numbers, table)
        return RowPlan(run, template)

    def run_plan(self, plan: RowPlan, items: Indices, slot: int) -> Tensor:
        """The user vector [1, C] of a planned row."""
        run, staging = plan.run, self._staging[0]
        self._staging.reverse()
        numbers = staging.free(run.parts.size)
        numbers[: len(plan.numbers)] = plan.numbers
        numbers[run.parts.items.start : run.parts.items.start + len(items)] = items
        for segment in run.parts.segments:
            numbers[segment.slots.start] = slot
        staging.send(run.ints)
        users = run.run()[:1]
        if run.is_wanted:
            self._wanted[run.key] = run
        return users.clone()

    @torch.inference_mode()
    def capture_next(self) -> bool:
        """Capture the launches of a key that ran without; False if there is none."""
        while self._wanted:
            key, run = self._wanted.popitem()
            if run.is_wanted and self._graphs.get(key) is run:
                run.capture()
                return True
        return False

    def _graph_of(self, key: GraphKey, segments: Sequence[Segment]) -> ChunkGraph:
        if self._space is None or self._space.rows < key.rows:
            self._wanted.clear()
            self._graphs.clear()  # their launches contain addresses of the old workspace
            self._space = Workspace(self._network, key.rows)
        if key not in self._graphs:
            self._graphs[key] = ChunkGraph(key, segments, self._network, self._space)
        return self._graphs[key]
