# mypy: ignore-errors
# What follows is numba's to type: names hold vectors and typed addresses.
"""Convolutions and patches whose operands are rounded to bfloat16, for a processor's matrix units.

Sums, and all arithmetic between products, are float32. An output has a row of operands, its taps
side by side, and a row of sums on which patch and norm then work in place. Names and types are
those of ``patch_kernel.py``; a *depth* counts tiles of 32 numbers. ``amx.py`` states the gain.
"""

import numpy as np
from numba import njit
from torch import Tensor, bfloat16

from peterrec.model.inference.cpu.amx import (
    DEPTH,
    HAS_MATRIX_UNITS,
    ROWS,
    TILE_BYTES,
    load_one,
    load_two,
    multiply_one,
    multiply_two,
    store_one,
    store_two,
)
from peterrec.model.inference.cpu.patch_kernel import (
    ZERO,
    channels_of,
    finish_sequence,
    gelu,
    sequence_patch,
    take_inputs,
    tap_at,
)
from peterrec.model.inference.cpu.simd import (
    LANES,
    add,
    float_pointer,
    half_pointer,
    int_pointer,
    is_half,
    load,
    load_first,
    number,
    pointer_like,
    splat,
    store,
    store_first,
    store_pairs,
    sub,
)
from peterrec.model.inference.cpu.winograd import OUTPUTS
from peterrec.model.insertions import ADDS_SOURCE, READS_INPUT

BLOCK = 2 * ROWS
"""Rows (and columns) of a product that are held in registers together."""

POSITIONS = 32
"""Positions of a sequence that get patch and norm together: they stay in the first cache."""

STRETCH = 8
"""Depth at which 32 rows of operands stay in the first cache while weights stream through it."""


def whole_tiles(count: int) -> int:
    """Round a number of rows, columns or inputs up to whole blocks of a product."""
    return -(-count // BLOCK) * BLOCK


def packed_pairs(weight: Tensor) -> Tensor:
    """Lay out a weight [k, C in, C out] for products: bfloat16 [columns, k·depth, 16, 16, 2].

    A tile has sixteen columns of 32 rows, numbers of two rows side by side, and zeros beyond C.
    """
    kernel, inputs, outputs = weight.shape
    padded = weight.new_zeros(kernel, whole_tiles(inputs), whole_tiles(outputs))
    padded[:, :inputs, :outputs] = weight
    tiles = padded.flatten(0, 1).reshape(-1, DEPTH // 2, 2, padded.shape[2] // ROWS, ROWS)
    return tiles.permute(3, 0, 1, 4, 2).to(bfloat16).contiguous()


@njit
def multiply_in_tiles(
    x_, x_step, count, rest, weight_, rest_, depth, columns, start_, start_step, y_, y_step
):  # fmt: skip
    """Compute ``y = start + x W`` of bfloat16 rows x [count, depth], y float32 [count, columns].

    Lines are ``.._step`` bytes apart. If ``rest`` is not 0, it is the offset in bytes at which each
    line has the remainders of x's rounding, and ``rest_`` is the address of those of W. Rows are
    read and written up to the next multiple of 16.
    """
    for r in range(0, count, BLOCK):
        x, y, is_one = x_ + r * x_step, y_ + r * y_step, count - r <= ROWS
        start = start_ + r * start_step
        _add_rows(x, x_step, weight_, depth, columns, start, start_step, y, y_step, is_one)
        if rest != 0:
            _add_rows(x + rest, x_step, weight_, depth, columns, y, y_step, y, y_step, is_one)
        if rest_ != 0:
            _add_rows(x, x_step, rest_, depth, columns, y, y_step, y, y_step, is_one)


@njit
def _add_rows(x, x_step, weight, depth, columns, start, start_step, y, y_step, is_one):
    """Multiply up to 32 rows, STRETCH of the depth at a time so that x stays in the first cache."""
    apart = depth * TILE_BYTES
    for k in range(0, depth, STRETCH):
        count = min(STRETCH, depth - k)
        for c in range(0, columns, BLOCK):
            left, right = x + k * 2 * DEPTH, weight + c // ROWS * apart + k * TILE_BYTES
            if is_one:
                load_one(start + 4 * c, start_step)
                for _ in range(count):
                    multiply_one(left, x_step, right, apart)
                    left, right = left + 2 * DEPTH, right + TILE_BYTES
                store_one(y + 4 * c, y_step)
            else:
                load_two(start + 4 * c, start_step)
                for _ in range(count):
                    multiply_two(left, x_step, right, apart)
                    left, right = left + 2 * DEPTH, right + TILE_BYTES
                store_two(y + 4 * c, y_step)
        start, start_step = y, y_step


@njit
def multiply_by_number(
    x_, x_step, count, rest, weight_, rest_, depth, columns, start_, start_step, y_, y_step
):  # fmt: skip
    """Compute what ``multiply_in_tiles`` does, on any processor, slowly; only tests use it."""
    apart = depth * TILE_BYTES
    for r in range(count):
        start, out = float_pointer(start_ + r * start_step), float_pointer(y_ + r * y_step)
        for c in range(columns):
            place = c // ROWS * apart + c % ROWS * 4
            x = x_ + r * x_step
            total = number(start, c) + _dot(x, weight_ + place, depth)
            if rest != 0:
                total += _dot(x + rest, weight_ + place, depth)
            if rest_ != 0:
                total += _dot(x, rest_ + place, depth)
            store_first(out, c, splat(total), 1)


@njit
def _dot(x_, w_, depth):
    x, w = half_pointer(x_), half_pointer(w_)
    total = ZERO
    for pair in range(depth * DEPTH // 2):
        for i in range(2):
            total += number(x, 2 * pair + i) * number(w, pair * 2 * ROWS + i)
    return total


_multiply = multiply_in_tiles if HAS_MATRIX_UNITS else multiply_by_number


@njit
def _padded(width):
    C = channels_of(width)
    return (C + BLOCK - 1) // BLOCK * BLOCK


@njit
def _lay_taps(
    x, at, missing, tiles, tile_count, skipped, zero_row, taps, first, parts, width, K
):  # fmt: skip
    """Write a sequence's taps as rows of operands [.., parts, K, padded C] from row ``first`` on.

    Rows are in the order of the outputs; taps before the history are zeros. The second part holds
    the remainders of the first part's rounding.
    """
    C, pitch = channels_of(width), _padded(width)
    outputs, rest = OUTPUTS if K == 3 else 1, K * pitch
    for tile in range(tile_count):
        row = tile * (2 * outputs + K - 1)
        if tiles[row + outputs - 1] <= skipped:
            break
        for i in range(outputs):
            if tiles[row + i] > skipped:
                to = (first + np.int64(tiles[row + i]) - skipped - 1) * rest * parts
                for k in range(K):
                    source = tap_at(tiles, row + outputs + i + k, missing, at, zero_row, C)
                    for c in range(0, pitch, LANES):
                        value = load_first(x, source + c, C - c)
                        store(taps, to + c, value)
                        if parts > 1:
                            left = sub(value, load(taps, to + c))
                            store(taps, to + rest + c, left)
                    to += pitch


@njit
def _pack(weight, at, rows, columns, out_, depth):
    """Lay out one weight [rows, columns] in memory as ``packed_pairs`` does."""
    for tile in range((columns + BLOCK - 1) // BLOCK * 2):
        c = tile * ROWS
        for row in range(0, depth * DEPTH, 2):
            low = load_first(weight, at + row * columns + c, columns - c if row < rows else 0)
            row += 1
            high = load_first(weight, at + row * columns + c, columns - c if row < rows else 0)
            store_pairs(out_, tile * depth * TILE_BYTES + (row - 1) * 2 * ROWS, low, high)


def rounded_patch_numbers(channels: int, bottleneck: int) -> int:
    """Scratch that a rounded patch takes, in float32 numbers."""
    wide, tall = whole_tiles(channels), whole_tiles(bottleneck)
    return wide * tall + tall + POSITIONS * (wide // 2 + tall // 2 + tall) + ROWS * wide


@njit
def _patch_places(packed_, H, width):
    """Addresses of a sequence's packed weights, its bias and the operands and sums of its rows."""
    wide, tall = _padded(width), (H + BLOCK - 1) // BLOCK * BLOCK
    up_ = packed_ + 2 * wide * tall
    bias_ = up_ + 2 * wide * tall
    operands_ = bias_ + 4 * tall
    hidden_ = operands_ + 2 * POSITIONS * wide
    values_ = hidden_ + 2 * POSITIONS * tall
    return tall, up_, bias_, operands_, hidden_, values_, values_ + 4 * POSITIONS * tall


@njit
def _pack_patch(packed_, H, patch, down, down_bias, up, width):
    """Lay out a sequence's patch for products."""
    C = channels_of(width)
    tall, up_, bias_, _, _, _, _ = _patch_places(packed_, H, width)
    bias = float_pointer(bias_)
    for h in range(0, tall, LANES):
        store(bias, h, load_first(down_bias, patch * H + h, H - h))
    _pack(down, patch * C * H, C, H, packed_, _padded(width) // DEPTH)
    _pack(up, patch * C * H, H, C, up_, tall // DEPTH)


@njit
def _add_packed_patch(y_, s, s_row, rows, packed_, mode, H, patch, up_bias, width):
    """Add the patch that ``_pack_patch`` laid out to up to POSITIONS rows."""
    C, pitch = channels_of(width), _padded(width)
    tall, up_, bias_, operands_, hidden_, values_, sums_ = _patch_places(packed_, H, width)
    y, operands, hidden = float_pointer(y_), half_pointer(operands_), half_pointer(hidden_)
    values, sums, none = float_pointer(values_), float_pointer(sums_), np.int64(0)
    for c in range(0, pitch, LANES):
        n, bias = C - c, load_first(up_bias, patch * C + c, C - c)
        for p in range(rows):
            value = load_first(y, p * pitch + c, n)
            result = add(value, bias)
            if mode & READS_INPUT:
                value = load_first(s, (s_row + p) * C + c, n)
            if mode & ADDS_SOURCE:
                result = add(result, value)
            store(operands, p * pitch + c, value)
            store(y, p * pitch + c, result)
    _multiply(
        operands_, 2 * pitch, rows, none, packed_, none, pitch // DEPTH, tall,
        bias_, none, values_, 4 * tall,
    )  # fmt: skip
    for at in range(0, rows * tall, LANES):
        store(hidden, at, gelu(load(values, at)))
    whole = rows // ROWS * ROWS
    _multiply(
        hidden_, 2 * tall, whole, none, up_, none, tall // DEPTH, pitch, y_, 4 * pitch,
        y_, 4 * pitch,
    )  # fmt: skip
    if whole < rows:  # the rest of these sixteen rows belongs to the next sequence
        start_ = y_ + 4 * whole * pitch
        _multiply(
            hidden_ + 2 * whole * tall, 2 * tall, rows - whole, none, up_, none,
            tall // DEPTH, pitch, start_, 4 * pitch, sums_, 4 * pitch,
        )  # fmt: skip
        for c in range(0, (rows - whole) * pitch, LANES):
            store(y, whole * pitch + c, load(sums, c))


@njit
def convolve_rounded(
    source_, source_offsets, source_origin, target, target_offsets, target_origin, first, last,
    start, stop, x, x_offsets, longest_x, slots, patch_args, args, scratch_, places,
    width, K, centre, eps, weight,
):  # fmt: skip
    """Compute a convolution of sequences [first, last), their patch, norm, ReLU and residual.

    Arguments are those of ``convolve`` in ``conv_float32.py``.
    """
    C, pitch = channels_of(width), _padded(width)
    source = float_pointer(source_)
    tiles, tile_count, residual_ = int_pointer(args[0]), args[1], args[7]
    longest_in, longest = args[8], args[9]
    mode, H = patch_args[0], patch_args[1]
    down, down_bias = pointer_like(patch_args[4], weight), pointer_like(patch_args[5], weight)
    up, up_bias = pointer_like(patch_args[6], weight), pointer_like(patch_args[7], weight)
    has_own = patch_args[10] != 0
    norm_weight = float_pointer(patch_args[10] if has_own else args[5])
    norm_bias = float_pointer(patch_args[11] if has_own else args[6])
    zero_row = (scratch_ - source_) // 4 + places[0]
    taps_, products_ = scratch_ + 4 * places[3], scratch_ + 4 * places[4]
    s, packed_ = float_pointer(scratch_ + 4 * places[7]), scratch_ + 4 * places[10]
    step, parts, rest = 2 * K * pitch, np.int64(1), np.int64(0)
    if args[3] != 0:
        parts, rest = np.int64(2), step
    rows = np.int64(0)
    for sequence in range(first, last):
        at = np.int64(source_offsets[sequence]) - source_origin
        missing = longest_in - (
            np.int64(source_offsets[sequence + 1]) - np.int64(source_offsets[sequence])
        )
        count = np.int64(target_offsets[sequence + 1]) - np.int64(target_offsets[sequence])
        _lay_taps(
            source, at, missing, tiles, tile_count, longest - count, zero_row, half_pointer(taps_),
            rows, parts, width, K,
        )  # fmt: skip
        rows += count
    _multiply(
        taps_, step * parts, rows, rest, args[2], args[3], K * (pitch // DEPTH), pitch,
        args[4], np.int64(0), products_, 4 * pitch,
    )  # fmt: skip
    rows = np.int64(0)
    for sequence in range(first, last):
        at = np.int64(source_offsets[sequence]) - source_origin
        missing = longest_in - (
            np.int64(source_offsets[sequence + 1]) - np.int64(source_offsets[sequence])
        )
        count = np.int64(target_offsets[sequence + 1]) - np.int64(target_offsets[sequence])
        skipped = longest - count
        y_ = products_ + 4 * pitch * rows
        rows += count
        patch = next_patch = norm = np.int64(0)
        if mode & READS_INPUT:
            take_inputs(
                source, at, missing, tiles, tile_count, skipped, zero_row, s, centre, width, K
            )
        if mode != 0:
            patch, next_patch = sequence_patch(
                slots, sequence - start, stop - start, patch_args[2], patch_args[3]
            )
            if is_half(weight):
                _pack_patch(packed_, H, patch, down, down_bias, up, width)
        if has_own:
            norm = (np.int64(slots[sequence - start]) * patch_args[8] + patch_args[9]) * C
        entry = (np.int64(x_offsets[sequence + 1]) - longest_x) * C
        to = (np.int64(target_offsets[sequence]) - target_origin) * C
        if mode != 0 and not is_half(weight):
            finish_sequence(
                float_pointer(y_), pitch, count, s, x, entry, residual_, skipped, target, to,
                scratch_, mode, H, patch, next_patch, down, down_bias, up, up_bias, norm_weight,
                norm_bias, norm, width, eps,
            )  # fmt: skip
            continue
        for p in range(0, count, POSITIONS):
            some = min(POSITIONS, count - p)
            if mode != 0:
                _add_packed_patch(y_, s, p, some, packed_, mode, H, patch, up_bias, width)
            finish_sequence(
                float_pointer(y_), pitch, some, s, x, entry, residual_, skipped + p, target, to,
                scratch_, 0, 0, 0, 0, down, down_bias, up, up_bias, norm_weight, norm_bias, norm,
                width, eps,
            )  # fmt: skip
            y_, to = y_ + 4 * pitch * POSITIONS, to + POSITIONS * C
