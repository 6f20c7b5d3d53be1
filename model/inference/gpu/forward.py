"""The mixed-task forward on a GPU: packed sequences of any length, without padding.

A chunk's numbers go to the device in one copy, and its key selects the launches
(``cuda_graph.py``). Rows of one history share all blocks below their patches (``batch_plan.py``),
and only positions in the receptive field are computed (``layout.py``).
"""

from collections.abc import Iterator, Sequence
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
from peterrec.model.inference.gpu.cuda_graph import ChunkGraph, FusedNetwork, Workspace
from peterrec.model.inference.gpu.layout import (
    ChunkNumbers,
    GraphKey,
    count_entries,
    fill,
    graph_key,
    offsets_of,
)
from peterrec.model.inference.gpu.staging import StagingBuffer
from peterrec.model.inference.weight_pool import new_stream
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import Tokens, filled

CHUNK_ROWS = 512
"""Most rows of a chunk; the device starts on a chunk while the next one is planned."""

STREAMS = 4
"""CUDA streams, and so chunks that may run together."""

MOST_NUMBERS = 1 << 27
"""Most numbers in a chunk's activations; long histories on wide backbones get fewer rows."""

MOST_GRAPHS = 64
"""Keys whose launches a stream keeps; the least recently used one is dropped."""

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
        self.spec = backbone.spec
        self._network = FusedNetwork(backbone, dtype)
        entries = int(self._network.table.counts[:, -1].max()) * self.spec.channels
        self._chunk_rows = max(1, min(chunk_rows, MOST_NUMBERS // entries))
        self._streams = [ChunkStream(self._network) for _ in range(STREAMS)]

    @torch.inference_mode()
    def user_vectors(
        self, histories: Sequence[Tokens], refs: Sequence[SlotRef], passing: Sequence[bool] = ()
    ) -> Tensor:
        """User vectors float32 [B, C]: history i through the backbone patched by slot i.

        Nothing is cached, whether a history is ``passing`` or not.

        Raises IndexError for a token id that the backbone does not have.
        """
        out = torch.empty(len(refs), self.spec.channels, device=self._network.device)
        if not len(refs):
            return out
        histories = filled(histories, self.spec)
        patches = RowPatches.of(refs, len(self._network.table.blocks))
        for use in patches.pools:
            use.pool.await_writes()
        batch = Batch(histories, self._history_of(histories, patches), patches)
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
        items, item_counts = self._items(
            [batch.histories[row] for row in sequences.histories.tolist()]
        )
        lengths = item_counts + self.spec.input_len(0)
        counts = count_entries(sequences, lengths, self._network.table)
        return ChunkNumbers(
            sequences, items, item_counts, counts, [offsets_of(own) for own in counts]
        )

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
        if (
            items.view(np.uint32).max(initial=0) >= self.spec.token_count
        ):  # a negative id is large as uint32
            raise IndexError(f"a history has a token outside 0..{self.spec.token_count - 1}")
        return items, counts


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to run; ``history_of`` [B] is for each row the first row with its history."""

    histories: Sequence[Tokens]
    history_of: Indices
    patches: RowPatches


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

    def _graph_of(self, key: GraphKey, segments: Sequence[Segment]) -> ChunkGraph:
        if self._space is None or self._space.rows < key.rows:
            self._graphs.clear()  # their launches contain addresses of the old workspace
            self._space = Workspace(self._network, key.rows)
        if key not in self._graphs:
            self._graphs[key] = ChunkGraph(key, segments, self._network, self._space)
        return self._graphs[key]
