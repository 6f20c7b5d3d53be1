# mypy: ignore-errors
# What follows is numba's to type: names hold vectors and typed addresses.
"""Residual blocks on a CPU in one call: products, patches and norms.

A few sequences, a *micro-batch*, go through a block together. Their activations are then still in
the caches for the next step, and weights are read once for all of them. Names, types and the order
of a sequence's arithmetic are those of ``patch_kernel.py``: the bits of a sequence's result do not
depend on its neighbours.
"""

from itertools import accumulate
from typing import NamedTuple, Self

import numpy as np

from peterrec.model.inference.cpu.amx import HAS_MATRIX_UNITS, ROWS, begin_tiles, end_tiles
from peterrec.model.inference.cpu.compiled import compiled
from peterrec.model.inference.cpu.conv_bfloat16 import (
    convolve_rounded,
    rounded_patch_numbers,
    whole_tiles,
)
from peterrec.model.inference.cpu.conv_float32 import FEWEST_SHARED, convolve
from peterrec.model.inference.cpu.patch_kernel import ZERO, channels_of, patch_numbers
from peterrec.model.inference.cpu.simd import (
    LANES,
    float_pointer,
    int_pointer,
    long_pointer,
    splat,
    store,
)
from peterrec.model.inference.cpu.winograd import PRODUCTS

CONV_ARGS, PATCH_ARGS = 10, 12
"""Count of int64 numbers in the arguments of a convolution (``ConvArgs``) and a patch."""

MICRO_BATCH_POSITIONS = 256
"""Positions of a micro-batch, but at least those of the longest sequence."""


class Scratch(NamedTuple):
    """Places of the parts of ``run_blocks``'s float32 scratch; ``size`` is the size of all.

    ``capacity`` is the number of positions that a micro-batch may have.
    """

    zero_row: int
    transformed: int
    transformed_products: int
    taps: int
    taps_products: int
    counts: int
    outputs: int
    inputs: int
    middle: int
    kept: int
    packed: int
    size: int
    capacity: int

    @classmethod
    def of(cls, longest: int, channels: int, kernel_size: int, bottleneck: int) -> Self:
        """Lay out scratch for sequences of up to ``longest`` positions, in any precision."""
        capacity = whole_tiles(max(longest, MICRO_BATCH_POSITIONS))
        shared = PRODUCTS * (capacity // FEWEST_SHARED) * channels
        pitch = whole_tiles(channels)  # two bfloat16 parts of an operand are as large as a float32
        sizes = (
            patch_numbers(channels, bottleneck), channels, shared, shared,
            capacity * kernel_size * (kernel_size + 1) // 2 * pitch,
            (capacity * kernel_size + ROWS) * pitch, 2 * (kernel_size + 1), longest * channels,
            longest * channels, capacity * channels, LANES,
            rounded_patch_numbers(channels, bottleneck),
        )  # fmt: skip
        padded = [-(-size // LANES) * LANES for size in sizes]
        return cls(*accumulate(padded), capacity)


@compiled
def run_blocks(
    x_, other_, offsets_, sequences, begin, end, start, stop, slots_, patches_, convs_, scratch_,
    places_, width, K, centre, eps, is_rounded, weight,
):  # fmt: skip
    """Compute blocks [begin, end) of sequences [start, stop), whose patches are in one pool.

    Blocks read ``x`` and write ``other`` in turn. ``patches`` int64 [convs, 12] and ``convs`` int64
    [convs, 10] hold a ``PatchArgs`` and a ``ConvArgs`` per convolution; ``places`` is a
    ``Scratch``. ``is_rounded`` is True if operands of products are bfloat16, else None: these have
    different types, so the compiler drops the branch that is never taken.
    """
    places = long_pointer(places_)
    slots, step, capacity = int_pointer(slots_), (sequences + 1) * 4, places[12]
    middle_, kept_ = scratch_ + 4 * places[8], scratch_ + 4 * places[9]
    zero_row, zero = float_pointer(scratch_ + 4 * places[0]), splat(ZERO)
    for c in range(0, channels_of(width), LANES):
        store(zero_row, c, zero)
    if is_rounded is not None and HAS_MATRIX_UNITS:
        begin_tiles(kept_)
    for block in range(begin, end):
        x, other = float_pointer(x_), float_pointer(other_)
        x_offsets = int_pointer(offsets_ + 2 * block * step)
        middle_offsets = int_pointer(offsets_ + (2 * block + 1) * step)
        other_offsets = int_pointer(offsets_ + (2 * block + 2) * step)
        first_args = long_pointer(convs_ + 16 * block * CONV_ARGS)
        second_args = long_pointer(convs_ + (16 * block + 8) * CONV_ARGS)
        first_patch = long_pointer(patches_ + 16 * block * PATCH_ARGS)
        second_patch = long_pointer(patches_ + (16 * block + 8) * PATCH_ARGS)
        longest_x = first_args[8]
        first = start
        while first < stop:
            last = first + 1
            origin = np.int64(middle_offsets[first])
            while last < stop and np.int64(middle_offsets[last + 1]) - origin <= capacity:
                last += 1
            if is_rounded is None:
                convolve(
                    x_, x_offsets, np.int64(0), float_pointer(middle_), middle_offsets, origin,
                    first, last, start, stop, x, x_offsets, longest_x, slots, first_patch,
                    first_args, scratch_, places, width, K, centre, eps, weight,
                )  # fmt: skip
                convolve(
                    middle_, middle_offsets, origin, other, other_offsets, np.int64(0), first, last,
                    start, stop, x, x_offsets, longest_x, slots, second_patch,
                    second_args, scratch_, places, width, K, centre, eps, weight,
                )  # fmt: skip
            else:
                convolve_rounded(
                    x_, x_offsets, np.int64(0), float_pointer(middle_), middle_offsets, origin,
                    first, last, start, stop, x, x_offsets, longest_x, slots, first_patch,
                    first_args, scratch_, places, width, K, centre, eps, weight,
                )  # fmt: skip
                convolve_rounded(
                    middle_, middle_offsets, origin, other, other_offsets, np.int64(0), first, last,
                    start, stop, x, x_offsets, longest_x, slots, second_patch,
                    second_args, scratch_, places, width, K, centre, eps, weight,
                )  # fmt: skip
            first = last
        x_, other_ = other_, x_
    if is_rounded is not None and HAS_MATRIX_UNITS:
        end_tiles(kept_)
