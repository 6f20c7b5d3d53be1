# mypy: ignore-errors
# What follows is numba's to type: names hold vectors and typed addresses.
"""A patch's item reader on a CPU: each row's queries over its history's items, in one pass.

It computes what ``model/network/history_reader.py`` defines. Names and types are those of
``patch_kernel.py``. Items are normalised once for neighbouring rows of one history. Every row is
computed in a fixed order that does not depend on its neighbours.
"""

import numpy as np
from numba import njit

from peterrec.model.inference.cpu.compiled import compiled
from peterrec.model.inference.cpu.patch_kernel import (
    AT_ONCE,
    ONE,
    ZERO,
    channels_of,
    gelu,
    narrow,
)
from peterrec.model.inference.cpu.simd import (
    LANES,
    add,
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
    rectify,
    splat,
    store,
    store_first,
    sub,
    total,
)

LOG2_E = np.float32(1.4426950408889634)


def reader_scratch(longest: int, channels: int, queries: int, bottleneck: int) -> int:
    """Scratch for histories of up to ``longest`` items, in float32 numbers."""
    return sum(_parts(longest, channels, queries, bottleneck))


def _parts(longest: int, channels: int, queries: int, bottleneck: int) -> tuple[int, int, int, int]:
    """Sizes of items, scores, pooled vectors and hidden values; some are read past a row's end."""
    return (
        longest * channels + LANES,
        longest * _tall(queries),
        queries * channels + LANES,
        _tall(bottleneck),
    )


def _tall(count: int) -> int:
    return -(-count // LANES) * LANES


@compiled
def read_items(
    tokens_, offsets_, history_, embedding_, users_, scratch_, longest,
    start, stop, slots_, queries, H, query_, down_, down_bias_, up_, up_bias_,
    width, eps, weight,
):  # fmt: skip
    """Add the reader's change to the user vectors float32 [rows, C] of rows [start, stop).

    Tokens int32 of history ``i`` are at ``offsets[i] .. offsets[i + 1]``; ``history`` int32 [rows]
    is the number of each row's. Weights are stacked over slots, ``slots`` int32 [stop - start].
    """
    C = channels_of(width)
    tokens, offsets, history = int_pointer(tokens_), int_pointer(offsets_), int_pointer(history_)
    embedding, users = float_pointer(embedding_), float_pointer(users_)
    slots, query = int_pointer(slots_), pointer_like(query_, weight)
    down, down_bias = pointer_like(down_, weight), pointer_like(down_bias_, weight)
    up, up_bias = pointer_like(up_, weight), pointer_like(up_bias_, weight)
    tall = (queries + LANES - 1) // LANES * LANES
    items, at = float_pointer(scratch_), longest * C + LANES
    scores, at = float_pointer(scratch_ + 4 * at), at + longest * tall
    pooled, at = float_pointer(scratch_ + 4 * at), at + queries * C + LANES
    hidden = float_pointer(scratch_ + 4 * at)
    known = np.int64(-1)
    for row in range(start, stop):
        own = np.int64(history[row])
        begin = np.int64(offsets[own])
        count = np.int64(offsets[own + 1]) - begin
        if own != known:
            _normalise_items(tokens, begin, count, embedding, items, width, eps)
            known = own
        slot = np.int64(slots[row - start])
        _weigh(items, count, query, slot, queries, scores, tall, width)
        _pool(items, count, scores, tall, queries, pooled, width, eps)
        size = queries * C
        for h in range(0, H, LANES):
            bias = load_first(down_bias, slot * H + h, H - h)
            store(hidden, h, gelu(add(_down(pooled, size, down, slot * size * H, H, h), bias)))
        for c in range(0, C, LANES):
            n = C - c
            change = load_first(up_bias, slot * C + c, n)
            for h in range(H):
                weights = load_first(up, (slot * H + h) * C + c, n)
                change = fma(splat(number(hidden, np.int64(h))), weights, change)
            at = row * C + c
            store_first(users, at, add(load_first(users, at, n), change), n)


@njit
def _normalise_items(tokens, begin, count, embedding, items, width, eps):
    """Write each item's embedding, normalised by a LayerNorm without weights."""
    C = channels_of(width)
    for t in range(count):
        source = np.int64(tokens[begin + t]) * C
        for c in range(0, C, LANES):
            store_first(items, t * C + c, load_first(embedding, source + c, C - c), C - c)
        _normalise(items, t * C, width, eps)


@njit
def _normalise(rows, at, width, eps):
    """Normalise the C numbers at ``at`` in place: subtract the mean, divide by the deviation."""
    C = channels_of(width)
    mean = splat(ZERO)
    for c in range(0, C, LANES):
        mean = add(mean, load_first(rows, at + c, C - c))
    mean = splat(total(mean) / np.float32(C))
    squares = splat(ZERO)
    for c in range(0, C, LANES):
        d = first(sub(load_first(rows, at + c, C - c), mean), C - c)
        squares = fma(d, d, squares)
    scale = splat(ONE / np.sqrt(total(squares) / np.float32(C) + eps))
    for c in range(0, C, LANES):
        n = C - c
        store_first(rows, at + c, mul(sub(load_first(rows, at + c, n), mean), scale), n)


@njit
def _weigh(items, count, query, slot, queries, scores, tall, width):
    """Compute each query's softmax over the items, scores [count, tall]."""
    C = channels_of(width)
    for k in range(0, queries, LANES):
        for t in range(0, count, AT_ONCE):
            t1, t2, t3 = min(t + 1, count - 1), min(t + 2, count - 1), min(t + 3, count - 1)
            a0, a1, a2, a3 = narrow(
                items, t * C, t1 * C, t2 * C, t3 * C, query, slot, queries, width, k
            )
            store(scores, t * tall + k, a0)
            store(scores, t1 * tall + k, a1)
            store(scores, t2 * tall + k, a2)
            store(scores, t3 * tall + k, a3)
        highest = splat(ZERO)
        for t in range(count):
            score = load(scores, t * tall + k)
            highest = score if t == 0 else add(highest, rectify(sub(score, highest)))
        whole, log2_e = splat(ZERO), splat(LOG2_E)
        for t in range(count):
            weight = exp2(mul(sub(load(scores, t * tall + k), highest), log2_e))
            whole = add(whole, weight)
            store(scores, t * tall + k, weight)
        for t in range(count):
            store(scores, t * tall + k, div(load(scores, t * tall + k), whole))


@njit
def _pool(items, count, scores, tall, queries, pooled, width, eps):
    """Compute the items' mean by each query's weights, normalised; 64 channels at a time."""
    C = channels_of(width)
    for k in range(queries):
        for c in range(0, C, 4 * LANES):
            n = C - c
            a0 = a1 = a2 = a3 = splat(ZERO)
            for t in range(count):
                weight, at = splat(number(scores, t * tall + k)), t * C + c
                a0 = fma(weight, load_first(items, at, n), a0)
                a1 = fma(weight, load_first(items, at + 16, n - 16), a1)
                a2 = fma(weight, load_first(items, at + 32, n - 32), a2)
                a3 = fma(weight, load_first(items, at + 48, n - 48), a3)
            to = k * C + c
            store_first(pooled, to, a0, n)
            store_first(pooled, to + 16, a1, n - 16)
            store_first(pooled, to + 32, a2, n - 32)
            store_first(pooled, to + 48, a3, n - 48)
        _normalise(pooled, k * C, width, eps)


@njit
def _down(pooled, size, down, begin, H, h):
    """Sixteen columns of ``p D`` from h on, for p [size]; four sums, so that additions overlap."""
    n = H - h
    a0 = a1 = a2 = a3 = splat(ZERO)
    whole = size // 4 * 4
    for i in range(0, whole, 4):
        at = begin + i * H + h
        a0 = fma(splat(number(pooled, i)), load_first(down, at, n), a0)
        a1 = fma(splat(number(pooled, i + 1)), load_first(down, at + H, n), a1)
        a2 = fma(splat(number(pooled, i + 2)), load_first(down, at + 2 * H, n), a2)
        a3 = fma(splat(number(pooled, i + 3)), load_first(down, at + 3 * H, n), a3)
    for i in range(whole, size):
        a0 = fma(splat(number(pooled, i)), load_first(down, begin + i * H + h, n), a0)
    return add(add(a0, a1), add(a2, a3))
