"""Compiled kernels are kept on disk, but never longer than what they were compiled from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from numba import njit
from numba.core.caching import FunctionCache, NullCache

from peterrec import model

COPY_A_SEQUENCE = """
import numpy as np
import torch
from peterrec.model.inference.cpu.patch_kernel import branch, width_of
old, new = torch.ones(2, 16), torch.zeros(2, 16)
base, gather = torch.tensor([0, 2], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
places = [t.data_ptr() for t in (old, base, new, base, gather)]
branch(*places, 1, width_of(16))
stats = branch.stats
print(int(new.sum()), sum(stats.cache_hits.values()))
"""


def _run(folder: Path) -> tuple[int, int]:
    """What was copied, and how many kernels came from the disk."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "kept")}
    command = [sys.executable, "-c", COPY_A_SEQUENCE]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    copied, hits = done.stdout.split()
    return int(copied), int(hits)


@pytest.mark.slow
def test_a_kernel_is_compiled_anew_when_what_it_calls_has_changed(tmp_path: Path) -> None:
    (tmp_path / "peterrec").mkdir()
    (tmp_path / "peterrec" / "__init__.py").touch()
    shutil.copytree(Path(model.__file__).parent, tmp_path / "peterrec" / "model")
    assert _run(tmp_path) == (32, 0)
    assert _run(tmp_path) == (32, 1)
    called = tmp_path / "peterrec" / "model" / "inference" / "cpu" / "simd.py"
    source = called.read_text()
    told, nothing = "_first(builder, args[4])", "_first(builder, ir.Constant(args[4].type, 0))"
    assert source.count(told) == 1
    called.write_text(source.replace(told, nothing))
    assert _run(tmp_path) == (0, 0)


def one() -> int:
    return 1


def test_numba_asks_the_cache_that_we_put_in_place_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails with a newer numba, adapt ``compiled.py`` and its upper bound in pyproject."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    keys: list[tuple[Any, ...]] = []

    class Cache(FunctionCache):  # type: ignore[misc]  # numba is untyped
        def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
            keys.append((*super()._index_key(sig, codegen), "ours"))
            return keys[-1]

    kernel = njit(nogil=True)(one)
    assert isinstance(kernel._cache, NullCache)
    kernel._cache = Cache(one)
    assert kernel() == 1
    assert [key[-1] for key in keys] == ["ours", "ours"]  # it looked, then it saved
    assert kernel.stats.cache_path.startswith(str(tmp_path))
