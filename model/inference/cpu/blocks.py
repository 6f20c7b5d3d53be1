"""A backbone on a CPU over packed sequences: one kernel call runs a segment of blocks.

Operands of products are rounded to bfloat16 if that is asked for and the processor has matrix
units, which multiply such operands several times as fast. On other processors float32 is as fast
and more exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import local
from typing import NamedTuple, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from peterrec.model.inference.activation_cache import ActivationKey
from peterrec.model.inference.batch_plan import Group, Indices, Segment, Sequences
from peterrec.model.inference.cpu.block_kernels import Scratch, run_blocks
from peterrec.model.inference.cpu.conv_bfloat16 import packed_pairs, whole_tiles
from peterrec.model.inference.cpu.conv_float32 import packed_panels
from peterrec.model.inference.cpu.patch_kernel import branch, enter, width_of
from peterrec.model.inference.cpu.reader_kernel import read_items, reader_scratch
from peterrec.model.inference.cpu.winograd import tile_table, winograd_weight
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.network.backbone import Backbone, DilatedConv, ResidualBlock
from peterrec.model.network.collate import frame_histories, items_of
from peterrec.model.network.patch import READER
from peterrec.model.network.receptive_field import ConvPlan, Plan, plan
from peterrec.model.spec import BackboneSpec

SPLIT_BLOCKS = 1
"""Blocks at the bottom whose operands have two bfloat16 parts, nearly as exact as float32. Half of
the rounding error of an answer comes from the first block, which all others read
(``bench numerics``)."""

ABSENT = 0
"""The address that stands for a missing tensor."""

Sample = np.float32 | np.uint16

NUMBERS: dict[torch.dtype, Sample] = {torch.float32: np.float32(0), torch.bfloat16: np.uint16(0)}
"""For each storage type, a value whose type kernels are compiled for."""


@dataclass(frozen=True, slots=True)
class PackedConv:
    """A convolution's weights and tables; ``args`` are the addresses that kernels receive."""

    tensors: tuple[Tensor, ...]
    arrays: tuple[Indices, ...]
    args: "ConvArgs"


class ConvArgs(NamedTuple):
    """Addresses and sizes of a convolution.

    ``tiles`` int32 [tile_count, ..] are a ``tile_table``. In float32, ``weight`` is the transformed
    weight in panels and ``other_weight`` the taps' own weight. With rounded operands, ``weight``
    holds pairs of bfloat16, and ``other_weight`` pairs of the remainders or ABSENT; with these, the
    left operands have two parts too. ``residual`` int32 [N] has the places of the outputs among
    the block's inputs, ABSENT for a block's first convolution. ``longest_in`` and ``longest`` are
    the numbers of inputs and outputs of the longest row.
    """

    tiles: int
    tile_count: int
    weight: int
    other_weight: int
    bias: int
    norm_weight: int
    norm_bias: int
    residual: int
    longest_in: int
    longest: int


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
    lengths = np.arange(spec.max_input_len + 1)
    below = [np.searchsorted(positions[::-1], lengths, side="left") for positions in outputs]
    return np.array(below, dtype=np.int32)


class Storage(NamedTuple):
    """Uninitialised float32 storage [rows, columns] and its address."""

    tensor: Tensor
    rows: int
    address: int


@dataclass(slots=True)
class Run:
    """A chunk while it runs: sequence l has rows ``offsets[level, l] .. offsets[level, l + 1]``."""

    chunk: Chunk
    lengths: Indices
    offsets: Indices
    x: Storage


class ThreadBuffers(local):
    """A thread's storage, reused from chunk to chunk."""

    def __init__(self) -> None:
        self._stored: dict[str, Storage] = {}

    def storage(self, name: str, rows: int, columns: int) -> Storage:
        """Storage of at least ``rows`` under a name, whose earlier content is lost."""
        found = self._stored.get(name)
        if found is None or found.rows < rows:
            tensor = torch.empty(rows * 5 // 4, columns)
            found = self._stored[name] = Storage(tensor, len(tensor), tensor.data_ptr())
        return found

    def states(self, rows: int, channels: int, other: Storage | None = None) -> Storage:
        """Storage for activations that does not overlap ``other``."""
        storage = self.storage("states", rows, channels)
        return self.storage("other states", rows, channels) if storage is other else storage


def _address(array: np.ndarray) -> int:
    """Address of an array; four times as fast as ``array.ctypes.data``."""
    return torch.from_numpy(array).data_ptr()


def _concatenate(states: Sequence[Tensor], out: Tensor) -> None:
    if len(states) == 1:
        out.copy_(states[0])
    else:
        torch.cat(list(states), out=out)


class PackedBlocks:
    """A backbone's weights and tables for the kernels. Several threads may run chunks together."""

    def __init__(self, backbone: Backbone, is_rounded: bool) -> None:
        self.spec = spec = backbone.spec
        needed = plan(spec, spec.max_input_len)
        self.counts = position_counts(needed, spec)
        self._embedding = backbone.embedding.weight.detach().float().contiguous()
        self._inputs = np.ascontiguousarray(needed.inputs, dtype=np.int32)
        self._inputs_address = _address(self._inputs)
        self._convs: list[PackedConv] = []
        for block, at in zip(backbone.blocks, needed.blocks, strict=True):
            assert isinstance(block, ResidualBlock)
            parts = 0 if not is_rounded else 2 if block.block < SPLIT_BLOCKS else 1
            for number, (conv, norm, outputs, residual) in enumerate(
                (
                    (block.conv1, block.norm1, at.first, None),
                    (block.conv2, block.norm2, at.second, at.residual),
                ),
                start=2 * block.block,
            ):
                longest = (int(self.counts[number, -1]), int(self.counts[number + 1, -1]))
                self._convs.append(_pack(conv, norm, outputs, residual, longest, parts))
        self._args = np.array([conv.args for conv in self._convs], dtype=np.int64)
        self._args_address = _address(self._args)
        self._patch_args: WeakKeyDictionary[WeightPool, tuple[int, Patches]] = WeakKeyDictionary()
        self._unpatched = Patches.of([UNPATCHED] * len(self._convs))
        self._scratches: dict[int, tuple[Scratch, np.ndarray, int]] = {}
        lengths = np.arange(spec.max_input_len + 1, dtype=np.int32)
        self._offsets_alone: list[Indices] = [self._added_up(lengths[n : n + 1]) for n in lengths]
        centre, eps = needed.blocks[0].first.centre, np.float32(spec.layer_norm_eps)
        self._width = width_of(spec.channels)
        self._eps = eps
        rounded = True if is_rounded else None
        self._constants = (self._width, spec.kernel_size, centre, eps, rounded)
        self._buffers = ThreadBuffers()

    def run(self, chunk: Chunk) -> tuple[Tensor, list[Activation]]:
        """User vectors float32 [rows, C] as ``sequences.rows``, and activations to cache."""
        segments, kept = chunk.sequences.segments, []
        run = self._begin(chunk)
        for segment, following in zip(segments, [*segments[1:], None], strict=True):
            self._branch(run, segment)
            self._run_segment(run, segment, following.block if following else len(self._convs) // 2)
            if following is not None and chunk.keys:
                kept += _activations(run, following)
        users = self._pool(run)
        if chunk.read is not None:
            self._read(chunk.read, segments[-1].groups, users)
        return users, kept

    def _read(self, read: ReadItems, groups: Sequence[Group], users: Tensor) -> None:
        """Add the results of the groups' item readers to the user vectors [rows, C]."""
        self._require_tokens(read.tokens)
        spec = self.spec
        for group in groups:
            geometry, tensors = group.geometry, group.pool.tensors
            if not geometry.queries:
                continue
            sizes = (spec.max_len, spec.channels, geometry.queries, geometry.bottleneck)
            weights = [tensors[f"patch.{name}"].data_ptr() for name in READER]
            read_items(
                _address(read.tokens), _address(read.offsets), _address(read.history),
                self._embedding.data_ptr(), users.data_ptr(),
                self._buffers.storage("reader", reader_scratch(*sizes), 1).address, spec.max_len,
                group.start, group.stop, _address(group.slots), geometry.queries,
                geometry.bottleneck, *weights, self._width, self._eps,
                NUMBERS[group.pool.dtype],
            )  # fmt: skip

    def _begin(self, chunk: Chunk) -> Run:
        """Fill the first segment's input with embeddings, or with cached activations."""
        first, spec = chunk.sequences.segments[0], self.spec
        lengths = np.array([spec.input_len(len(h)) for h in chunk.histories], dtype=np.int32)
        offsets = self._offsets(lengths)
        size = int(offsets[2 * first.block, -1])
        x = self._buffers.states(size, spec.channels)
        run = Run(chunk, lengths, offsets, x)
        if chunk.states:
            _concatenate(chunk.states, x.tensor.narrow(0, 0, size))
        else:
            self._enter(run, frame_histories(chunk.histories, spec).numpy().astype(np.int32), first)
        return run

    def _enter(self, run: Run, collated: Indices, segment: Segment) -> None:
        """Embed collated tokens int32 [sequences, T], checked first: the kernel checks nothing."""
        self._require_tokens(collated)
        first = segment.groups[0].start if segment.groups else len(collated)
        places = [(0, first, ABSENT, ABSENT, NUMBERS[torch.float32])] if first else []
        for group in segment.groups:
            own = group.pool.tensors.get("patch.cls")
            cls = ABSENT if own is None else own.data_ptr()
            slots = _address(group.slots)
            places.append((group.start, group.stop, slots, cls, NUMBERS[group.pool.dtype]))
        tokens, offsets = _address(collated), _address(run.offsets)
        for start, stop, slots, cls, number in places:
            enter(
                tokens, collated.shape[1], self._inputs_address, len(self._inputs),
                self._embedding.data_ptr(), run.x.address, offsets, start, stop, slots, cls,
                self._width, number,
            )  # fmt: skip

    def _require_tokens(self, tokens: Indices) -> None:
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.spec.token_count:
            raise IndexError(f"a history has a token outside 0..{self.spec.token_count - 1}")

    def _branch(self, run: Run, segment: Segment) -> None:
        """Copy sequences for the rows that branch off at this segment."""
        if segment.gather is None:
            return
        level, old = 2 * segment.block, run.offsets
        run.lengths = run.lengths[segment.gather]
        run.offsets = self._offsets(run.lengths)
        new = self._buffers.states(int(run.offsets[level, -1]), self.spec.channels, run.x)
        branch(
            run.x.address, _address(old[level]), new.address, _address(run.offsets[level]),
            _address(segment.gather), len(segment.gather), self._width,
        )  # fmt: skip
        run.x = new

    def _run_segment(self, run: Run, segment: Segment, end: int) -> None:
        """Compute the blocks from the segment's first up to ``end``."""
        if segment.block == end:
            return
        channels, sequences = self.spec.channels, len(run.lengths)
        rows = int(run.offsets[2 * segment.block, -1])
        other = self._buffers.states(rows, channels, run.x)
        parts = self._parts(sequences, segment.groups)
        scratch, places = self._scratch(parts)
        for part in parts:
            run_blocks(
                run.x.address, other.address, _address(run.offsets), sequences, segment.block, end,
                *part.sequences, part.patches.address, self._args_address, scratch, places,
                *self._constants, part.number,
            )  # fmt: skip
        run.x = other if (end - segment.block) % 2 else run.x

    def _parts(self, sequences: int, groups: list[Group]) -> list["Part"]:
        """Split sequences by group; those before the first group carry no patch."""
        first = groups[0].start if groups else sequences
        number = NUMBERS[groups[0].pool.dtype if groups else torch.float32]
        parts = [Part((0, first, ABSENT), self._unpatched, number)] if first else []
        for group in groups:
            place = (group.start, group.stop, _address(group.slots))
            parts.append(Part(place, self._patches(group), NUMBERS[group.pool.dtype]))
        return parts

    def _patches(self, group: Group) -> "Patches":
        """Addresses of the group's tensors by convolution, renewed when its pool has moved."""
        known = self._patch_args.get(group.pool)
        if known is None or known[0] != group.pool.generation:
            patches = Patches.of([_patch_args(group, conv) for conv in range(len(self._convs))])
            known = self._patch_args[group.pool] = (group.pool.generation, patches)
        return known[1]

    def _scratch(self, parts: Sequence["Part"]) -> tuple[int, int]:
        """Addresses of the kernel's float32 scratch and of its ``Scratch``."""
        bottleneck = max(part.patches.bottleneck for part in parts)
        known = self._scratches.get(bottleneck)
        if known is None:
            spec = self.spec
            scratch = Scratch.of(spec.max_input_len, spec.channels, spec.kernel_size, bottleneck)
            places = np.array(scratch, dtype=np.int64)
            known = self._scratches[bottleneck] = scratch, places, _address(places)
        scratch, _, address = known
        return self._buffers.storage("scratch", scratch.size, 1).address, address

    def _pool(self, run: Run) -> Tensor:
        """User vectors [rows, C]: the last state, plus the first one if non-causal."""
        if self.spec.is_causal:  # a sequence has only its last position left
            return run.x.tensor.narrow(0, 0, len(run.lengths)).clone()
        top = run.offsets[-1]
        last, first = (torch.from_numpy(at) for at in (top[1:] - 1, top[:-1]))
        return run.x.tensor[last] + run.x.tensor[first]

    def _offsets(self, lengths: Indices) -> Indices:
        """Offsets of the sequences at every level, [2·blocks + 1, sequences + 1]."""
        if len(lengths) == 1:
            return self._offsets_alone[int(lengths[0])]
        return self._added_up(lengths)

    def _added_up(self, lengths: Indices) -> Indices:
        offsets = np.zeros((len(self.counts), len(lengths) + 1), dtype=np.int32)
        self.counts[:, lengths].cumsum(axis=1, dtype=np.int32, out=offsets[:, 1:])
        return offsets


PatchArgs = tuple[int, int, int, int, int, int, int, int, int, int, int, int]
"""The arguments of a patch, as numbers and addresses.

The kernel mode, the bottleneck, the patches per slot, and the index among them. The addresses of
down, its bias, up and its bias. The norms per slot, the index among them, and the addresses of
weight and bias.
"""

UNPATCHED: PatchArgs = (0,) * 12


class Patches(NamedTuple):
    """A pool's tensors at every convolution, int64 [convs, 12]."""

    table: np.ndarray
    address: int
    bottleneck: int

    @classmethod
    def of(cls, args: Sequence[PatchArgs]) -> Self:
        table = np.array(args, dtype=np.int64)
        return cls(table, _address(table), int(table[:, 1].max()))


class Part(NamedTuple):
    """Neighbouring sequences (start, stop, address of their slots) with their patches' storage."""

    sequences: tuple[int, int, int]
    patches: "Patches"
    number: Sample


def _patch_args(group: Group, number: int) -> PatchArgs:
    geometry, tensors = group.geometry, group.pool.tensors
    block, conv = divmod(number, 2)
    index, norm = geometry.conv_index(block, conv), geometry.norm_index(block, conv)
    if index is None:
        return UNPATCHED
    names = ("patch.down", "patch.down_bias", "patch.up", "patch.up_bias")
    down, down_bias, up, up_bias = (tensors[name].data_ptr() for name in names)
    weight, bias = ABSENT, ABSENT
    if norm is not None:
        weight, bias = (tensors[f"patch.norm_{name}"].data_ptr() for name in ("weight", "bias"))
    return (
        geometry.kernel_mode, geometry.bottleneck, geometry.patched_convs, index,
        down, down_bias, up, up_bias, len(geometry.blocks), norm or 0, weight, bias,
    )  # fmt: skip


def _activations(run: Run, following: Segment) -> list[Activation]:
    """Copies of the activations at which rows branch off, one per history."""
    offsets, branches = run.offsets[2 * following.block], following.branches
    assert branches is not None
    by_history = dict(zip(branches.histories.tolist(), branches.sequences.tolist(), strict=True))
    return [
        Activation(
            (run.chunk.keys[history], following.block),
            run.x.tensor[int(offsets[sequence]) : int(offsets[sequence + 1])].clone(),
        )
        for history, sequence in by_history.items()
    ]


def _pack(
    conv: DilatedConv,
    norm: torch.nn.LayerNorm,
    at: ConvPlan,
    residual: np.ndarray | None,
    longest: tuple[int, int],
    parts: int,
) -> PackedConv:
    """Pack a convolution for rows of ``longest`` inputs and outputs, with ``parts`` of rounded
    operands, or 0 for float32."""
    weight, other = _packed_weights(conv.weight.detach().float(), parts)
    # A product reads the bias up to its number of columns, which is rounded up.
    bias = torch.nn.functional.pad(conv.bias.detach().float(), (0, whole_tiles(1)))
    norm_weight, norm_bias = (t.detach().float().contiguous() for t in (norm.weight, norm.bias))
    tensors = (weight, bias, norm_weight, norm_bias, *([] if other is None else [other]))
    tiles = tile_table(at, conv.dilation)
    arrays = [tiles] if residual is None else [tiles, np.ascontiguousarray(residual, np.int32)]
    args = ConvArgs(
        _address(tiles), len(tiles),
        weight.data_ptr(), ABSENT if other is None else other.data_ptr(),
        bias.data_ptr(), norm_weight.data_ptr(), norm_bias.data_ptr(),
        ABSENT if residual is None else _address(arrays[1]), *longest,
    )  # fmt: skip
    return PackedConv(tensors, tuple(arrays), args)


def _packed_weights(weight: Tensor, parts: int) -> tuple[Tensor, Tensor | None]:
    """Compute ``weight`` and ``other_weight`` of ``ConvArgs``."""
    if parts == 0:
        winograd = winograd_weight(weight)
        return packed_panels(winograd.transformed), packed_panels(winograd.taps)
    taps = weight.permute(2, 1, 0)  # [k, C in, C out]
    rest = taps - taps.bfloat16().float()
    return packed_pairs(taps), packed_pairs(rest) if parts > 1 else None
