# mypy: ignore-errors
# What follows is numba's to type: names hold vectors and typed addresses.
"""Residual blocks on a CPU in one call: products, patches and norms, a few sequences at a time.

A few sequences go through a block together, a *gang*, so that what one step leaves is still in the
caches for the next and weights are read once for all of them. Names, types and the order of a
sequence's arithmetic as in ``packed_kernels.py``: no sequence's bits depend on its neighbours.
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
"""Numbers int64 that a convolution's and a patch's arguments take."""

GANG_POSITIONS = 256
"""About so many positions go through a block together, at least those of a sequence."""


class Scratch(NamedTuple):
    """Where in ``run_blocks``'s float32 scratch what lies; ``size`` is that of all."""

    nothing: int
    combined: int
    combined_products: int
    taps: int
    taps_products: int
    counts: int
    outputs: int
    inputs: int
    middle: int
    kept: int
    packed: int
    size: int
    gang: int

    @classmethod
    def of(cls, longest: int, channels: int, kernel_size: int, bottleneck: int) -> Self:
        """For sequences of up to ``longest`` positions, whichever operands are."""
        gang = whole_tiles(max(longest, GANG_POSITIONS))
        shared = PRODUCTS * (gang // FEWEST_SHARED) * channels
        pitch = whole_tiles(channels)  # two bfloat16 parts of an operand take a float32's room
        sizes = (
            patch_numbers(channels, bottleneck), channels, shared, shared,
            gang * kernel_size * (kernel_size + 1) // 2 * pitch,
            (gang * kernel_size + ROWS) * pitch, 2 * (kernel_size + 1), longest * channels,
            longest * channels, gang * channels, LANES, rounded_patch_numbers(channels, bottleneck),
        )  # fmt: skip
        padded = [-(-size // LANES) * LANES for size in sizes]
        return cls(*accumulate(padded), gang)


@compiled
def run_blocks(
    x_, other_, base_, sequences, begin, end, start, stop, slots_, patches_, convs_, scratch_,
    places_, width, K, centre, eps, is_rounded, weight,
):  # fmt: skip
    """Blocks [begin, end) of sequences [start, stop), whose patches lie in one pool.

    ``x`` and ``other`` take turns, block by block. ``patches`` int64 [convs, 12] and ``convs``
    int64 [convs, 10] tell of each convolution what ``PatchArgs`` and ``ConvArgs`` say; ``places``
    is a ``Scratch``. ``is_rounded`` is None unless operands of products are bfloat16: by that, and
    by nothing else, the compiler leaves out what is not called.
    """
    places = long_pointer(places_)
    slots, step, gang = int_pointer(slots_), (sequences + 1) * 4, places[12]
    middle_, kept_ = scratch_ + 4 * places[8], scratch_ + 4 * places[9]
    nothing, zero = float_pointer(scratch_ + 4 * places[0]), splat(ZERO)
    for c in range(0, channels_of(width), LANES):
        store(nothing, c, zero)
    if is_rounded is not None and HAS_MATRIX_UNITS:
        begin_tiles(kept_)
    for block in range(begin, end):
        x, other = float_pointer(x_), float_pointer(other_)
        x_base = int_pointer(base_ + 2 * block * step)
        middle_base = int_pointer(base_ + (2 * block + 1) * step)
        other_base = int_pointer(base_ + (2 * block + 2) * step)
        first_args = long_pointer(convs_ + 16 * block * CONV_ARGS)
        second_args = long_pointer(convs_ + (16 * block + 8) * CONV_ARGS)
        first_patch = long_pointer(patches_ + 16 * block * PATCH_ARGS)
        second_patch = long_pointer(patches_ + (16 * block + 8) * PATCH_ARGS)
        longest_x = first_args[8]
        first = start
        while first < stop:
            last = first + 1
            origin = np.int64(middle_base[first])
            while last < stop and np.int64(middle_base[last + 1]) - origin <= gang:
                last += 1
            if is_rounded is None:
                convolve(
                    x_, x_base, np.int64(0), float_pointer(middle_), middle_base, origin, first,
                    last, start, stop, x, x_base, longest_x, slots, first_patch,
                    first_args, scratch_, places, width, K, centre, eps, weight,
                )  # fmt: skip
                convolve(
                    middle_, middle_base, origin, other, other_base, np.int64(0), first, last,
                    start, stop, x, x_base, longest_x, slots, second_patch,
                    second_args, scratch_, places, width, K, centre, eps, weight,
                )  # fmt: skip
            else:
                convolve_rounded(
                    x_, x_base, np.int64(0), float_pointer(middle_), middle_base, origin, first,
                    last, start, stop, x, x_base, longest_x, slots, first_patch,
                    first_args, scratch_, places, width, K, centre, eps, weight,
                )  # fmt: skip
                convolve_rounded(
                    middle_, middle_base, origin, other, other_base, np.int64(0), first, last,
                    start, stop, x, x_base, longest_x, slots, second_patch,
                    second_args, scratch_, places, width, K, centre, eps, weight,
                )  # fmt: skip
            first = last
        x_, other_ = other_, x_
    if is_rounded is not None and HAS_MATRIX_UNITS:
        end_tiles(kept_)
