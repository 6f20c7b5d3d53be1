# mypy: ignore-errors
# What follows is numba's to type: names hold vectors and typed addresses.
"""Convolutions in float32 on a CPU, each with its patch, norm, ReLU and residual.

Four positions that share inputs are computed from six products by a Winograd transform
(``winograd.py``). Where it takes no more products, positions are computed from those of their taps
that are within the history. Names and types are those of ``patch_kernel.py``.
"""

import numpy as np
from numba import njit
from torch import Tensor

from peterrec.model.inference.cpu import winograd
from peterrec.model.inference.cpu.patch_kernel import (
    AT_ONCE,
    ZERO,
    channels_of,
    finish_sequence,
    sequence_patch,
    take_inputs,
    tap_at,
)
from peterrec.model.inference.cpu.simd import (
    HAS_WIDE_REGISTERS,
    LANES,
    add,
    copy_first,
    float_pointer,
    fma,
    int_pointer,
    load,
    load_first,
    long_pointer,
    mul,
    number,
    pointer_like,
    splat,
    store_first,
    sub,
)
from peterrec.model.insertions import READS_INPUT

PANEL = 4 * LANES if HAS_WIDE_REGISTERS else LANES
"""Columns of a product that are held in registers together, for several rows."""

A, A2, A3 = (np.float32(winograd.A**n) for n in (1, 2, 3))
B, B2, B3 = (np.float32(winograd.B**n) for n in (1, 2, 3))
SQUARES = np.float32(winograd.A**2 + winograd.B**2)
OUTPUTS, PRODUCTS = winograd.OUTPUTS, winograd.PRODUCTS
FEWEST_SHARED = PRODUCTS // 3 + 1
"""A transformed tile has at least this many outputs: with fewer, its taps take fewer products."""


def packed_panels(weight: Tensor, panel: int = PANEL) -> Tensor:
    """Lay out a weight [.., rows, C] for products: [.., panels, rows, panel], zeros beyond C."""
    panels = -(-weight.shape[-1] // panel)
    padded = weight.new_zeros(*weight.shape[:-1], panels * panel)
    padded[..., : weight.shape[-1]] = weight
    return padded.unflatten(-1, (panels, panel)).movedim(-2, -3).contiguous()


@njit
def multiply_wide(x, weight, rows, y, count, inputs, width):
    """Compute ``y = x W`` of x [count, inputs] and the last ``inputs`` rows of packed W [rows, C].

    Sums run over the inputs in their order.
    """
    C = channels_of(width)
    zero = splat(ZERO)
    for c in range(0, C, 4 * LANES):
        for p in range(0, count, AT_ONCE):
            p1, p2, p3 = min(p + 1, count - 1), min(p + 2, count - 1), min(p + 3, count - 1)
            r0, r1, r2, r3 = p * inputs, p1 * inputs, p2 * inputs, p3 * inputs
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
            d0 = d1 = d2 = d3 = e0 = e1 = e2 = e3 = zero
            at = c * rows + (rows - inputs) * 4 * LANES
            for k in range(inputs):
                wa, wb = load(weight, at), load(weight, at + LANES)
                wd, we = load(weight, at + 2 * LANES), load(weight, at + 3 * LANES)
                at += 4 * LANES
                v = splat(number(x, r0 + k))
                a0, b0, d0, e0 = fma(v, wa, a0), fma(v, wb, b0), fma(v, wd, d0), fma(v, we, e0)
                v = splat(number(x, r1 + k))
                a1, b1, d1, e1 = fma(v, wa, a1), fma(v, wb, b1), fma(v, wd, d1), fma(v, we, e1)
                v = splat(number(x, r2 + k))
                a2, b2, d2, e2 = fma(v, wa, a2), fma(v, wb, b2), fma(v, wd, d2), fma(v, we, e2)
                v = splat(number(x, r3 + k))
                a3, b3, d3, e3 = fma(v, wa, a3), fma(v, wb, b3), fma(v, wd, d3), fma(v, we, e3)
            _keep(y, p * C + c, C - c, a0, b0, d0, e0)
            _keep(y, p1 * C + c, C - c, a1, b1, d1, e1)
            _keep(y, p2 * C + c, C - c, a2, b2, d2, e2)
            _keep(y, p3 * C + c, C - c, a3, b3, d3, e3)


@njit
def _keep(y, at, n, a, b, d, e):
    store_first(y, at, a, n)
    store_first(y, at + LANES, b, n - LANES)
    store_first(y, at + 2 * LANES, d, n - 2 * LANES)
    store_first(y, at + 3 * LANES, e, n - 3 * LANES)


@njit
def multiply_narrow(x, weight, rows, y, count, inputs, width):
    """Compute ``y = x W`` as ``multiply_wide`` does, for sixteen registers of eight numbers.

    Six rows by one panel fill these registers. ``simd._store_first`` states what whole stores gain
    here, without AVX-512.
    """
    C = channels_of(width)
    for c in range(0, C, LANES):
        for p in range(0, count, 6):
            p1, p2, p3 = min(p + 1, count - 1), min(p + 2, count - 1), min(p + 3, count - 1)
            p4, p5 = min(p + 4, count - 1), min(p + 5, count - 1)
            r0, r1, r2, r3 = p * inputs, p1 * inputs, p2 * inputs, p3 * inputs
            r4, r5 = p4 * inputs, p5 * inputs
            a0 = a1 = a2 = a3 = a4 = a5 = splat(ZERO)
            at = c * rows + (rows - inputs) * LANES
            for k in range(inputs):
                w = load(weight, at)
                at += LANES
                a0, a1 = fma(splat(number(x, r0 + k)), w, a0), fma(splat(number(x, r1 + k)), w, a1)
                a2, a3 = fma(splat(number(x, r2 + k)), w, a2), fma(splat(number(x, r3 + k)), w, a3)
                a4, a5 = fma(splat(number(x, r4 + k)), w, a4), fma(splat(number(x, r5 + k)), w, a5)
            store_first(y, p * C + c, a0, C - c)
            store_first(y, p1 * C + c, a1, C - c)
            store_first(y, p2 * C + c, a2, C - c)
            store_first(y, p3 * C + c, a3, C - c)
            store_first(y, p4 * C + c, a4, C - c)
            store_first(y, p5 * C + c, a5, C - c)


_multiply = multiply_wide if HAS_WIDE_REGISTERS else multiply_narrow


@njit
def _taps_within(tiles, i, missing, K):
    """The number of an output's taps that are within the sequence."""
    for k in range(K):
        if tiles[i + k] > missing:
            return K - k
    return 0


@njit
def _is_shared(tiles, row, skipped, missing):
    """True if a tile's outputs take fewer products by the transform than from their taps."""
    if tiles[row] > skipped and tiles[row + OUTPUTS] > missing:
        return True
    taps = 0
    for i in range(OUTPUTS):
        if tiles[row + i] > skipped:
            taps += _taps_within(tiles, row + OUTPUTS + i, missing, 3)
    return taps > PRODUCTS


@njit
def _combine(x, r0, r1, r2, r3, r4, r5, out, at, step, width):
    """Transform a tile's six inputs: evaluate their polynomial at the six points."""
    C = channels_of(width)
    a, b, a2, b2, squares = splat(A), splat(B), splat(-A2), splat(-B2), splat(-SQUARES)
    for c in range(0, C, LANES):
        n = C - c
        d0, d1, d2 = load_first(x, r0 + c, n), load_first(x, r1 + c, n), load_first(x, r2 + c, n)
        d3, d4, d5 = load_first(x, r3 + c, n), load_first(x, r4 + c, n), load_first(x, r5 + c, n)
        even_a, odd_a = fma(d2, b2, d4), mul(fma(d1, b2, d3), a)
        even_b, odd_b = fma(d2, a2, d4), mul(fma(d1, a2, d3), b)
        to = at + c
        store_first(out, to, fma(d2, squares, add(d0, d4)), n)
        store_first(out, to + step, add(even_a, odd_a), n)
        store_first(out, to + 2 * step, sub(even_a, odd_a), n)
        store_first(out, to + 3 * step, add(even_b, odd_b), n)
        store_first(out, to + 4 * step, sub(even_b, odd_b), n)
        store_first(out, to + 5 * step, fma(d3, squares, add(d1, d5)), n)


@njit
def _interpolate(products, at, step, bias, y, p0, p1, p2, p3, width):
    """Transform a tile's six products back to its four outputs."""
    C = channels_of(width)
    a, a2, a3, b, b2, b3 = splat(A), splat(A2), splat(A3), splat(B), splat(B2), splat(B3)
    for c in range(0, C, LANES):
        n, z = C - c, at + c
        m0, m1 = load_first(products, z, n), load_first(products, z + step, n)
        m2, m3 = load_first(products, z + 2 * step, n), load_first(products, z + 3 * step, n)
        m4, m5 = load_first(products, z + 4 * step, n), load_first(products, z + 5 * step, n)
        w = load_first(bias, c, n)
        even_a, odd_a, even_b, odd_b = add(m1, m2), sub(m1, m2), add(m3, m4), sub(m3, m4)
        store_first(y, p0 + c, add(add(m0, w), add(even_a, even_b)), n)
        store_first(y, p1 + c, fma(odd_a, a, fma(odd_b, b, w)), n)
        store_first(y, p2 + c, fma(even_a, a2, fma(even_b, b2, w)), n)
        store_first(y, p3 + c, fma(odd_a, a3, fma(odd_b, b3, add(m5, w))), n)


@njit
def _lay_tiles(
    x, at, missing, tiles, tile_count, skipped, zero_row, transformed, step, taps, counts, capacity,
    width, K,
):  # fmt: skip
    """Write the left operands of a sequence's products behind those of earlier sequences.

    ``counts[0]`` is the number of tiles, ``counts[n]`` that of outputs with n taps. The operands of
    these are [capacity, n·C] each, behind those with fewer taps.
    """
    C = channels_of(width)
    outputs = OUTPUTS if K == 3 else 1
    for tile in range(tile_count):
        row = tile * (2 * outputs + K - 1)
        if tiles[row + outputs - 1] <= skipped:
            break
        inputs = row + outputs
        if outputs > 1 and _is_shared(tiles, row, skipped, missing):
            _combine(
                x, tap_at(tiles, inputs, missing, at, zero_row, C),
                tap_at(tiles, inputs + 1, missing, at, zero_row, C),
                tap_at(tiles, inputs + 2, missing, at, zero_row, C),
                tap_at(tiles, inputs + 3, missing, at, zero_row, C),
                tap_at(tiles, inputs + 4, missing, at, zero_row, C),
                tap_at(tiles, inputs + 5, missing, at, zero_row, C),
                transformed, counts[0] * C, step, width,
            )  # fmt: skip
            counts[0] += 1
            continue
        for i in range(outputs):
            if tiles[row + i] > skipped:
                n = _taps_within(tiles, inputs + i, missing, K)
                to = (capacity * (n * (n - 1) // 2) + counts[n] * n) * C
                for k in range(K - n, K):
                    source = tap_at(tiles, inputs + i + k, missing, at, zero_row, C)
                    for c in range(0, C, LANES):
                        copy_first(taps, to + c, x, source + c, C - c)
                    to += C
                counts[n] += 1


@njit
def _take_outputs(
    missing, tiles, tile_count, skipped, transformed, step, taps, counts, capacity, bias, y,
    width, K,
):  # fmt: skip
    """Compute a sequence's outputs from their products, in the order of ``_lay_tiles``."""
    C = channels_of(width)
    outputs = OUTPUTS if K == 3 else 1
    for tile in range(tile_count):
        row = tile * (2 * outputs + K - 1)
        if tiles[row + outputs - 1] <= skipped:
            break
        inputs = row + outputs
        if outputs > 1 and _is_shared(tiles, row, skipped, missing):
            p0 = (np.int64(tiles[row]) - skipped - 1) * C
            p1 = (np.int64(tiles[row + 1]) - skipped - 1) * C
            p2 = (np.int64(tiles[row + 2]) - skipped - 1) * C
            p3 = (np.int64(tiles[row + 3]) - skipped - 1) * C
            if p0 < 0:  # only the oldest can be missing; the next one overwrites it
                p0 = p1
            _interpolate(transformed, counts[0] * C, step, bias, y, p0, p1, p2, p3, width)
            counts[0] += 1
            continue
        for i in range(outputs):
            to = (np.int64(tiles[row + i]) - skipped - 1) * C
            if to >= 0:
                n = _taps_within(tiles, inputs + i, missing, K)
                source = (capacity * (n - 1) + counts[n]) * C
                for c in range(0, C, LANES):
                    own = load_first(taps, source + c, C - c)
                    store_first(y, to + c, add(own, load_first(bias, c, C - c)), C - c)
                counts[n] += 1


@njit
def convolve(
    source_, source_offsets, source_origin, target, target_offsets, target_origin, first, last,
    start, stop, x, x_offsets, longest_x, slots, patch_args, args, scratch_, places,
    width, K, centre, eps, weight,
):  # fmt: skip
    """Compute a convolution of sequences [first, last), their patch, norm, ReLU and residual.

    Sequences are at their offsets less the origin. ``x`` are the block's inputs for the residual.
    """
    C = channels_of(width)
    source = float_pointer(source_)
    tiles, tile_count = int_pointer(args[0]), args[1]
    bias, residual_ = float_pointer(args[4]), args[7]
    longest_in, longest = args[8], args[9]
    mode, H = patch_args[0], patch_args[1]
    down, down_bias = pointer_like(patch_args[4], weight), pointer_like(patch_args[5], weight)
    up, up_bias = pointer_like(patch_args[6], weight), pointer_like(patch_args[7], weight)
    has_own = patch_args[10] != 0
    norm_weight = float_pointer(patch_args[10] if has_own else args[5])
    norm_bias = float_pointer(patch_args[11] if has_own else args[6])
    zero_row = (scratch_ - source_) // 4 + places[0]
    transformed, transformed_products = scratch_ + 4 * places[1], scratch_ + 4 * places[2]
    taps, taps_products = scratch_ + 4 * places[3], scratch_ + 4 * places[4]
    counts, capacity = long_pointer(scratch_ + 4 * places[5]), places[12]
    y, s = float_pointer(scratch_ + 4 * places[6]), float_pointer(scratch_ + 4 * places[7])
    step = (places[2] - places[1]) // PRODUCTS
    for n in range(K + 1):
        counts[n] = 0
    for sequence in range(first, last):
        at = np.int64(source_offsets[sequence]) - source_origin
        missing = longest_in - (
            np.int64(source_offsets[sequence + 1]) - np.int64(source_offsets[sequence])
        )
        skipped = longest - (
            np.int64(target_offsets[sequence + 1]) - np.int64(target_offsets[sequence])
        )
        _lay_tiles(
            source, at, missing, tiles, tile_count, skipped, zero_row,
            float_pointer(transformed), step, float_pointer(taps), counts, capacity, width, K,
        )  # fmt: skip
    panels = (C + PANEL - 1) // PANEL * PANEL
    for i in range(PRODUCTS if counts[0] > 0 else 0):
        _multiply(
            float_pointer(transformed + 4 * i * step),
            float_pointer(args[2] + 4 * i * C * panels), C,
            float_pointer(transformed_products + 4 * i * step), counts[0], C, width,
        )  # fmt: skip
    for n in range(1, K + 1):
        _multiply(
            float_pointer(taps + 4 * capacity * (n * (n - 1) // 2) * C), float_pointer(args[3]),
            K * C,
            float_pointer(taps_products + 4 * capacity * (n - 1) * C), counts[n], n * C, width,
        )  # fmt: skip
    for n in range(K + 1):
        counts[n] = 0
    for sequence in range(first, last):
        at = np.int64(source_offsets[sequence]) - source_origin
        missing = longest_in - (
            np.int64(source_offsets[sequence + 1]) - np.int64(source_offsets[sequence])
        )
        count = np.int64(target_offsets[sequence + 1]) - np.int64(target_offsets[sequence])
        skipped = longest - count
        _take_outputs(
            missing, tiles, tile_count, skipped, float_pointer(transformed_products), step,
            float_pointer(taps_products), counts, capacity, bias, y, width, K,
        )  # fmt: skip
        if mode & READS_INPUT:
            take_inputs(
                source, at, missing, tiles, tile_count, skipped, zero_row, s, centre, width, K
            )
        patch = next_patch = norm = np.int64(0)
        if mode != 0:
            patch, next_patch = sequence_patch(
                slots, sequence - start, stop - start, patch_args[2], patch_args[3]
            )
        if has_own:
            norm = (np.int64(slots[sequence - start]) * patch_args[8] + patch_args[9]) * C
        entry = (np.int64(x_offsets[sequence + 1]) - longest_x) * C
        to = (np.int64(target_offsets[sequence]) - target_origin) * C
        finish_sequence(
            y, C, count, s, x, entry, residual_, skipped, target, to, scratch_, mode, H, patch,
            next_patch, down, down_bias, up, up_bias, norm_weight, norm_bias, norm, width, eps,
        )  # fmt: skip
