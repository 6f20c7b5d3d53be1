"""The memory of a run does not depend on how many users it scores."""

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.service.random_bundles import ITEMS

FEW, MANY = 60_000, 240_000
SLACK_KIB = 100_000
"""What allocators and threads vary by. The items of MANY take 400 MB as texts."""


def write_users(path: Path, count: int) -> Path:
    random = np.random.default_rng(1)
    flat = pa.array(ITEMS).take(pa.array(random.integers(0, len(ITEMS), 20 * count)))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * 20), flat)
    pq.write_table(pa.table({"user_id": np.arange(count), "history": lists}), path)
    return path


def peak_kib(base, out: Path, users: Path) -> int:
    """The most memory that the command took."""
    command = [
        *(sys.executable, "-P", "-m", "peterrec", "score", "--users", users, "--out", out),
        *("--backbone", base.backbone, "--bundles", base.bundles / "tags.bundle"),
        *("--tasks", "all", "--vectors", "parquet", "--quiet"),
    ]
    pid = os.posix_spawn(sys.executable, [str(each) for each in command], os.environ)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_maxrss


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_four_times_the_users_take_no_more_memory(base, tmp_path):
    few = peak_kib(base, tmp_path / "few", write_users(tmp_path / "few.parquet", FEW))
    many = peak_kib(base, tmp_path / "many", write_users(tmp_path / "many.parquet", MANY))
    assert many < few + SLACK_KIB
