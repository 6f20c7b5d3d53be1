"""The launches of one shape of chunk, captured as a CUDA graph when the shape comes again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peterrec.model.inference.batch_plan import Stage
from peterrec.model.inference.gpu.blocks import FusedBlocks, RunPatch, SequenceRun, States
from peterrec.model.inference.gpu.embed_pool_kernels import (
    EnteringRun,
    FramedItems,
    enter,
    pool_user_vectors,
    spread,
)
from peterrec.model.inference.gpu.layout import (
    ALIGNED,
    ChunkShape,
    Levels,
    Parts,
    StageParts,
    entry_level,
    lay_out,
    levels,
    padded,
)
from peterrec.model.inference.gpu.reader_kernel import Reading, read_items
from peterrec.model.inference.weight_pool import new_stream
from peterrec.model.network.backbone import Backbone


class FusedNetwork:
    """The backbone on its device as the kernels read it, its levels' places there included."""

    def __init__(self, backbone: Backbone, dtype: torch.dtype) -> None:
        self.spec = backbone.spec
        self.device = backbone.embedding.weight.device
        self.dtype = dtype
        self.table: Levels = levels(backbone.spec)
        self.embedding = backbone.embedding.weight.detach().to(dtype).contiguous()
        self.blocks = FusedBlocks(backbone, self.table, dtype)
        self.offsets = torch.from_numpy(self.table.entering).to(self.device)
        sizes = [padded(int(size)) for size in self.table.counts[:, -1]]
        self.level_starts = [0, *np.cumsum(sizes).tolist()]
        self.starts = torch.tensor(self.level_starts, dtype=torch.int32, device=self.device)


class Workspace:
    """Device memory that chunks of up to ``rows`` sequences use in turn, of any shape."""

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
class DeviceStage:
    """A stage's numbers on the device, and its runs."""

    block: int
    until: int
    entries: Tensor
    bases: Tensor
    counts: Tensor
    runs: list[SequenceRun]


class ShapeRun:
    """All launches of a shape over fixed addresses; pools that move make another shape."""

    def __init__(
        self,
        shape: ChunkShape,
        stages: Sequence[Stage],
        network: FusedNetwork,
        space: Workspace,
    ) -> None:
        self._network, self._space, self._shape = network, space, shape
        self.parts: Parts = lay_out(shape, network.spec, len(network.table.counts))
        self.ints = torch.zeros(self.parts.size, dtype=torch.int32, device=network.device)
        self.places = self.ints[self.parts.places].view(torch.int64)
        self._pools = [group.pool for stage in stages for group in stage.groups]
        # Held, so that no other pool takes the identity that the shape knows one by.
        self._stages = list(self._device_stages(stages))
        self._graph: torch.cuda.CUDAGraph | None = None
        self._has_run = False

    def run(self) -> Tensor:
        """User vectors float32 [≥ sequences, C] of the chunk whose numbers ``ints`` holds.

        They stay until the next chunk runs. On the second time the launches are captured: by then
        every kernel is compiled, and a shape that comes once is not worth it.
        """
        if self._graph is None and self._has_run and self._network.device.type == "cuda":
            self._graph = self._captured()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._launch()
        self._has_run = True
        return self._space.users

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
        for number, stage in enumerate(self._stages):
            sequence_of, starts = self._space.sequence_of, self._network.starts
            most = int(self._network.table.counts[:, -1].max())
            spread(sequence_of, starts, stage.bases, stage.counts, most)
            if number == 0:
                self._enter(x, stage)
            bases = stage.entries
            for block in range(stage.block, stage.until):
                for run in stage.runs:
                    self._network.blocks.run(States(x, middle, out, bases), block, run)
                x, out = out, x
                bases = stage.bases[self._network.table.blocks[block].second.target]
        top = entry_level(self._network.table, len(self._network.table.blocks))
        users = self._space.users[: self._shape.rows]
        pool_user_vectors(x, users, bases, stage.counts[top], self._network.spec.is_causal)
        self._read(users, stage)

    def _read(self, users: Tensor, last: DeviceStage) -> None:
        """Add to the user vectors what patches read in the items."""
        network, parts = self._network, self.parts
        items, starts, origins = (
            self.ints[part] for part in (parts.items, parts.starts, parts.origins)
        )
        for run in last.runs:
            if run.patch is None or not run.patch.geometry.queries:
                continue
            reading = Reading(items, starts, origins, run.bounds[0, 2:], run.patch.slots)
            eps, patch = network.spec.layer_norm_eps, run.patch
            read_items(users, network.embedding, reading, patch.geometry, patch.tensors, eps)

    def _enter(self, x: Tensor, stage: DeviceStage) -> None:
        network = self._network
        items, starts = self.ints[self.parts.items], self.ints[self.parts.starts]
        framed = FramedItems(items, starts, network.offsets)
        for run in stage.runs:
            patch = run.patch
            entering = EnteringRun(
                run.sequence_of[0],
                run.bounds[0],
                run.rows * run.per_sequence[0],
                run.bases[0],
                starts if patch is None else patch.slots,
                None if patch is None else patch.tensors.get("patch.cls"),
            )
            enter(x, network.embedding, framed, entering, network.spec)

    def _device_stages(self, stages: Sequence[Stage]) -> Iterator[DeviceStage]:
        level_count = len(self._network.table.counts)
        ends = [stage.block for stage in stages[1:]] + [len(self._network.table.blocks)]
        for stage, part, until in zip(stages, self.parts.stages, ends, strict=True):
            slots = self.ints[part.slots]
            patches: list[RunPatch | None] = [
                RunPatch(group.geometry, group.pool.tensors, slots) for group in stage.groups
            ]
            has_trunk = not stage.groups or stage.groups[0].start > 0
            runs = [self._sequence_run(part, 0, None)] if has_trunk else []
            runs += [self._sequence_run(part, at, patch) for at, patch in enumerate(patches, 1)]
            yield DeviceStage(
                stage.block,
                until,
                self.ints[part.entries],
                self.ints[part.bases].view(level_count, -1),
                self.ints[part.counts].view(level_count, -1)[:, : self._shape.rows],
                runs,
            )

    def _sequence_run(self, part: StageParts, number: int, patch: RunPatch | None) -> SequenceRun:
        rows, network = self._shape.rows, self._network
        level_count = len(network.table.counts)
        return SequenceRun(
            rows=rows,
            sequence_of=[
                self._space.sequence_of[rows * start :] for start in network.level_starts[:-1]
            ],
            per_sequence=network.table.counts[:, self._shape.length].tolist(),
            bases=self.ints[part.bases].view(level_count, -1),
            counts=self.ints[part.counts].view(level_count, -1),
            bounds=self.ints[part.bounds].view(-1, level_count, ALIGNED)[number],
            patch=patch,
        )
