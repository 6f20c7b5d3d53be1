"""The mixed-task forward on a GPU: sequences of any length one after the other, nothing padded.

A chunk's numbers go to the device in one copy; its launches are those of its shape
(``model/inference/gpu/cuda_graph.py``). Rows of one history share all blocks below their patches
(``model/inference/batch_plan.py``), and only the cone's entries are computed
(``model/inference/gpu/layout.py``).
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, pairwise

import numpy as np
import torch
from torch import Tensor

from peterrec.model.inference.batch_plan import (
    Indices,
    RowPatches,
    SlotRef,
    Stage,
    number_histories,
    plan_sequences,
    stable_order,
)
from peterrec.model.inference.gpu.cuda_graph import FusedNetwork, ShapeRun, Workspace
from peterrec.model.inference.gpu.layout import (
    ChunkNumbers,
    ChunkShape,
    bases_of,
    count_entries,
    fill,
    shape_of,
)
from peterrec.model.inference.weight_pool import new_stream
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import Tokens, filled

CHUNK_ROWS = 512
"""Rows of a chunk, at most: the device begins with one while the next is planned."""

TRACKS = 4
"""Chunks that may be on the device at a time."""

MOST_NUMBERS = 1 << 27
"""Numbers in the states of a chunk: long histories of wide backbones get fewer rows."""

MOST_SHAPES = 64
"""Shapes whose launches are kept; the one used least recently goes."""

STAGING_BUFFERS = 2
"""A chunk is planned while the one before is copied."""


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
        self._tracks = [Track(self._network) for _ in range(TRACKS)]

    @torch.inference_mode()
    def user_vectors(self, histories: Sequence[Tokens], refs: Sequence[SlotRef]) -> Tensor:
        """User vectors float32 [B, C]: history i through the backbone patched by slot i.

        Raises IndexError for a token that is none.
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
            self._tracks[0].run(self._numbers(chunks[0], batch), out)
            return out
        device = self._network.device
        caller = torch.cuda.current_stream(device) if device.type == "cuda" else None
        try:
            for rows, track in zip(chunks, cycle(self._tracks), strict=False):
                numbers = self._numbers(rows, batch)
                with track.beside(caller):
                    track.run(numbers, out)
        finally:  # also if one fails: the next batch uses the tracks' memory again
            for track in self._tracks[: len(chunks)]:
                track.join(caller)
        return out

    def _history_of(self, histories: Sequence[Tokens], patches: RowPatches) -> Indices:
        """The first row that has the same history; the row itself if no patch leaves a trunk."""
        if not patches.leave_trunk:
            return np.arange(len(histories), dtype=np.int32)
        newest = [np.asarray(history[-self.spec.max_len :], np.int32) for history in histories]
        return number_histories(newest)[1]

    def _chunks(self, batch: "Batch") -> list[Indices]:
        """Row numbers by chunk. Rows of one history lie together, so that they share a trunk; if
        none do, rows of one slot, so that its patch is read from memory once."""
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
        lengths = item_counts + self.spec.framed_len(0)
        counts = count_entries(sequences, lengths, self._network.table)
        return ChunkNumbers(
            sequences, items, item_counts, counts, [bases_of(own) for own in counts]
        )

    def _items(self, histories: Sequence[Tokens]) -> tuple[Indices, Indices]:
        """The histories' newest items int32 one after the other, and how many each has.

        Chunk by chunk: the device begins with one before the others' are looked at.
        """
        counts = np.fromiter(map(len, histories), np.int32, len(histories))
        if counts.max() > self.spec.max_len:
            histories = [history[-self.spec.max_len :] for history in histories]
            counts = np.minimum(counts, self.spec.max_len)
        items = np.concatenate(histories, dtype=np.int32, casting="unsafe")  # an empty list: floats
        if items.view(np.uint32).max(initial=0) >= self.spec.token_count:  # one below 0 is large
            raise IndexError(f"a history has a token outside 0..{self.spec.token_count - 1}")
        return items, counts


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to run; ``history_of`` [B]: for each the first one that shares its history."""

    histories: Sequence[Tokens]
    history_of: Indices
    patches: RowPatches


class Track:
    """A stream with memory of its own. Chunks on two tracks overlap: as one's last programs end,
    or its few programs of the top blocks run, the other's fill the device."""

    def __init__(self, network: FusedNetwork) -> None:
        self._network = network
        self._stream = new_stream(network.device)
        self._space: Workspace | None = None
        self._shapes: OrderedDict[ChunkShape, ShapeRun] = OrderedDict()
        self._staging = [Staging(network.device) for _ in range(STAGING_BUFFERS)]

    @contextmanager
    def beside(self, caller: torch.cuda.Stream | None) -> Iterator[None]:
        """Run what follows on the track's stream, after what the caller's holds."""
        if self._stream is None or caller is None:
            yield
            return
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield

    def join(self, caller: torch.cuda.Stream | None) -> None:
        """Let the caller's stream wait for the track's."""
        if self._stream is not None and caller is not None:
            caller.wait_stream(self._stream)

    def run(self, numbers: ChunkNumbers, out: Tensor) -> None:
        """Write the user vectors of a chunk's rows into ``out`` [B, C]."""
        table = self._network.table
        run = self._shape_run(shape_of(numbers, table), numbers.sequences.stages)
        staging = self._staging[0]
        self._staging.reverse()
        fill(staging.free(run.parts.size), run.parts, numbers, table)
        staging.send(run.ints)
        users = run.run()[: len(numbers.sequences.rows)]
        out.index_copy_(0, run.places[: len(users)], users)

    def _shape_run(self, shape: ChunkShape, stages: Sequence[Stage]) -> ShapeRun:
        if self._space is None or self._space.rows < shape.rows:
            self._shapes.clear()  # their launches name addresses of the space that goes
            self._space = Workspace(self._network, shape.rows)
        if shape not in self._shapes:
            if len(self._shapes) == MOST_SHAPES:
                self._shapes.popitem(last=False)
            self._shapes[shape] = ShapeRun(shape, stages, self._network, self._space)
        self._shapes.move_to_end(shape)
        return self._shapes[shape]


class Staging:
    """Numbers on their way to the device, in memory that it reads by itself."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._memory = torch.empty(0, dtype=torch.int32)
        self._numbers: Indices = self._memory.numpy()
        self._sent: torch.cuda.Event | None = None
        if self._is_cuda:
            self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]  # PyTorch's

    def free(self, size: int) -> Indices:
        """A buffer int32 [≥ size] to fill; waits until what it held has arrived."""
        if self._sent is not None:
            self._sent.synchronize()
        if len(self._memory) < size:
            self._memory = torch.empty(size, dtype=torch.int32, pin_memory=self._is_cuda)
            self._numbers = self._memory.numpy()
        return self._numbers

    def send(self, into: Tensor) -> None:
        """Begin to copy as much as ``into`` holds, on the current stream."""
        into.copy_(self._memory[: len(into)], non_blocking=True)
        if self._sent is not None:
            self._sent.record()
