"""The mixed-task forward on a GPU: lanes of any length one after the other, nothing padded.

A chunk's numbers go to the device in one copy; its launches are those of its shape
(``model/fused_run.py``). Rows of one history share all blocks below their patches
(``model/lanes.py``), and only the cone's entries are computed (``model/levels.py``).
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.backbone import Backbone
from model.framing import Tokens
from model.fused_plan import ChunkNumbers, ChunkShape, fill, shape_of, slabs_of
from model.fused_run import FusedNetwork, ShapeRun, Workspace
from model.lanes import Indices, Lanes, SlotRef, entry_block, number_histories, plan_lanes

MOST_ROWS = 2048
"""Rows of a chunk: enough to fill the device."""

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
        most_rows: int = MOST_ROWS,
    ) -> None:
        self.spec = backbone.spec
        self._network = FusedNetwork(backbone, dtype)
        entries = int(self._network.table.counts[:, -1].max()) * self.spec.channels
        self._most_rows = max(1, min(most_rows, 1 << (MOST_NUMBERS // entries).bit_length() - 1))
        self._space: Workspace | None = None
        self._shapes: OrderedDict[ChunkShape, ShapeRun] = OrderedDict()
        self._staging = [Staging(self._network.device) for _ in range(STAGING_BUFFERS)]

    @torch.inference_mode()
    def user_vectors(self, histories: Sequence[Tokens], refs: Sequence[SlotRef]) -> Tensor:
        """User vectors float32 [B, C]: history i through the backbone patched by slot i.

        Raises IndexError for a token that is none.
        """
        newest = [history[-self.spec.max_len :] for history in histories]
        history_of = self._history_of(newest, refs)
        is_one = len(newest) <= self._most_rows
        order = np.arange(len(newest)) if is_one else np.argsort(history_of, kind="stable")
        place_of = np.argsort(order)
        out = torch.empty(len(newest), self.spec.channels, device=self._network.device)
        for start in range(0, len(order), self._most_rows):
            rows = order[start : start + self._most_rows].tolist()
            lanes = plan_lanes(rows, history_of, refs, len(self._network.table.blocks))
            places = place_of[lanes.rows] - start
            users = self._run(lanes, self._numbers(lanes, newest, places))
            out[start : start + len(rows)] = users[: len(rows)]
        return out if is_one else out[torch.from_numpy(place_of).to(out.device)]

    def _run(self, lanes: Lanes, numbers: ChunkNumbers) -> Tensor:
        """User vectors [≥ rows, C] of a chunk, overwritten by the next one's."""
        for slab in slabs_of(lanes):
            slab.await_writes()
        shape = shape_of(lanes, numbers.lengths, self._network.table, self.spec)
        run = self._shape_run(shape, lanes)
        staging = self._staging[0]
        self._staging.reverse()
        fill(staging.free(run.parts.size), run.parts, numbers, self._network.table)
        staging.send(run.ints)
        return run.run()

    def _shape_run(self, shape: ChunkShape, lanes: Lanes) -> ShapeRun:
        if self._space is None or self._space.rows < shape.rows:
            self._shapes.clear()  # their launches name addresses of the space that goes
            self._space = Workspace(self._network, shape.rows)
        if shape not in self._shapes:
            if len(self._shapes) == MOST_SHAPES:
                self._shapes.popitem(last=False)
            slabs = {id(slab): slab for slab in slabs_of(lanes)}
            self._shapes[shape] = ShapeRun(shape, slabs, self._network, self._space)
        self._shapes.move_to_end(shape)
        return self._shapes[shape]

    def _numbers(self, lanes: Lanes, newest: Sequence[Tokens], places: Indices) -> ChunkNumbers:
        own = [newest[first] for first in lanes.histories]
        counts = np.fromiter(map(len, own), np.int32, len(own))
        items = np.concatenate(own, dtype=np.int32, casting="unsafe")  # an empty list has floats
        if len(items) and not 0 <= items.min() <= items.max() < self.spec.token_count:
            raise IndexError(f"a history has a token outside 0..{self.spec.token_count - 1}")
        lengths = counts + self.spec.framed_len(0)
        if self.spec.padding == "embedded":
            lengths[:] = self.spec.frame_len
        return ChunkNumbers(lanes, items, counts, lengths, places)

    def _history_of(self, newest: Sequence[Tokens], refs: Sequence[SlotRef]) -> list[int]:
        """The first row that has the same history; the row itself if no patch leaves a trunk."""
        geometries = {id(ref.slab): ref.geometry for ref in refs}.values()
        count = len(self._network.table.blocks)
        if all(entry_block(geometry, count) == 0 for geometry in geometries):
            return list(range(len(newest)))
        return number_histories([np.asarray(h, dtype=np.int32) for h in newest])[1]


class Staging:
    """Numbers on their way to the device, in memory that it reads by itself."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._memory = torch.empty(0, dtype=torch.int32)
        self._sent = torch.cuda.Event() if self._is_cuda else None

    def free(self, size: int) -> Indices:
        """A buffer int32 [size] to fill; waits until what it held has arrived."""
        if self._sent is not None:
            self._sent.synchronize()
        if len(self._memory) < size:
            self._memory = torch.empty(size, dtype=torch.int32, pin_memory=self._is_cuda)
        return self._memory[:size].numpy()

    def send(self, into: Tensor) -> None:
        """Begin to copy as much as ``into`` [size] holds, on the current stream."""
        into.copy_(self._memory[: len(into)], non_blocking=True)
        if self._sent is not None:
            self._sent.record()
