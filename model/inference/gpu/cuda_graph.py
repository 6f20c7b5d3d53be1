"""The launches for chunks of one key, captured as a CUDA graph."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peterrec.model.inference.batch_plan import Segment
from peterrec.model.inference.gpu.blocks import FusedBlocks, RunPatch, SequenceRun, States
from peterrec.model.inference.gpu.embed_pool_kernels import (
    CollatedItems,
    EnteringRun,
    enter,
    pool_user_vectors,
    spread,
)
from peterrec.model.inference.gpu.layout import (
    ALIGNED,
    GraphKey,
    Levels,
    Parts,
    SegmentParts,
    entry_level,
    lay_out,
    levels,
    padded,
)
from peterrec.model.inference.gpu.reader_kernel import Reading, read_items
from peterrec.model.inference.weight_pool import new_stream
from peterrec.model.network.backbone import Backbone

RUNS_WITHOUT_CAPTURE = 8
"""Batches that a key's launches run one by one if the device has no idle moment to capture them."""


class FusedNetwork:
    """A backbone's weights and levels on its device, as the kernels read them."""

    def __init__(self, backbone: Backbone, dtype: torch.dtype) -> None:
        self.spec = backbone.spec
        self.device = backbone.embedding.weight.device
        self.dtype = dtype
        self.table: Levels = levels(backbone.spec)
        self.embedding = backbone.embedding.weight.detach().to(dtype).contiguous()
        self.blocks = FusedBlocks(backbone, self.table, dtype)
        self.positions = torch.from_numpy(self.table.entering).to(self.device)
        sizes = [padded(int(size)) for size in self.table.counts[:, -1]]
        self.level_starts = [0, *np.cumsum(sizes).tolist()]
        self.level_starts_on_device = torch.tensor(
            self.level_starts, dtype=torch.int32, device=self.device
        )


class Workspace:
    """Device memory for activations that chunks of up to ``rows`` sequences use in turn."""

    def __init__(self, network: FusedNetwork, rows: int) -> None:
        device, channels = network.device, network.spec.channels
        self.rows = rows
        entries = rows * int(network.table.counts[:, -1].max())
        self.states = [
            torch.empty(entries, channels, dtype=network.dtype, device=device) for _ in range(3)
        ]
        self.sequence_of = torch.empty(
            rows * network.level_starts[-1], dtype=torch.int32, device=device
        )
        self.users = torch.empty(rows, channels, device=device)


@dataclass(frozen=True, slots=True)
class DeviceSegment:
    """A segment's numbers on the device, and its runs."""

    block: int
    until: int
    entries: Tensor
    offsets: Tensor
    counts: Tensor
    runs: list[SequenceRun]


class ChunkGraph:
    """All launches for one key, over fixed addresses. When a pool moves, its key changes."""

    def __init__(
        self,
        key: GraphKey,
        segments: Sequence[Segment],
        network: FusedNetwork,
        space: Workspace,
    ) -> None:
        self._network, self._space, self.key = network, space, key
        self.parts: Parts = lay_out(key, network.spec, len(network.table.counts))
        self.ints = torch.zeros(self.parts.size, dtype=torch.int32, device=network.device)
        self.places = self.ints[self.parts.places].view(torch.int64)
        self._pools = [group.pool for segment in segments for group in segment.groups]
        # References to the pools, so that no other pool gets an ``id`` that is part of the key.
        self._segments = list(self._device_segments(segments))
        self._graph: torch.cuda.CUDAGraph | None = None
        self._runs = 0

    @property
    def is_wanted(self) -> bool:
        """True if it is used and its launches are not captured."""
        return self._graph is None and self._runs > 0

    def run(self) -> Tensor:
        """User vectors float32 [≥ sequences, C] of the chunk whose numbers are in ``ints``.

        They are valid until the next chunk runs. A batch does not wait for a capture, which takes
        several times as long as the launches, unless the device was never idle meanwhile.
        """
        self._runs += 1
        if self._graph is None and self._runs > RUNS_WITHOUT_CAPTURE:
            self.capture()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._launch()
        return self._space.users

    def capture(self) -> None:
        """Capture the launches, for all later runs. They must have run before, so that every
        kernel is compiled and loaded. Does nothing on a CPU."""
        if self._network.device.type == "cuda":
            self._graph = self._captured()

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), new_stream(self._network.device)
        assert stream is not None
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._launch()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return graph

    def _launch(self) -> None:
        x, middle, out = self._space.states
        for number, segment in enumerate(self._segments):
            sequence_of, starts = self._space.sequence_of, self._network.level_starts_on_device
            most = int(self._network.table.counts[:, -1].max())
            spread(sequence_of, starts, segment.offsets, segment.counts, most)
            if number == 0:
                self._enter(x, segment)
            offsets = segment.entries
            for block in range(segment.block, segment.until):
                for run in segment.runs:
                    self._network.blocks.run(States(x, middle, out, offsets), block, run)
                x, out = out, x
                offsets = segment.offsets[self._network.table.blocks[block].second.target]
        top = entry_level(self._network.table, len(self._network.table.blocks))
        users = self._space.users[: self.key.rows]
        pool_user_vectors(x, users, offsets, segment.counts[top], self._network.spec.is_causal)
        self._read(users, segment)

    def _read(self, users: Tensor, last: DeviceSegment) -> None:
        """Add the changes of the patches' item readers to the user vectors."""
        network, parts = self._network, self.parts
        items, starts, origins = (
            self.ints[part] for part in (parts.items, parts.item_offsets, parts.origins)
        )
        for run in last.runs:
            if run.patch is None or not run.patch.geometry.queries:
                continue
            reading = Reading(items, starts, origins, run.bounds[0, 2:], run.patch.slots)
            eps, patch = network.spec.layer_norm_eps, run.patch
            read_items(users, network.embedding, reading, patch.geometry, patch.tensors, eps)

    def _enter(self, x: Tensor, segment: DeviceSegment) -> None:
        network = self._network
        items, starts = self.ints[self.parts.items], self.ints[self.parts.item_offsets]
        collated = CollatedItems(items, starts, network.positions)
        for run in segment.runs:
            patch = run.patch
            entering = EnteringRun(
                run.sequence_of[0],
                run.bounds[0],
                run.rows * run.per_sequence[0],
                run.offsets[0],
                starts if patch is None else patch.slots,
                None if patch is None else patch.tensors.get("patch.cls"),
            )
            enter(x, network.embedding, collated, entering, network.spec)

    def _device_segments(self, segments: Sequence[Segment]) -> Iterator[DeviceSegment]:
        level_count = len(self._network.table.counts)
        ends = [segment.block for segment in segments[1:]] + [len(self._network.table.blocks)]
        for segment, part, until in zip(segments, self.parts.segments, ends, strict=True):
            slots = self.ints[part.slots]
            patches: list[RunPatch | None] = [
                RunPatch(group.geometry, group.pool.tensors, slots) for group in segment.groups
            ]
            has_trunk = not segment.groups or segment.groups[0].start > 0
            runs = [self._sequence_run(part, 0, None)] if has_trunk else []
            runs += [self._sequence_run(part, at, patch) for at, patch in enumerate(patches, 1)]
            yield DeviceSegment(
                segment.block,
                until,
                self.ints[part.entries],
                self.ints[part.offsets].view(level_count, -1),
                self.ints[part.counts].view(level_count, -1)[:, : self.key.rows],
                runs,
            )

    def _sequence_run(self, part: SegmentParts, number: int, patch: RunPatch | None) -> SequenceRun:
        rows, network = self.key.rows, self._network
        level_count = len(network.table.counts)
        return SequenceRun(
            rows=rows,
            sequence_of=[
                self._space.sequence_of[rows * start :] for start in network.level_starts[:-1]
            ],
            per_sequence=network.table.counts[:, self.key.length].tolist(),
            offsets=self.ints[part.offsets].view(level_count, -1),
            counts=self.ints[part.counts].view(level_count, -1),
            bounds=self.ints[part.bounds].view(-1, level_count, ALIGNED)[number],
            patch=patch,
        )
