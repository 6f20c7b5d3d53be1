"""User vectors for training: any number of tasks' patches, only inside the receptive field.

Only the last position of a causal network is read, so every convolution is computed just at the
positions that reach it (``model/network/receptive_field.py``); a non-causal network keeps all
positions. All rows of a batch have the positions of the longest one, and states before a row's
first token are zero, so rows of any length share a batch. Rows of several tasks follow each other,
and a ``PatchStack`` sends each task's rows through its patch.

With dilations 1, 4, 16, 32 and 200 items the receptive field has 206 of 1,600 convolution
positions: forward and backward of a patch take 37 ms of processor time instead of 296 (128 rows, 64
channels, one thread). With eight blocks of dilations 1 and 4 and 50 items it is 88 ms instead of
104.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.network.backbone import Backbone, DilatedConv, ResidualBlock
from peterrec.model.network.collate import positions_read
from peterrec.model.network.patch import PatchWeights
from peterrec.model.network.receptive_field import ConvPlan, plan
from peterrec.model.spec import CLS, BackboneSpec
from peterrec.model.training.finetune.patch_stack import PatchStack
from peterrec.model.training.products import linear


@dataclass(frozen=True, slots=True)
class ConvTaps:
    """The positions that one convolution reads and computes.

    ``taps`` int32 [M·k] are the entries that k taps read for each of M outputs, in a buffer that
    begins with a zero row; ``centre`` is the tap that reads the output's own position.
    ``positions`` int32 [M] count back from the last one; the first of them is ``furthest``.
    """

    taps: Tensor
    centre: int
    positions: Tensor
    furthest: int


@dataclass(frozen=True, slots=True)
class BlockTaps:
    """A residual block's two convolutions.

    ``source`` int32 [M] are the places of the first one's outputs among the block's inputs, and
    ``residual`` int32 those of the block's outputs among the first one's.
    """

    first: ConvTaps
    second: ConvTaps
    source: Tensor
    residual: Tensor


@dataclass(frozen=True, slots=True)
class FieldTaps:
    """The receptive field of rows of one length, on a device; blocks from bottom to top.

    ``inputs`` int32 [N] are the embedded positions, counted back from the last one.
    """

    inputs: Tensor
    blocks: tuple[BlockTaps, ...]


@cache
def field_taps(spec: BackboneSpec, length: int, device: torch.device) -> FieldTaps:
    """The receptive field of rows of ``length`` tokens."""
    field = plan(spec, length)
    blocks = tuple(
        BlockTaps(
            _conv_taps(block.first, device),
            _conv_taps(block.second, device),
            _indices(block.first.taps[:, block.first.centre] - 1, device),
            _indices(np.flatnonzero(np.isin(block.first.outputs, block.second.outputs)), device),
        )
        for block in field.blocks
    )
    return FieldTaps(_indices(field.inputs, device), blocks)


def _conv_taps(conv: ConvPlan, device: torch.device) -> ConvTaps:
    return ConvTaps(
        _indices(conv.taps.flatten(), device),
        conv.centre,
        _indices(conv.outputs, device),
        int(conv.outputs[0]),
    )


def _indices(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32)).to(device)


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of R histories: collated tokens [R, T], PAD in front, and how many are read, [R].

    ``shortest`` is the least of the lengths.
    """

    tokens: Tensor
    lengths: Tensor
    shortest: int

    @classmethod
    def of(cls, tokens: Tensor, spec: BackboneSpec) -> "Rows":
        """Rows of collated tokens int64 [R, T]."""
        lengths = positions_read(tokens, spec).sum(1)  # [R, T] -> [R]
        return cls(tokens, lengths, int(lengths.min()))


@dataclass(frozen=True, slots=True)
class BlockInput:
    """The states that a block reads, at the M positions where its first convolution is needed.

    ``source`` [R, M, C] is the block's input there, and ``conv`` [R, M, C] the output of its first
    convolution before a patch joins it. Above the last block both are the network's output.
    """

    source: Tensor
    conv: Tensor
    rows: Rows


def user_vectors(backbone: Backbone, tokens: Tensor, patch: PatchWeights | None) -> Tensor:
    """User vectors [B, C] of collated tokens [B, T], as in ``Backbone``, with gradients."""
    blocks = FieldBlocks(backbone, tokens.shape[1])
    return blocks.token_vectors(tokens, None if patch is None else PatchStack.of_one(patch))


def user_states(backbone: Backbone, tokens: Tensor) -> Tensor:
    """User vectors as they would be read below the first block and above each, [B, L + 1, C]."""
    blocks = FieldBlocks(backbone, tokens.shape[1])
    return torch.stack([blocks.pool(level) for level in blocks.levels(tokens)], 1)


class FieldBlocks:
    """A backbone's residual blocks inside the receptive field, for rows of ``length`` tokens.

    ``first`` is the lowest block that ``user_vectors`` runs.
    """

    def __init__(self, backbone: Backbone, length: int, first: int = 0) -> None:
        self._backbone = backbone
        self._taps = field_taps(backbone.spec, length, backbone.embedding.weight.device)
        self._blocks = [block for block in backbone.blocks if isinstance(block, ResidualBlock)]
        self._first = first

    def input_of(self, number: int, tokens: Tensor) -> BlockInput:
        """The input of block ``number`` of collated tokens, without patches; L means the output."""
        return next(islice(self.levels(tokens), number, None))

    def levels(self, tokens: Tensor, patches: PatchStack | None = None) -> Iterator[BlockInput]:
        """The input of every block for collated tokens int64 [R, T], and the network's output."""
        return self._levels(0, self._embed(tokens, patches), patches)

    def token_vectors(self, tokens: Tensor, patches: PatchStack | None) -> Tensor:
        """User vectors [G·B, C] of collated tokens: rows of G tasks, B of each in turn."""
        *_, top = self.levels(tokens, patches)
        return self._user_vectors(top, patches)

    def user_vectors(self, below: BlockInput, patches: PatchStack) -> Tensor:
        """User vectors [G·B, C] of the first block's input, which was computed without patches.

        If the patches have their own [CLS], the first block must be the lowest one.
        """
        if patches.cls is not None:
            below = self._with_own_cls(below, patches.cls)
        *_, top = self._levels(self._first, below, patches)
        return self._user_vectors(top, patches)

    def pool(self, level: BlockInput) -> Tensor:
        """The user vectors [R, C] that are read at a level, without an item reader's change."""
        last = level.source[:, -1]
        if self._backbone.spec.is_causal:
            return last
        every = torch.arange(len(last), device=last.device)
        return last + level.source[every, level.source.shape[1] - level.rows.lengths]

    def _user_vectors(self, top: BlockInput, patches: PatchStack | None) -> Tensor:
        users = self.pool(top)
        if patches is None or patches.reader is None:
            return users
        return users + self._backbone.read_items(top.rows.tokens, patches.reader)

    def _embed(self, tokens: Tensor, patches: PatchStack | None) -> BlockInput:
        """The lowest block's input of collated tokens int64 [R, T], with each task's own [CLS]."""
        rows = Rows.of(tokens, self._backbone.spec)
        entering = tokens.index_select(1, tokens.shape[1] - 1 - self._taps.inputs)  # [R, N]
        x: Tensor = self._backbone.embedding(entering)  # [R, N] -> [R, N, C]
        if patches is not None and patches.cls is not None:
            own = patches.cls.repeat_interleave(len(tokens) // len(patches.cls), 0)  # [R, C]
            x = torch.where((entering == CLS).unsqueeze(2), own.unsqueeze(1), x)
        if rows.shortest < tokens.shape[1]:
            x = x * (self._taps.inputs < rows.lengths.unsqueeze(1)).unsqueeze(2)
        return self._input_of(0, x, rows)

    def _levels(
        self, first: int, below: BlockInput, patches: PatchStack | None
    ) -> Iterator[BlockInput]:
        yield below
        for number in range(first, len(self._blocks)):
            below = self._input_of(number + 1, self._output_of(number, below, patches), below.rows)
            yield below

    def _with_own_cls(self, below: BlockInput, cls: Tensor) -> BlockInput:
        """Replace the shared [CLS] by each task's own [G, C], in the lowest block's input.

        Only the last output of a causal convolution reads it, through the last tap.
        """
        shared = self._backbone.embedding.weight[CLS].detach()
        change = (cls - shared).repeat_interleave(len(below.source) // len(cls), 0)  # [G·B, C]
        last = torch.zeros_like(below.source[:1, :, :1])  # [1, M, 1]
        last[:, -1] = 1
        of_conv = linear(change, self._blocks[0].conv1.weight[:, :, -1])  # [G·B, C]
        return BlockInput(
            below.source + last * change.unsqueeze(1),
            below.conv + last * of_conv.unsqueeze(1),
            below.rows,
        )

    def _input_of(self, number: int, x: Tensor, rows: Rows) -> BlockInput:
        """What block ``number`` reads of all its input positions x [R, N, C]."""
        if number == len(self._blocks):
            return BlockInput(x, x, rows)
        taps = self._taps.blocks[number]
        source = x.index_select(1, taps.source)  # [R, N, C] -> [R, M, C]
        conv = _product(_gathered(x, taps.first), self._blocks[number].conv1)
        return BlockInput(source, conv, rows)

    def _output_of(self, number: int, below: BlockInput, patches: PatchStack | None) -> Tensor:
        """A patched block's outputs [R, M, C]."""
        block, taps, rows = self._blocks[number], self._taps.blocks[number], below.rows
        middle = below.conv
        if patches is not None:
            middle = patches.join(middle, below.source, number, 0)
        middle = _masked(functional.relu(block.norm1(middle)), rows, taps.first)
        gathered = _gathered(middle, taps.second)  # [R, M, k, C]
        out = _product(gathered, block.conv2)
        if patches is None:
            out = block.norm2(out)
        else:
            out = patches.join(out, gathered[:, :, taps.second.centre], number, 1)
            out = patches.second_norm(out, block.norm2, number)
        out = _masked(functional.relu(out), rows, taps.second)
        return out + below.source.index_select(1, taps.residual)


def _gathered(x: Tensor, taps: ConvTaps) -> Tensor:
    """What a convolution's taps read of x [R, N, C] -> [R, M, k, C]."""
    padded = functional.pad(x, (0, 0, 1, 0))  # entry 0 is the zero row that taps outside read
    read = padded.index_select(1, taps.taps)  # [R, 1 + N, C] -> [R, M·k, C]
    return read.view(len(x), len(taps.positions), -1, x.shape[2])


def _product(gathered: Tensor, conv: DilatedConv) -> Tensor:
    weight = conv.weight.permute(0, 2, 1).flatten(1)  # [C, C, k] -> [C, k·C]
    return linear(gathered.flatten(2), weight, conv.bias)  # [R, M, k·C] -> [R, M, C]


def _masked(x: Tensor, rows: Rows, taps: ConvTaps) -> Tensor:
    """Set x [R, M, C] to zero where a row has no position."""
    if rows.shortest > taps.furthest:
        return x
    is_position = taps.positions < rows.lengths.unsqueeze(1)  # [R, M]
    return x * is_position.unsqueeze(2).to(x.dtype)
