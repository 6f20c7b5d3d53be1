"""One Triton kernel per convolution: taps, product, patch, LayerNorm, ReLU and residual at once.

A program computes ``BLOCK_M`` positions of one row, so its patch is one slot: rows of any tasks
run in one launch, and a row's activations are read and written once per convolution. Arithmetic
between the products is float32 whatever the storage.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.patch_modes import PLAIN

FEWEST_POSITIONS = 16
"""Convolutions with fewer outputs a row take their product from cuBLAS over all rows at once."""


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
    """Where the patches of a launch lie: stacked tensors [S, P, …], a slot per row.

    ``index`` is the bottleneck's place among the P, ``norm_index`` the block's among the trained
    norms, -1 if these are the backbone's.
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
class Positions:
    """Which positions a launch computes: int32 tensors on the device.

    ``taps`` [N, k] and ``residual`` [N] index the input's entries (0 is the zero row); ``offsets``
    [N] count back from the last position; ``lengths`` [B] are the rows' real tokens.
    """

    taps: Tensor
    centre: int
    offsets: Tensor
    lengths: Tensor
    residual: Tensor | None = None


@triton.jit
def _gelu_tanh(x):  # type: ignore[no-untyped-def]  # Triton compiles it
    gate = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(gate)


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _fused_conv(  # type: ignore[no-untyped-def]  # Triton compiles it
    x_ptr,
    skip_ptr,
    product_ptr,
    out_ptr,
    taps_ptr,
    offsets_ptr,
    residual_ptr,
    lengths_ptr,
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
    x_row,
    skip_row,
    out_row,
    positions,
    patch_slot,
    patch_index,
    norm_slot,
    norm_index,
    eps,
    C: tl.constexpr,
    H: tl.constexpr,
    TAPS: tl.constexpr,
    CENTRE: tl.constexpr,
    MODE: tl.constexpr,
    HAS_OWN_NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_PRODUCT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_C)
    is_row = m < positions
    is_channel = c < C
    here = is_row[:, None] & is_channel[None, :]
    x_base = x_ptr + row * x_row

    if HAS_PRODUCT:
        at = (row * positions + m[:, None]) * C + c[None, :]
        y = tl.load(product_ptr + at, mask=here, other=0.0).to(tl.float32)
    else:
        y = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
        k = tl.arange(0, BLOCK_K)
        for step in range(0, TAPS * C // BLOCK_K):
            start = step * BLOCK_K
            tap = start // C
            source = tl.load(taps_ptr + m * TAPS + tap, mask=is_row, other=0)
            part = start % C + k
            a = tl.load(x_base + source[:, None] * C + part[None, :])  # [BLOCK_M, BLOCK_K]
            w_at = (start + k)[:, None] * C + c[None, :]
            w = tl.load(weight_ptr + w_at, mask=is_channel[None, :], other=0.0)
            y = tl.dot(a, w, y, input_precision=PRECISION)
        y += tl.load(bias_ptr + c, mask=is_channel, other=0.0).to(tl.float32)[None, :]

    if MODE != 0:
        slot = tl.load(slots_ptr + row).to(tl.int64) * patch_slot + patch_index
        h = tl.arange(0, BLOCK_H)
        is_wide = is_channel[:, None] & (h < H)[None, :]
        if MODE == 1:
            s = y
        else:
            centre = tl.load(taps_ptr + m * TAPS + CENTRE, mask=is_row, other=0)
            at = centre[:, None] * C + c[None, :]
            s = tl.load(x_base + at, mask=here, other=0.0).to(tl.float32)
        down_at = slot * C * H + c[:, None] * H + h[None, :]
        down = tl.load(down_ptr + down_at, mask=is_wide, other=0.0)
        wide = tl.dot(s.to(down.dtype), down, input_precision=PRECISION)
        wide += tl.load(down_bias_ptr + slot * H + h, mask=h < H, other=0.0).to(tl.float32)
        wide = _gelu_tanh(wide)
        up_at = slot * C * H + h[:, None] * C + c[None, :]
        is_up = (h < H)[:, None] & is_channel[None, :]
        up = tl.load(up_ptr + up_at, mask=is_up, other=0.0)
        y += tl.dot(wide.to(up.dtype), up, input_precision=PRECISION)
        y += tl.load(up_bias_ptr + slot * C + c, mask=is_channel, other=0.0).to(tl.float32)
        if MODE == 3:
            y += s

    y = tl.where(here, y, 0.0)
    mean = tl.sum(y, 1) / C
    centred = tl.where(is_channel[None, :], y - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / C
    y = centred * (1.0 / tl.sqrt(variance + eps))[:, None]
    if HAS_OWN_NORM:
        own = (tl.load(slots_ptr + row).to(tl.int64) * norm_slot + norm_index) * C
        gamma = tl.load(own_norm_weight_ptr + own + c, mask=is_channel, other=0.0)
        beta = tl.load(own_norm_bias_ptr + own + c, mask=is_channel, other=0.0)
    else:
        gamma = tl.load(norm_weight_ptr + c, mask=is_channel, other=0.0)
        beta = tl.load(norm_bias_ptr + c, mask=is_channel, other=0.0)
    y = y * gamma.to(tl.float32)[None, :] + beta.to(tl.float32)[None, :]
    y = tl.maximum(y, 0.0)
    if HAS_RESIDUAL:
        source = tl.load(residual_ptr + m, mask=is_row, other=0)
        at = skip_ptr + row * skip_row + source[:, None] * C + c[None, :]
        y += tl.load(at, mask=here, other=0.0).to(tl.float32)
    offset = tl.load(offsets_ptr + m, mask=is_row, other=0)
    is_real = (offset < tl.load(lengths_ptr + row))[:, None]
    y = tl.where(is_real, y, 0.0)
    at = out_ptr + row * out_row + (1 + m[:, None]) * C + c[None, :]
    tl.store(at, y.to(out_ptr.dtype.element_ty), mask=here)
    if tl.program_id(1) == 0:
        zeros = tl.zeros((BLOCK_C,), dtype=tl.float32).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row * out_row + c, zeros, mask=is_channel)


def fused_conv(
    x: Tensor,
    out: Tensor,
    skip: Tensor,
    positions: Positions,
    conv: ConvWeights,
    patch: PatchOperands | None,
) -> None:
    """Compute rows of ``out`` [b, 1 + N, C] from x [b, 1 + N_in, C]; entry 0 is a zero row.

    ``skip`` is what ``positions.residual`` indexes. All tensors are contiguous; x and the weights
    have one dtype.
    """
    rows, count, taps = len(x), len(positions.offsets), positions.taps.shape[1]
    channels = x.shape[2]
    mode = PLAIN if patch is None else patch.mode
    product = _product(x, positions, conv) if count < FEWEST_POSITIONS else None
    h = 1 if patch is None else patch.down.shape[-1]
    own_norm = patch is not None and patch.norm_index >= 0
    block_m = _block_m(count)
    _fused_conv[(rows, triton.cdiv(count, block_m))](
        x,
        skip,
        product if product is not None else x,
        out,
        positions.taps,
        positions.offsets,
        positions.residual if positions.residual is not None else positions.offsets,
        positions.lengths,
        conv.weight,
        conv.bias,
        conv.norm_weight,
        conv.norm_bias,
        patch.slots if patch is not None else positions.lengths,
        patch.down if patch is not None else x,
        patch.down_bias if patch is not None else x,
        patch.up if patch is not None else x,
        patch.up_bias if patch is not None else x,
        patch.norm_weight if own_norm and patch is not None else conv.norm_weight,
        patch.norm_bias if own_norm and patch is not None else conv.norm_bias,
        x.stride(0),
        skip.stride(0),
        out.stride(0),
        count,
        patch.down.shape[1] if patch is not None else 0,
        patch.index if patch is not None else 0,
        patch.norm_weight.shape[1] if own_norm and patch and patch.norm_weight is not None else 0,
        patch.norm_index if patch is not None else 0,
        conv.eps,
        C=channels,
        H=h,
        TAPS=taps,
        CENTRE=positions.centre,
        MODE=mode,
        HAS_OWN_NORM=own_norm,
        HAS_RESIDUAL=positions.residual is not None,
        HAS_PRODUCT=product is not None,
        BLOCK_M=block_m,
        BLOCK_C=triton.next_power_of_2(channels),
        BLOCK_H=max(16, triton.next_power_of_2(h)),
        BLOCK_K=_block_k(channels),
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=3,
    )


def _product(x: Tensor, positions: Positions, conv: ConvWeights) -> Tensor:
    """The convolution itself over all rows at once: [b·N, C]."""
    gathered = x.index_select(1, positions.taps.flatten())  # [b, N·k, C]
    columns = gathered.view(len(x) * len(positions.offsets), -1)  # [b·N, k·C]
    return torch.addmm(conv.bias, columns, conv.weight)


def _block_m(count: int) -> int:
    if count < FEWEST_POSITIONS:
        return 16
    return min(64, int(triton.next_power_of_2(count)))


def _block_k(channels: int) -> int:
    """The largest power of two up to 64 that divides the channels: a block is of one tap."""
    return min(64, math.gcd(channels, 64))
