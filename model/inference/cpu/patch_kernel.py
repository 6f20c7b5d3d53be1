# mypy: ignore-errors
# What follows is numba's to type: names hold vectors and typed addresses.
"""Everything around a convolution's product on a CPU, in one pass over each sequence's positions.

A *sequence* is a row's positions without padding; a buffer holds one sequence after the other.
After the product (``conv_float32.py``, ``conv_bfloat16.py``), ``finish_sequence`` adds the
sequence's patch, normalises, rectifies and adds the residual while the sequence is still in the
first cache. ``enter`` embeds sequences, ``branch`` copies them.

Names that end in ``_`` are addresses (``Tensor.data_ptr()``; 0: absent). ``weight`` is a value
whose type is that of a patch's numbers: ``np.float32`` or, for bfloat16, ``np.uint16``.
Activations, norms and all arithmetic are float32. ``width`` carries C channels (``width_of``);
``K`` is the number of taps, ``H`` the bottleneck's width. ``mode`` is a kernel mode of
``model/insertions.py``. Every sequence is computed in a fixed order that does not depend on its
neighbours, so neither do its bits.
"""

import numpy as np
from numba import njit

from peterrec.model.inference.cpu.compiled import compiled
from peterrec.model.inference.cpu.simd import (
    HAS_WIDE_REGISTERS,
    LANES,
    add,
    copy_first,
    div,
    exp2,
    first,
    float_pointer,
    fma,
    int_pointer,
    load,
    load_first,
    mul,
    number,
    pointer_like,
    prefetch,
    rectify,
    splat,
    store,
    store_first,
    sub,
    total,
)
from peterrec.model.inference.cpu.winograd import OUTPUTS
from peterrec.model.insertions import ADDS_SOURCE, READS_INPUT
from peterrec.model.spec import CLS

AT_ONCE = 4
"""Positions of a sequence that are held in registers together."""

STEP = 2 * LANES if HAS_WIDE_REGISTERS else LANES
"""Channels of each of these positions that are held in registers together."""

GELU_LINEAR = np.float32(-2.302208198)  # -2·sqrt(2/π)·log2(e)
GELU_CUBIC = np.float32(-0.1029432396)  # GELU_LINEAR·0.044715
ONE, ZERO = np.float32(1), np.float32(0)


def width_of(channels: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """C channels as the *type* of an argument, so that kernels are compiled for this number."""
    return (0,) * (channels // LANES), (0,) * (channels % LANES)


@njit
def channels_of(width):
    return len(width[0]) * LANES + len(width[1])


def patch_numbers(channels: int, bottleneck: int) -> int:
    """Size of ``finish_sequence``'s scratch, in float32 numbers."""
    padded = -(-channels // LANES) - (-bottleneck // LANES)
    return AT_ONCE * LANES * padded


@compiled
def enter(
    tokens_, longest, positions_, inputs, embedding_, x_, offsets_, start, stop, slots_, cls_,
    width, weight,
):  # fmt: skip
    """Embed tokens int32 [sequences, longest] at positions int32 [inputs] counted from the end.

    A sequence shorter than the longest has the last of these positions.
    """
    C = channels_of(width)
    tokens, offsets, slots = int_pointer(tokens_), int_pointer(offsets_), int_pointer(slots_)
    positions = int_pointer(positions_)
    embedding, x = float_pointer(embedding_), float_pointer(x_)
    cls = pointer_like(cls_, weight)
    for sequence in range(start, stop):
        begin, count = (
            np.int64(offsets[sequence]),
            np.int64(offsets[sequence + 1]) - np.int64(offsets[sequence]),
        )
        for position in range(count):
            back = np.int64(positions[inputs - count + position])
            token = np.int64(tokens[(sequence + 1) * longest - 1 - back])
            to = (begin + position) * C
            if cls_ != 0 and token == CLS:
                own = np.int64(slots[sequence - start]) * C
                for c in range(0, C, LANES):
                    store_first(x, to + c, load_first(cls, own + c, C - c), C - c)
            else:
                for c in range(0, C, LANES):
                    copy_first(x, to + c, embedding, token * C + c, C - c)


@compiled
def branch(old_, old_offsets_, new_, new_offsets_, gather_, sequences, width):
    """Copy old sequence ``gather[i]`` to new sequence i."""
    C = channels_of(width)
    old, new = float_pointer(old_), float_pointer(new_)
    old_offsets, new_offsets, gather = (
        int_pointer(old_offsets_), int_pointer(new_offsets_), int_pointer(gather_),
    )  # fmt: skip
    for sequence in range(sequences):
        source, to = (
            np.int64(old_offsets[gather[sequence]]) * C,
            np.int64(new_offsets[sequence]) * C,
        )
        size = np.int64(new_offsets[sequence + 1]) * C - to
        for at in range(0, size, LANES):
            copy_first(new, to + at, old, source + at, size - at)


@njit
def tap_at(tiles, i, missing, at, zero_row, C):
    """Where an input of a ``tile_table`` begins, or the row of zeros if the sequence lacks it."""
    entry = np.int64(tiles[i]) - missing
    return (at + entry - 1) * C if entry >= 1 else zero_row


@njit
def take_inputs(x, at, missing, tiles, tile_count, skipped, zero_row, s, centre, width, K):
    """Copy the ``centre`` tap of each of a sequence's outputs to s [outputs, C]."""
    C = channels_of(width)
    outputs = OUTPUTS if K == 3 else 1
    for tile in range(tile_count):
        row = tile * (2 * outputs + K - 1)
        if tiles[row + outputs - 1] <= skipped:
            break
        for i in range(outputs):
            to = (np.int64(tiles[row + i]) - skipped - 1) * C
            if to >= 0:
                source = tap_at(tiles, row + outputs + i + centre, missing, at, zero_row, C)
                for c in range(0, C, LANES):
                    copy_first(s, to + c, x, source + c, C - c)


@njit
def gelu(x):
    """GELU in its tanh form: x·sigmoid(2·sqrt(2/π)·(x + 0.044715·x³))."""
    power = mul(x, fma(mul(x, x), splat(GELU_CUBIC), splat(GELU_LINEAR)))
    return div(x, add(splat(ONE), exp2(power)))


@njit
def narrow(s, s0, s1, s2, s3, down, patch, H, width, h):
    """Sixteen columns of ``s D`` from h on, for four positions.

    Wide registers get two sums per result, so that additions overlap; narrow ones one sum, which
    leaves registers for operands.
    """
    C = channels_of(width)
    zero = splat(ZERO)
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
    d, n = patch * C * H + h, H - h
    paired = C // 2 * 2 if HAS_WIDE_REGISTERS else 0
    for c in range(0, paired, 2):
        w = load_first(down, d + c * H, n)
        a0, a1 = fma(splat(number(s, s0 + c)), w, a0), fma(splat(number(s, s1 + c)), w, a1)
        a2, a3 = fma(splat(number(s, s2 + c)), w, a2), fma(splat(number(s, s3 + c)), w, a3)
        w = load_first(down, d + c * H + H, n)
        b0, b1 = fma(splat(number(s, s0 + c + 1)), w, b0), fma(splat(number(s, s1 + c + 1)), w, b1)
        b2, b3 = fma(splat(number(s, s2 + c + 1)), w, b2), fma(splat(number(s, s3 + c + 1)), w, b3)
    for c in range(paired, C):
        w = load_first(down, d + c * H, n)
        a0, a1 = fma(splat(number(s, s0 + c)), w, a0), fma(splat(number(s, s1 + c)), w, a1)
        a2, a3 = fma(splat(number(s, s2 + c)), w, a2), fma(splat(number(s, s3 + c)), w, a3)
    return add(a0, b0), add(a1, b1), add(a2, b2), add(a3, b3)


@njit
def _multiply_pair(rows, step, count, weight, at, stride, n, a0, a1, a2, a3, b0, b1, b2, b3):
    """``a + x W`` for sixteen columns of W from ``at`` on, and ``b + x W`` for the next sixteen.

    x are four rows of ``count`` numbers, ``step`` apart; W has ``n`` columns from there on. With
    wide registers, 32 columns together read each number of x half as often.
    """
    for k in range(count):
        w, z = load_first(weight, at, n), load_first(weight, at + LANES, n - LANES)
        at += stride
        v = splat(number(rows, k))
        a0, b0 = fma(v, w, a0), fma(v, z, b0)
        v = splat(number(rows, step + k))
        a1, b1 = fma(v, w, a1), fma(v, z, b1)
        v = splat(number(rows, 2 * step + k))
        a2, b2 = fma(v, w, a2), fma(v, z, b2)
        v = splat(number(rows, 3 * step + k))
        a3, b3 = fma(v, w, a3), fma(v, z, b3)
    return a0, a1, a2, a3, b0, b1, b2, b3


@njit
def _prefetch_share(down, up, at, size, begin, share):
    """Prefetch a share of the next sequence's patch while the present one is in use.

    A processor has few pending reads; asking for the whole patch (88 cache lines at 64 channels) at
    once would wait for them, most of all without AVX-512, where fewer lines are read per step.
    """
    for i in range(begin, min(begin + share, size), LANES):  # a line of float32 at a time
        prefetch(down, at + i)
        prefetch(up, at + i)


@njit
def _widen(hidden, tall, up, at, H, width, n, a0, a1, a2, a3):
    """``a + h U`` for four positions' hidden values h and sixteen channels."""
    C = channels_of(width)
    for h in range(H):
        w = load_first(up, at + h * C, n)
        a0 = fma(splat(number(hidden, h)), w, a0)
        a1 = fma(splat(number(hidden, tall + h)), w, a1)
        a2 = fma(splat(number(hidden, 2 * tall + h)), w, a2)
        a3 = fma(splat(number(hidden, 3 * tall + h)), w, a3)
    return a0, a1, a2, a3


@njit
def sequence_patch(slots, sequence, stop, stacked, at):
    """Indices of a sequence's patch and of the next sequence's (or its own again if last)."""
    patch = np.int64(slots[sequence]) * stacked + at
    following = np.int64(slots[sequence + 1]) * stacked + at if sequence + 1 < stop else patch
    return patch, following


@njit
def _scale(rows, mean, width, eps):
    """The reciprocal standard deviation of a row of C numbers."""
    C = channels_of(width)
    squares = splat(ZERO)
    for c in range(0, C, LANES):
        d = first(sub(load(rows, c), mean), C - c)
        squares = fma(d, d, squares)
    return splat(ONE / np.sqrt(total(squares) / np.float32(C) + eps))


@njit
def finish_sequence(
    y, pitch, count, s, x, entry, residual_, shift, out, to, scratch_, mode, H, patch, next_patch,
    down, down_bias, up, up_bias, norm_weight, norm_bias, norm, width, eps,
):  # fmt: skip
    """Write ``relu(LN(patched y))`` of a sequence's positions, plus the residual if there is one.

    Position p reads ``y`` at ``p·pitch``, the convolution's input at ``p·C`` of ``s``, the residual
    at ``entry + residual[shift + p]·C`` of ``x``, and is written at ``to + p·C``. Wide registers
    take 32 columns at a time, narrow ones 16.
    """
    C = channels_of(width)
    residual = int_pointer(residual_)
    wide, tall = (C + LANES - 1) // LANES * LANES, (H + LANES - 1) // LANES * LANES
    row0, row1 = float_pointer(scratch_), float_pointer(scratch_ + 4 * wide)
    row2, row3 = float_pointer(scratch_ + 8 * wide), float_pointer(scratch_ + 12 * wide)
    hidden = float_pointer(scratch_ + 16 * wide)
    size, zero = np.float32(C), splat(ZERO)
    steps = (C + STEP - 1) // STEP
    turns = max((count + AT_ONCE - 1) // AT_ONCE, 1) * steps
    share = H * C // turns // LANES * LANES + LANES
    if next_patch != patch:
        _prefetch_share(down_bias, down_bias, next_patch * H, H, 0, H)
        _prefetch_share(up_bias, up_bias, next_patch * C, C, 0, C)
    for p in range(0, count, AT_ONCE):
        p1, p2, p3 = min(p + 1, count - 1), min(p + 2, count - 1), min(p + 3, count - 1)
        r0, r1, r2, r3 = p * pitch, p1 * pitch, p2 * pitch, p3 * pitch
        s0, s1, s2, s3 = p * C, p1 * C, p2 * C, p3 * C
        if mode != 0:  # copy the patch's source as float32: widening single numbers takes long
            for c in range(0, C, LANES):
                n = C - c
                if mode & READS_INPUT:
                    a0, a1 = load_first(s, s0 + c, n), load_first(s, s1 + c, n)
                    a2, a3 = load_first(s, s2 + c, n), load_first(s, s3 + c, n)
                else:
                    a0, a1 = load_first(y, r0 + c, n), load_first(y, r1 + c, n)
                    a2, a3 = load_first(y, r2 + c, n), load_first(y, r3 + c, n)
                store(row0, c, a0)
                store(row1, c, a1)
                store(row2, c, a2)
                store(row3, c, a3)
        for h in range(0, H, STEP):
            w = load_first(down_bias, patch * H + h, H - h)
            if HAS_WIDE_REGISTERS and H - h > LANES:
                a0, a1, a2, a3, b0, b1, b2, b3 = _multiply_pair(
                    row0, wide, C, down, patch * C * H + h, H, H - h,
                    zero, zero, zero, zero, zero, zero, zero, zero,
                )  # fmt: skip
                z, k = load_first(down_bias, patch * H + h + LANES, H - h - LANES), h + LANES
                store(hidden, k, gelu(add(b0, z)))
                store(hidden, tall + k, gelu(add(b1, z)))
                store(hidden, 2 * tall + k, gelu(add(b2, z)))
                store(hidden, 3 * tall + k, gelu(add(b3, z)))
            else:
                a0, a1, a2, a3 = narrow(row0, 0, wide, 2 * wide, 3 * wide, down, patch, H, width, h)
            store(hidden, h, gelu(add(a0, w)))
            store(hidden, tall + h, gelu(add(a1, w)))
            store(hidden, 2 * tall + h, gelu(add(a2, w)))
            store(hidden, 3 * tall + h, gelu(add(a3, w)))
        m0 = m1 = m2 = m3 = b0 = b1 = b2 = b3 = zero
        for c in range(0, C, STEP):
            n, k = C - c, C - c - LANES
            if next_patch != patch:
                begin = (p // AT_ONCE * steps + c // STEP) * share
                _prefetch_share(down, up, next_patch * H * C, H * C, begin, share)
            a0, a1 = load_first(y, r0 + c, n), load_first(y, r1 + c, n)
            a2, a3 = load_first(y, r2 + c, n), load_first(y, r3 + c, n)
            if HAS_WIDE_REGISTERS:
                b0, b1 = load_first(y, r0 + c + LANES, k), load_first(y, r1 + c + LANES, k)
                b2, b3 = load_first(y, r2 + c + LANES, k), load_first(y, r3 + c + LANES, k)
            if mode != 0:
                w, at = load_first(up_bias, patch * C + c, n), patch * H * C + c
                a0, a1, a2, a3 = add(a0, w), add(a1, w), add(a2, w), add(a3, w)
                if HAS_WIDE_REGISTERS:
                    z = load_first(up_bias, patch * C + c + LANES, k)
                    b0, b1, b2, b3 = add(b0, z), add(b1, z), add(b2, z), add(b3, z)
                    a0, a1, a2, a3, b0, b1, b2, b3 = _multiply_pair(
                        hidden, tall, H, up, at, C, n, a0, a1, a2, a3, b0, b1, b2, b3
                    )
                else:
                    a0, a1, a2, a3 = _widen(hidden, tall, up, at, H, width, n, a0, a1, a2, a3)
            if mode & ADDS_SOURCE:
                a0, a1 = add(a0, load_first(s, s0 + c, n)), add(a1, load_first(s, s1 + c, n))
                a2, a3 = add(a2, load_first(s, s2 + c, n)), add(a3, load_first(s, s3 + c, n))
                if HAS_WIDE_REGISTERS:
                    at = c + LANES
                    b0, b1 = add(b0, load_first(s, s0 + at, k)), add(b1, load_first(s, s1 + at, k))
                    b2, b3 = add(b2, load_first(s, s2 + at, k)), add(b3, load_first(s, s3 + at, k))
            m0, m1 = add(m0, add(a0, b0)), add(m1, add(a1, b1))
            m2, m3 = add(m2, add(a2, b2)), add(m3, add(a3, b3))
            store(row0, c, a0)
            store(row1, c, a1)
            store(row2, c, a2)
            store(row3, c, a3)
            if HAS_WIDE_REGISTERS:
                store_first(row0, c + LANES, b0, k)
                store_first(row1, c + LANES, b1, k)
                store_first(row2, c + LANES, b2, k)
                store_first(row3, c + LANES, b3, k)
        m0, m1 = splat(total(m0) / size), splat(total(m1) / size)
        m2, m3 = splat(total(m2) / size), splat(total(m3) / size)
        v0, v1 = _scale(row0, m0, width, eps), _scale(row1, m1, width, eps)
        v2, v3 = _scale(row2, m2, width, eps), _scale(row3, m3, width, eps)
        o0, o1, o2, o3 = to + p * C, to + p1 * C, to + p2 * C, to + p3 * C
        e0 = e1 = e2 = e3 = np.int64(0)
        if residual_ != 0:
            e0, e1 = entry + residual[shift + p] * C, entry + residual[shift + p1] * C
            e2, e3 = entry + residual[shift + p2] * C, entry + residual[shift + p3] * C
        for c in range(0, C, LANES):
            n = C - c
            w, z = load_first(norm_weight, norm + c, n), load_first(norm_bias, norm + c, n)
            a0 = rectify(fma(mul(sub(load(row0, c), m0), v0), w, z))
            a1 = rectify(fma(mul(sub(load(row1, c), m1), v1), w, z))
            a2 = rectify(fma(mul(sub(load(row2, c), m2), v2), w, z))
            a3 = rectify(fma(mul(sub(load(row3, c), m3), v3), w, z))
            if residual_ != 0:
                a0, a1 = add(a0, load_first(x, e0 + c, n)), add(a1, load_first(x, e1 + c, n))
                a2, a3 = add(a2, load_first(x, e2 + c, n)), add(a3, load_first(x, e3 + c, n))
            store_first(out, o0 + c, a0, n)
            store_first(out, o1 + c, a1, n)
            store_first(out, o2 + c, a2, n)
            store_first(out, o3 + c, a3, n)
