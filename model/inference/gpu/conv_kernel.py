"""One Triton kernel per convolution: taps, product, patch, LayerNorm, ReLU and residual together.

A program computes a tile of ``BLOCK_M`` entries, of any number of sequences, over all channels. The
product runs over the whole tile; each sequence's patch is applied to the tile and kept at the rows
of the sequence. So a tile is full at any lengths, and its weights are read once for all its
sequences. Arithmetic between the products is float32 at any storage type.

Operands that are added to a tile's sums from memory (up biases, the residual) are added as a
product with a matrix of zeros and ones. They then pass through shared memory and take no registers
in addition to the sums, which fill half of them.
"""

import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from peterrec.model.insertions import ADDS_SOURCE, READS_INPUT


@dataclass(frozen=True, slots=True)
class ConvWeights:
    """A convolution and its LayerNorm: weight [k·C, C], the rest [C]; norms in float32."""

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class PatchOperands:
    """The patches of a launch: stacked tensors [S, P, …] and a slot per sequence.

    ``mode`` is a kernel mode of ``model/insertions.py``. ``index`` is the bottleneck's place among
    the P, ``norm_index`` the block's among the trained norms, or -1 for the backbone's norm.
    """

    mode: int
    slots: Tensor
    index: int
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    norm_index: int = -1
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries that a launch computes and what they read: int32 tensors on the device.

    Entry m of the output belongs to sequence ``sequence_of[m]``; ``bounds`` [2] are the first and
    the last + 1 to compute, at most ``capacity``, about ``per_sequence`` of a sequence. The entries
    of a sequence begin at ``out_offsets`` and are read from ``in_offsets`` on, where it has
    ``in_counts``; taps [N, k] beyond these, or negative, read zeros. ``centre`` is the tap of the
    entry itself. With ``residual`` [N], entries of the skip are added, those of a sequence being at
    ``skip_offsets`` on.
    """

    sequence_of: Tensor
    bounds: Tensor
    capacity: int
    per_sequence: int
    out_offsets: Tensor
    in_offsets: Tensor
    in_counts: Tensor
    taps: Tensor
    centre: int
    skip_offsets: Tensor | None = None
    residual: Tensor | None = None


LARGEST_TILE = 64 * 256
"""Float32 sums of four warps. Two such programs share a multiprocessor: one computes while the
other waits for memory."""

FULL_WAVE = 128
"""Programs that occupy the device: tiles are enlarged while at least about this many are left."""

SEQUENCES_PER_TILE = 5
"""Approximate limit on the sequences of a tile, as each patch is applied to the whole tile."""

COLUMNS = 32
"""Bottleneck channels that are applied to a tile together, of one sequence or of several."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Sizes of a program: entries, channels per step, warps, and steps that are loaded ahead."""

    entries: int
    depth: int
    warps: int
    stages: int


@triton.jit
def gelu_tanh(x):  # type: ignore[no-untyped-def]  # Triton compiles it
    gate = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(tl.maximum(gate, -80.0))  # below it the exponential would overflow


@triton.jit
def _source(tap_ptr, in_base, in_count):  # type: ignore[no-untyped-def]  # Triton compiles it
    tap = tl.load(tap_ptr)
    return tl.where((tap >= 0) & (tap < in_count), in_base + tap, -1)


@triton.jit(do_not_specialize=["patch_slot", "patch_index", "norm_slot", "norm_index"])  # type: ignore[untyped-decorator]  # Triton has no types
def _fused_conv(  # type: ignore[no-untyped-def]  # Triton compiles it
    x_ptr,
    skip_ptr,
    out_ptr,
    sequence_of_ptr,
    bounds_ptr,
    out_offsets_ptr,
    in_offsets_ptr,
    in_counts_ptr,
    taps_ptr,
    skip_offsets_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    slots_ptr,
    down_ptr,
    down_bias_ptr,
    up_ptr,
    up_bias_ptr,
    own_norm_weight_ptr,
    own_norm_bias_ptr,
    patch_slot,
    patch_index,
    norm_slot,
    norm_index,
    eps,
    C: tl.constexpr,
    H: tl.constexpr,
    TAPS: tl.constexpr,
    CENTRE: tl.constexpr,
    HAS_PATCH: tl.constexpr,
    READS_INPUT: tl.constexpr,
    ADDS_SOURCE: tl.constexpr,
    HAS_OWN_NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first = tl.load(bounds_ptr) + tl.program_id(0) * BLOCK_M
    stop = tl.load(bounds_ptr + 1)
    if first >= stop:
        return
    m = tl.minimum(first + tl.arange(0, BLOCK_M), stop - 1)  # past the end: the last entry again
    c = tl.arange(0, BLOCK_C)
    is_channel = c < C
    sequence = tl.load(sequence_of_ptr + m)
    n = m - tl.load(out_offsets_ptr + sequence)
    in_base = tl.load(in_offsets_ptr + sequence)
    in_count = tl.load(in_counts_ptr + sequence)

    first_sequence = tl.load(sequence_of_ptr + first)
    last_sequence = tl.load(sequence_of_ptr + tl.minimum(first + BLOCK_M, stop) - 1)

    bias = tl.load(bias_ptr + c, mask=is_channel, other=0.0).to(tl.float32)
    y = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32) + bias[None, :]
    k = tl.arange(0, BLOCK_K)
    STEPS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    for group in tl.static_range(0, TAPS, 3):  # Triton pipelines no load whose address is loaded
        here = tl.minimum(TAPS - group, 3)
        near = _source(taps_ptr + n * TAPS + group, in_base, in_count)
        middle = _source(taps_ptr + n * TAPS + group + (here > 1), in_base, in_count)
        far = _source(taps_ptr + n * TAPS + group + here - 1, in_base, in_count)
        for step in range(0, here * STEPS):
            tap = step // STEPS
            part = (step - tap * STEPS) * BLOCK_K + k
            source = tl.where(tap == 0, near, tl.where(tap == 1, middle, far))
            at = source[:, None] * C + part[None, :]
            w_at = ((group + tap) * C + part)[:, None] * C + c[None, :]
            if C % BLOCK_K == 0:
                a = tl.load(x_ptr + at, mask=(source >= 0)[:, None], other=0.0)
                w = tl.load(weight_ptr + w_at, mask=is_channel[None, :], other=0.0)
            else:
                is_part = part < C
                is_there = (source >= 0)[:, None] & is_part[None, :]
                a = tl.load(x_ptr + at, mask=is_there, other=0.0)
                is_weight = is_part[:, None] & is_channel[None, :]
                w = tl.load(weight_ptr + w_at, mask=is_weight, other=0.0)
            y = tl.dot(a, w, y, input_precision="ieee")  # [BLOCK_M, BLOCK_K] @ [BLOCK_K, BLOCK_C]

    if HAS_PATCH:
        if READS_INPUT:
            centre = (in_base + tl.load(taps_ptr + n * TAPS + CENTRE))[:, None] * C + c[None, :]
            s = tl.load(x_ptr + centre, mask=is_channel[None, :], other=0.0)
            if ADDS_SOURCE:
                y += s.to(tl.float32)
            s = s.to(down_ptr.dtype.element_ty)
        else:
            s = y.to(down_ptr.dtype.element_ty)
        columns = (last_sequence + 1 - first_sequence) * H  # of the tile's sequences, side by side
        for start in tl.range(0, columns, BLOCK_W, num_stages=2):
            column = start + tl.arange(0, BLOCK_W)
            is_wide = column < columns
            if H % BLOCK_W == 0:  # all columns belong to one sequence, so whole rows are loaded
                ahead = start // H
                h = column - ahead * H
                of_sequence = first_sequence + ahead + tl.zeros((BLOCK_W,), dtype=tl.int32)
                slot = tl.load(slots_ptr + first_sequence + ahead).to(tl.int64)
            else:
                h = column % H
                of_sequence = first_sequence + column // H
                slot = tl.load(slots_ptr + of_sequence, mask=is_wide, other=0).to(tl.int64)
            bottleneck = slot * patch_slot + patch_index + tl.zeros((BLOCK_W,), dtype=tl.int64)
            down_at = (bottleneck * (C * H) + h)[None, :] + c[:, None] * H
            is_here = is_channel[:, None] & is_wide[None, :]
            down = tl.load(down_ptr + down_at, mask=is_here, other=0.0)  # [BLOCK_C, BLOCK_W]
            wide = tl.dot(s, down, input_precision="ieee")  # [BLOCK_M, BLOCK_W]
            down_bias = tl.load(down_bias_ptr + bottleneck * H + h, mask=is_wide, other=0.0)
            wide = gelu_tanh(wide + down_bias.to(tl.float32)[None, :])
            wide = tl.where(
                (sequence[:, None] == of_sequence[None, :]) & is_wide[None, :], wide, 0.0
            )
            up_at = (bottleneck * (H * C) + h * C)[:, None] + c[None, :]
            is_here = is_wide[:, None] & is_channel[None, :]
            up = tl.load(up_ptr + up_at, mask=is_here, other=0.0)  # [BLOCK_W, BLOCK_C]
            y = tl.dot(wide.to(up.dtype), up, y, input_precision="ieee")
        b = tl.arange(0, 16)
        for ahead in tl.range(first_sequence, last_sequence + 1, 16, num_stages=1):
            is_here = ahead + b <= last_sequence
            slot = tl.load(slots_ptr + ahead + b, mask=is_here, other=0).to(tl.int64)
            bias_at = (slot * patch_slot + patch_index)[:, None] * C + c[None, :]
            is_bias = is_here[:, None] & is_channel[None, :]
            up_bias = tl.load(up_bias_ptr + bias_at, mask=is_bias, other=0.0)  # [16, BLOCK_C]
            is_own = (sequence[:, None] == (ahead + b)[None, :]).to(up_bias.dtype)
            y = tl.dot(is_own, up_bias, y, input_precision="ieee")  # cheaper than to gather rows

    if BLOCK_C != C:
        y = tl.where(is_channel[None, :], y, 0.0)
    mean = tl.sum(y, 1) / C
    y = y - mean[:, None]
    if BLOCK_C != C:
        y = tl.where(is_channel[None, :], y, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(y * y, 1) / C + eps)
    if HAS_OWN_NORM:
        own = (tl.load(slots_ptr + sequence).to(tl.int64) * norm_slot + norm_index) * C
        own_at = own[:, None] + c[None, :]
        gamma = tl.load(own_norm_weight_ptr + own_at, mask=is_channel[None, :], other=0.0)
        y = y * scale[:, None] * gamma.to(tl.float32)
        beta = tl.load(own_norm_bias_ptr + own_at, mask=is_channel[None, :], other=0.0)
        y = tl.maximum(y + beta.to(tl.float32), 0.0)
    else:
        gamma = tl.load(norm_weight_ptr + c, mask=is_channel, other=0.0)
        beta = tl.load(norm_bias_ptr + c, mask=is_channel, other=0.0)
        y = tl.maximum(y * scale[:, None] * gamma[None, :] + beta[None, :], 0.0)
    if HAS_RESIDUAL:
        entry, r = tl.arange(0, BLOCK_M), tl.arange(0, 16)
        for part in tl.range(0, BLOCK_M, 16, num_stages=3):
            read = tl.minimum(first + part + r, stop - 1)
            its_sequence = tl.load(sequence_of_ptr + read)
            its_n = read - tl.load(out_offsets_ptr + its_sequence)
            source = tl.load(skip_offsets_ptr + its_sequence) + tl.load(residual_ptr + its_n)
            skip_at = source[:, None] * C + c[None, :]
            skip = tl.load(skip_ptr + skip_at, mask=is_channel[None, :], other=0.0)
            is_it = (entry[:, None] == (part + r)[None, :]).to(skip.dtype)
            y = tl.dot(is_it, skip, y, input_precision="ieee")  # [BLOCK_M, 16] @ [16, BLOCK_C]
    m = first + tl.arange(0, BLOCK_M)
    is_own = (m < stop)[:, None] & is_channel[None, :]
    tl.store(out_ptr + m[:, None] * C + c[None, :], y.to(out_ptr.dtype.element_ty), mask=is_own)


def fused_conv(
    x: Tensor,
    out: Tensor,
    skip: Tensor,
    entries: Entries,
    conv: ConvWeights,
    patch: PatchOperands | None,
) -> None:
    """Compute ``entries`` of ``out`` [M, C] from x [M_in, C]; ``skip`` holds the residual.

    All tensors are contiguous; x, out and the weights have one dtype.
    """
    channels, taps = x.shape[1], entries.taps.shape[1]
    h = 1 if patch is None else patch.down.shape[-1]
    mode = 0 if patch is None else patch.mode
    own_norm = patch is not None and patch.norm_index >= 0
    tile = _tile(entries, channels, _widest(x, patch))
    norm_weight = patch.norm_weight if patch is not None and own_norm else conv.norm_weight
    norm_bias = patch.norm_bias if patch is not None and own_norm else conv.norm_bias
    _fused_conv[(triton.cdiv(entries.capacity, tile.entries),)](
        x,
        skip,
        out,
        entries.sequence_of,
        entries.bounds,
        entries.out_offsets,
        entries.in_offsets,
        entries.in_counts,
        entries.taps,
        entries.skip_offsets if entries.skip_offsets is not None else entries.in_offsets,
        entries.residual if entries.residual is not None else entries.taps,
        conv.weight,
        conv.bias,
        conv.norm_weight,
        conv.norm_bias,
        patch.slots if patch is not None else entries.sequence_of,
        patch.down if patch is not None else x,
        patch.down_bias if patch is not None else x,
        patch.up if patch is not None else x,
        patch.up_bias if patch is not None else x,
        norm_weight,
        norm_bias,
        patch.down.shape[1] if patch is not None else 0,
        patch.index if patch is not None else 0,
        norm_weight.shape[1] if own_norm and norm_weight is not None else 0,
        patch.norm_index if patch is not None else 0,
        conv.eps,
        C=channels,
        H=h,
        TAPS=taps,
        CENTRE=entries.centre,
        HAS_PATCH=patch is not None,
        READS_INPUT=bool(mode & READS_INPUT),
        ADDS_SOURCE=bool(mode & ADDS_SOURCE),
        HAS_OWN_NORM=own_norm,
        HAS_RESIDUAL=entries.residual is not None,
        BLOCK_M=tile.entries,
        BLOCK_C=triton.next_power_of_2(channels),
        BLOCK_W=COLUMNS,
        BLOCK_K=max(16, math.gcd(channels, tile.depth)),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _widest(x: Tensor, patch: PatchOperands | None) -> int:
    """Bytes of the widest type among the operands."""
    return max(x.element_size(), 0 if patch is None else patch.down.element_size())


def _tile(entries: Entries, channels: int, number_bytes: int) -> Tile:
    width = int(triton.next_power_of_2(channels))
    is_exact = (
        number_bytes > 2
    )  # tensor cores round float32 operands, so products use ordinary units
    most = 32 if is_exact else max(64, min(128, LARGEST_TILE // width))
    size = 16
    while size < min(most, SEQUENCES_PER_TILE * entries.per_sequence):
        if entries.capacity < FULL_WAVE * size:
            break
        size *= 2
    if is_exact:
        return Tile(size, depth=16, warps=4, stages=2)
    warps = 8 if size * width > LARGEST_TILE else 4
    return Tile(size, depth=32 if size >= 64 and width >= 256 else 64, warps=warps, stages=4)
