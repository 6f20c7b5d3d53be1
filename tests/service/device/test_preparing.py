"""No batch and no bundle meets a kernel that is not compiled, once a store is warm."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)  # all kernels are compiled if their sources changed
@pytest.mark.parametrize(
    "options",
    [
        ("float32", "float32", "3", "exact", "1"),
        ("float32", "bfloat16", "3", "exact", "1"),
        ("bfloat16", "float32", "3", "embedded", "2"),
        ("float32", "float32", "5", "exact", "2"),
    ],
    ids="-".join,
)
def test_a_warm_store_compiles_nothing_for_bundles_of_any_kind(options):
    command = [sys.executable, "-m", "tests.service.device.late_kernels", *options]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    early, late, in_batches = map(int, shown.splitlines()[-1].split())
    assert early > 0
    assert (late, in_batches) == (0, 0)
