"""Vectors of numbers in memory, with wide registers and without."""

import os
import subprocess
import sys

import pytest

LOAD_PARTS = """
import numpy as np
import torch
from numba import njit
from peterrec.model.inference.cpu.simd import LANES, float_pointer, half_pointer, load_first, store

@njit
def widened(halves, at, count, out):
    store(float_pointer(out), 0, load_first(half_pointer(halves), at, count))

numbers = torch.arange(1, 41).bfloat16()
for at in (0, 1, 16):
    for count in (-3, *range(20)):
        out = torch.full((LANES,), torch.nan)
        widened(numbers.data_ptr(), at, count, out.data_ptr())
        expected = torch.zeros(LANES)
        here = max(0, min(count, LANES))
        expected[:here] = numbers[at : at + here]
        assert torch.equal(out, expected), (at, count, out)
print("equal")
"""

STORE_PARTS = """
import numpy as np
import torch
from numba import njit
from peterrec.model.inference.cpu.simd import copy_first, load, pointer_like, store_first

@njit
def stored(numbers, out, at, count, sample):
    out = pointer_like(out, sample)
    store_first(out, at, load(pointer_like(numbers, sample), 0), count)

@njit
def copied(numbers, out, at, count, sample):
    copy_first(pointer_like(out, sample), at, pointer_like(numbers, sample), 0, count)

for dtype, sample in ((torch.float32, np.float32(0)), (torch.bfloat16, np.uint16(0))):
    numbers = torch.arange(1, 17).to(dtype)
    for write in (stored, copied):
        for at in (0, 1, 16):
            for count in (-3, *range(20)):
                out = torch.full((40,), 99).to(dtype)
                write(numbers.data_ptr(), out.data_ptr(), at, count, sample)
                expected = torch.full((40,), 99).to(dtype)
                here = max(0, min(count, 16))
                expected[at : at + here] = numbers[:here]
                assert torch.equal(out, expected), (write, dtype, at, count, out)
print("equal")
"""

NARROW = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2"}


@pytest.mark.slow
@pytest.mark.parametrize("processor", [{}, NARROW], ids=["this one", "without AVX-512"])
@pytest.mark.parametrize("program", [LOAD_PARTS, STORE_PARTS], ids=["read", "written"])
def test_so_many_numbers_are_moved_as_are_wanted(processor: dict[str, str], program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **processor}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr
