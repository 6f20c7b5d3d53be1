"""Vectors of numbers in memory, with wide registers and without."""

import os
import subprocess
import sys

import pytest

LOAD_PARTS = """
import numpy as np
import torch
from numba import njit
from model.kernels.simd import LANES, float_pointer, half_pointer, load_first, store

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

NARROW = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2"}


@pytest.mark.parametrize("processor", [{}, NARROW], ids=["this one", "without AVX-512"])
def test_so_many_bfloat16_numbers_are_read_as_are_wanted(processor: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD_PARTS],
        env={**os.environ, **processor}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr
