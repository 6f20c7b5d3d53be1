"""A backbone on a CPU over packed lanes.

In float32 one kernel runs a stretch of blocks, products and all. With operands rounded to bfloat16
PyTorch's library does the products, a kernel what lies between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import local
from typing import NamedTuple, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from model.backbone import Backbone, DilatedConv, ResidualBlock
from model.cone import ConvPlan, plan
from model.framing import frame_histories
from model.kernels.cpu import Linear, packed_linear
from model.kernels.packed_kernels import (
    branch,
    enter,
    finish,
    gather,
    width_of,
)
from model.kernels.patch_modes import mode_of
from model.kernels.reader_kernel import read_items, reader_scratch
from model.kernels.tile_kernels import Scratch, packed_panels, run_blocks
from model.lanes import Group, Indices, Stage
from model.packed_plan import Chunk, ReadItems, TrunkState, position_counts
from model.patch import READER
from model.slab import Slab
from model.tiles import tile_table, tiled_weight

FEW_OPERATIONS = 2.5e6
"""Rounding the operands of products smaller than this would save nothing."""

EXACT_BLOCKS = 1
"""So many blocks at the bottom multiply in float32 in any case: half of what bfloat16 changes in an
answer is the rounding of the first block, which all others read (``bench numerics``)."""

NOTHING = 0
"""The address of what is not there."""

ROUNDED = np.uint16(0)

NUMBERS: dict[torch.dtype, np.float32 | np.uint16] = {
    torch.float32: np.float32(0),
    torch.bfloat16: ROUNDED,
}
"""A sample of how the kernels see each storage type."""


@dataclass(frozen=True, slots=True)
class PackedConv:
    """A convolution's weights and tables; ``args`` are what the kernels are told of them.

    ``linear`` is the product over concatenated taps, its operands rounded to bfloat16; None where
    that is not wanted. ``taps`` is the address of the longest row's int32 [N, k].
    """

    tensors: tuple[Tensor, ...]
    arrays: tuple[Indices, ...]
    linear: Linear | None
    taps: int
    args: "ConvArgs"


class ConvArgs(NamedTuple):
    """Addresses and sizes of a convolution: ``run_blocks`` reads them all, ``finish`` some.

    ``tiles`` int32 [tile_count, ..] are ``tile_table``'s; ``combined`` and ``taps_weight`` packed
    float32 weights; ``residual`` int32 [N] says where its outputs stand among the block's inputs,
    NOTHING for a block's first convolution; ``longest_in`` and ``longest`` are the longest row's
    inputs and outputs.
    """

    tiles: int
    tile_count: int
    combined: int
    taps_weight: int
    bias: int
    norm_weight: int
    norm_bias: int
    residual: int
    longest_in: int
    longest: int


class Room(NamedTuple):
    """Uninitialised float32 storage [rows, columns], and where it lies."""

    tensor: Tensor
    rows: int
    address: int


@dataclass(slots=True)
class Run:
    """A chunk in flight: lane l holds ``bases[level, l] .. bases[level, l + 1]`` of ``x``."""

    chunk: Chunk
    lengths: Indices
    bases: Indices
    x: Room


class Buffers(local):
    """Storage of a thread, kept from chunk to chunk."""

    def __init__(self) -> None:
        self._stored: dict[str, Room] = {}

    def room(self, name: str, rows: int, columns: int) -> Room:
        """At least ``rows`` long; what had the name before is overwritten."""
        found = self._stored.get(name)
        if found is None or found.rows < rows:
            tensor = torch.empty(rows * 5 // 4, columns)
            found = self._stored[name] = Room(tensor, len(tensor), tensor.data_ptr())
        return found

    def states(self, rows: int, channels: int, beside: Room | None = None) -> Room:
        """Room for states; it never overlaps ``beside``."""
        room = self.room("states", rows, channels)
        return self.room("other states", rows, channels) if room is beside else room


def _address(array: np.ndarray) -> int:
    """Where an array lies; four times as fast as ``array.ctypes.data``."""
    return torch.from_numpy(array).data_ptr()


def _joined(states: Sequence[Tensor], out: Tensor) -> None:
    if len(states) == 1:
        out.copy_(states[0])
    else:
        torch.cat(list(states), out=out)


class PackedBlocks:
    """Everything that is fixed for a backbone. May run on several threads at once."""

    def __init__(self, backbone: Backbone, dtype: torch.dtype) -> None:
        self.spec = spec = backbone.spec
        cone = plan(spec, spec.frame_len)
        self.counts = position_counts(cone, spec)
        self._embedding = backbone.embedding.weight.detach().float().contiguous()
        self._inputs = np.ascontiguousarray(cone.inputs, dtype=np.int32)
        self._inputs_address = _address(self._inputs)
        self._exact_blocks = len(backbone.blocks) if dtype == torch.float32 else EXACT_BLOCKS
        self._convs: list[PackedConv] = []
        for block, at in zip(backbone.blocks, cone.blocks, strict=True):
            assert isinstance(block, ResidualBlock)
            rounded = dtype if block.block >= self._exact_blocks else None
            for number, (conv, norm, outputs, residual) in enumerate(
                (
                    (block.conv1, block.norm1, at.first, None),
                    (block.conv2, block.norm2, at.second, at.residual),
                ),
                start=2 * block.block,
            ):
                longest = (int(self.counts[number, -1]), int(self.counts[number + 1, -1]))
                self._convs.append(_pack(conv, norm, outputs, residual, longest, rounded))
        self._args = np.array([conv.args for conv in self._convs], dtype=np.int64)
        self._args_address = _address(self._args)
        self._patch_args: WeakKeyDictionary[Slab, tuple[int, Patches]] = WeakKeyDictionary()
        self._unpatched = Patches.of([UNPATCHED] * len(self._convs))
        self._scratches: dict[int, tuple[Scratch, np.ndarray, int]] = {}
        lengths = np.arange(spec.frame_len + 1, dtype=np.int32)
        self._bases_alone: list[Indices] = [self._added_up(lengths[n : n + 1]) for n in lengths]
        centre, eps = cone.blocks[0].first.centre, np.float32(spec.layer_norm_eps)
        self._width = width_of(spec.channels)
        self._constants = (self._width, spec.kernel_size, centre, eps)
        self._buffers = Buffers()

    def run(self, chunk: Chunk) -> tuple[Tensor, list[TrunkState]]:
        """User vectors float32 [rows, C] as ``lanes.rows``, and states worth keeping."""
        stages, kept = chunk.lanes.stages, []
        run = self._begin(chunk)
        for stage, following in zip(stages, [*stages[1:], None], strict=True):
            self._branch(run, stage)
            self._run_stage(run, stage, following.block if following else len(self._convs) // 2)
            if following is not None and chunk.keys:
                kept += _trunk_states(run, following)
        users = self._pool(run)
        if chunk.read is not None:
            self._read(chunk.read, stages[-1].groups, users)
        return users, kept

    def _read(self, read: ReadItems, groups: Sequence[Group], users: Tensor) -> None:
        """Add to the user vectors [rows, C] what the groups' patches read in the items."""
        self._require_tokens(read.tokens)
        spec = self.spec
        for group in groups:
            geometry, tensors = group.geometry, group.slab.tensors
            if not geometry.queries:
                continue
            sizes = (spec.max_len, spec.channels, geometry.queries, geometry.bottleneck)
            weights = [tensors[f"patch.{name}"].data_ptr() for name in READER]
            read_items(
                _address(read.tokens), _address(read.starts), _address(read.history),
                self._embedding.data_ptr(), users.data_ptr(),
                self._buffers.room("reader", reader_scratch(*sizes), 1).address, spec.max_len,
                group.start, group.stop, _address(group.slots), geometry.queries,
                geometry.bottleneck, *weights, self._width, self._constants[-1],
                NUMBERS[group.slab.dtype],
            )  # fmt: skip

    def _begin(self, chunk: Chunk) -> Run:
        """Lanes at the first stage's input: embedded, or as their known states."""
        first, spec = chunk.lanes.stages[0], self.spec
        lengths = np.array([spec.framed_len(len(h)) for h in chunk.histories], dtype=np.int32)
        if spec.padding == "embedded":
            lengths[:] = spec.frame_len
        bases = self._bases(lengths)
        size = int(bases[2 * first.block, -1])
        x = self._buffers.states(size, spec.channels)
        run = Run(chunk, lengths, bases, x)
        if chunk.states:
            _joined(chunk.states, x.tensor.narrow(0, 0, size))
        else:
            self._enter(run, frame_histories(chunk.histories, spec).numpy().astype(np.int32), first)
        return run

    def _enter(self, run: Run, framed: Indices, stage: Stage) -> None:
        """Embed framed tokens int32 [lanes, T]; the kernel would read whatever it is told to."""
        self._require_tokens(framed)
        first = stage.groups[0].start if stage.groups else len(framed)
        places = [(0, first, NOTHING, NOTHING, NUMBERS[torch.float32])] if first else []
        for group in stage.groups:
            own = group.slab.tensors.get("patch.cls")
            cls = NOTHING if own is None else own.data_ptr()
            slots = _address(group.slots)
            places.append((group.start, group.stop, slots, cls, NUMBERS[group.slab.dtype]))
        tokens, bases = _address(framed), _address(run.bases)
        for start, stop, slots, cls, number in places:
            enter(
                tokens, framed.shape[1], self._inputs_address, len(self._inputs),
                self._embedding.data_ptr(), run.x.address, bases, start, stop, slots, cls,
                self._width, number,
            )  # fmt: skip

    def _require_tokens(self, tokens: Indices) -> None:
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.spec.token_count:
            raise IndexError(f"a history has a token outside 0..{self.spec.token_count - 1}")

    def _branch(self, run: Run, stage: Stage) -> None:
        """Copy lanes to where the stage's rows begin."""
        if stage.select is None:
            return
        level, old = 2 * stage.block, run.bases
        run.lengths = run.lengths[stage.select]
        run.bases = self._bases(run.lengths)
        new = self._buffers.states(int(run.bases[level, -1]), self.spec.channels, run.x)
        branch(
            run.x.address, _address(old[level]), new.address, _address(run.bases[level]),
            _address(stage.select), len(stage.select), self._width,
        )  # fmt: skip
        run.x = new

    def _run_stage(self, run: Run, stage: Stage, end: int) -> None:
        """Blocks from the stage's first up to ``end``."""
        if stage.block == end:
            return
        parts = self._parts(len(run.lengths), stage.groups)
        exact_end = end if self._is_few(run, stage) else min(end, self._exact_blocks)
        if stage.block < exact_end:
            self._run_exact(run, parts, stage.block, exact_end)
        begin = max(stage.block, exact_end)
        if begin < end:
            self._run_rounded(run, parts, begin, end)

    def _is_few(self, run: Run, stage: Stage) -> bool:
        """True if rounding would save nothing."""
        positions = int(run.bases[2 * stage.block + 1, -1])
        return 2 * positions * self.spec.kernel_size * self.spec.channels**2 < FEW_OPERATIONS

    def _run_exact(self, run: Run, parts: Sequence["Part"], begin: int, end: int) -> None:
        """Blocks [begin, end) in float32."""
        channels, lanes = self.spec.channels, len(run.lengths)
        rows = int(run.bases[2 * begin, -1])
        other = self._buffers.states(rows, channels, run.x)
        scratch, places = self._scratch(parts)
        for part in parts:
            run_blocks(
                run.x.address, other.address, _address(run.bases), lanes, begin, end,
                *part.lanes, part.patches.address, self._args_address, scratch, places,
                *self._constants, part.number,
            )  # fmt: skip
        run.x = other if (end - begin) % 2 else run.x

    def _run_rounded(self, run: Run, parts: Sequence["Part"], begin: int, end: int) -> None:
        """Blocks [begin, end) with products of rounded operands."""
        level, channels, bases = 2 * begin, self.spec.channels, run.bases
        width = self.spec.kernel_size * channels
        base, step = _address(bases), bases.strides[0]
        rows = bases[level + 1 : 2 * end + 1, -1].tolist()
        gathered = self._buffers.room("gathered", rows[0], width)
        address, first = gathered.address, self._convs[level]
        gather(
            run.x.address, base + level * step, address, base + (level + 1) * step,
            len(run.lengths), first.taps, first.args.longest_in, first.args.longest,
            self._width, self.spec.kernel_size, ROUNDED,
        )  # fmt: skip
        scratch, _ = self._scratch(parts)
        middle = self._buffers.room("middle", self.spec.frame_len, channels).address
        operands = gathered.tensor.view(torch.bfloat16).view(-1, width)
        x, out = run.x, run.x
        for conv, count in zip(range(level, 2 * end), rows, strict=True):
            own, is_last = self._convs[conv], conv + 1 == 2 * end
            assert own.linear is not None
            y = own.linear(operands.narrow(0, 0, count))
            to = middle
            if conv % 2:
                out = self._buffers.states(count, channels, x)
                to = out.address
            block = conv - conv % 2
            following = None if is_last else self._convs[conv + 1]
            places = (
                y.data_ptr(), address, x.address, base + block * step, to,
                base + (conv + 1) * step, NOTHING if is_last else base + (conv + 2) * step, scratch,
            )  # fmt: skip
            sizes = (
                own.args.norm_weight, own.args.norm_bias, own.args.residual,
                self._convs[block].args.longest_in, own.args.longest,
                NOTHING if following is None else following.taps,
                0 if following is None else following.args.longest,
            )  # fmt: skip
            for part in parts:
                finish(
                    *places, *part.lanes, *part.patches.args[conv], *sizes, *self._constants,
                    ROUNDED, part.number,
                )  # fmt: skip
            x = out
        run.x = x

    def _parts(self, lanes: int, groups: list[Group]) -> list["Part"]:
        """Lanes by group; those before the first group carry no patch."""
        first = groups[0].start if groups else lanes
        number = NUMBERS[groups[0].slab.dtype if groups else torch.float32]
        parts = [Part((0, first, NOTHING), self._unpatched, number)] if first else []
        for group in groups:
            place = (group.start, group.stop, _address(group.slots))
            parts.append(Part(place, self._patches(group), NUMBERS[group.slab.dtype]))
        return parts

    def _patches(self, group: Group) -> "Patches":
        """The group's tensors at every convolution; looked up anew when its slab has moved."""
        known = self._patch_args.get(group.slab)
        if known is None or known[0] != group.slab.generation:
            patches = Patches.of([_patch_args(group, conv) for conv in range(len(self._convs))])
            known = self._patch_args[group.slab] = (group.slab.generation, patches)
        return known[1]

    def _scratch(self, parts: Sequence["Part"]) -> tuple[int, int]:
        """Addresses of the kernels' float32 scratch, and of where in it what lies."""
        bottleneck = max(part.patches.bottleneck for part in parts)
        known = self._scratches.get(bottleneck)
        if known is None:
            spec = self.spec
            scratch = Scratch.of(spec.frame_len, spec.channels, spec.kernel_size, bottleneck)
            places = np.array(scratch, dtype=np.int64)
            known = self._scratches[bottleneck] = scratch, places, _address(places)
        scratch, _, address = known
        return self._buffers.room("scratch", scratch.size, 1).address, address

    def _pool(self, run: Run) -> Tensor:
        """User vectors [rows, C]: the last state, and the first one's sum with it if non-causal."""
        if self.spec.is_causal:  # the last position is all that is left of a lane
            return run.x.tensor.narrow(0, 0, len(run.lengths)).clone()
        top = run.bases[-1]
        last, first = (torch.from_numpy(at) for at in (top[1:] - 1, top[:-1]))
        return run.x.tensor[last] + run.x.tensor[first]

    def _bases(self, lengths: Indices) -> Indices:
        """Where lanes begin at every level, [2·blocks + 1, lanes + 1]."""
        if len(lengths) == 1:
            return self._bases_alone[int(lengths[0])]
        return self._added_up(lengths)

    def _added_up(self, lengths: Indices) -> Indices:
        bases = np.zeros((len(self.counts), len(lengths) + 1), dtype=np.int32)
        self.counts[:, lengths].cumsum(axis=1, dtype=np.int32, out=bases[:, 1:])
        return bases


PatchArgs = tuple[int, int, int, int, int, int, int, int, int, int, int, int]
"""mode, bottleneck, stacked, index, down, its bias, up, its bias; norms, index, weight, bias."""

UNPATCHED: PatchArgs = (0,) * 12


class Patches(NamedTuple):
    """A slab's tensors at every convolution, for Python and as int64 [convs, 12]."""

    args: Sequence[PatchArgs]
    table: np.ndarray
    address: int
    bottleneck: int

    @classmethod
    def of(cls, args: Sequence[PatchArgs]) -> Self:
        table = np.array(args, dtype=np.int64)
        return cls(args, table, _address(table), int(table[:, 1].max()))


class Part(NamedTuple):
    """Neighbouring lanes (start, stop, address of their slots) with their patches' storage."""

    lanes: tuple[int, int, int]
    patches: "Patches"
    number: np.float32 | np.uint16


def _patch_args(group: Group, number: int) -> PatchArgs:
    geometry, tensors = group.geometry, group.slab.tensors
    block, conv = divmod(number, 2)
    index, norm = geometry.conv_index(block, conv), geometry.norm_index(block, conv)
    if index is None:
        return UNPATCHED
    names = ("patch.down", "patch.down_bias", "patch.up", "patch.up_bias")
    down, down_bias, up, up_bias = (tensors[name].data_ptr() for name in names)
    weight, bias = NOTHING, NOTHING
    if norm is not None:
        weight, bias = (tensors[f"patch.norm_{name}"].data_ptr() for name in ("weight", "bias"))
    return (
        mode_of(geometry), geometry.bottleneck, geometry.patched_convs, index,
        down, down_bias, up, up_bias, len(geometry.blocks), norm or 0, weight, bias,
    )  # fmt: skip


def _trunk_states(run: Run, following: Stage) -> list[TrunkState]:
    """The states that rows branch off from, by history."""
    bases, joined = run.bases[2 * following.block], following.joined
    assert joined is not None
    by_history = dict(zip(joined.histories.tolist(), joined.lanes.tolist(), strict=True))
    return [
        TrunkState(
            (run.chunk.keys[history], following.block),
            run.x.tensor[int(bases[lane]) : int(bases[lane + 1])].clone(),
        )
        for history, lane in by_history.items()
    ]


def _pack(
    conv: DilatedConv,
    norm: torch.nn.LayerNorm,
    at: ConvPlan,
    residual: np.ndarray | None,
    longest: tuple[int, int],
    rounded: torch.dtype | None,
) -> PackedConv:
    """``longest``: inputs and outputs of the longest row."""
    tiled = tiled_weight(conv.weight)
    tensors = tuple(
        tensor.detach().float().contiguous()
        for tensor in (
            packed_panels(tiled.combined), packed_panels(tiled.taps), conv.bias, norm.weight,
            norm.bias,
        )
    )  # fmt: skip
    arrays = [tile_table(at, conv.dilation), np.ascontiguousarray(at.taps, dtype=np.int32)]
    if residual is not None:
        arrays.append(np.ascontiguousarray(residual, dtype=np.int32))
    linear = None
    if rounded is not None:
        weight = conv.weight.detach().transpose(1, 2).flatten(1)  # [C, C, k] -> [C, k·C]
        linear = packed_linear(weight.to(rounded), conv.bias.detach().float())
    combined, taps_weight, bias, norm_weight, norm_bias = (t.data_ptr() for t in tensors)
    args = ConvArgs(
        _address(arrays[0]), len(arrays[0]), combined, taps_weight, bias, norm_weight, norm_bias,
        NOTHING if residual is None else _address(arrays[2]), *longest,
    )  # fmt: skip
    return PackedConv(tensors, tuple(arrays), linear, _address(arrays[1]), args)
