"""Where compiled kernels are kept."""

import subprocess
import sys
from pathlib import Path

import pytest

from peterrec.model.errors import PathUnusable
from peterrec.service.system.kernel_cache import NUMBA, TRITON, choose_kernel_cache
from tests.unprivileged import obey_permissions


@pytest.fixture(autouse=True)
def nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (NUMBA, TRITON):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def chosen() -> dict[str, str | None]:
    import os

    return {name: os.environ.get(name) for name in (NUMBA, TRITON)}


def test_the_folder_of_the_setting_is_made_and_used(tmp_path):
    choose_kernel_cache(tmp_path / "kernels", tmp_path)
    assert chosen() == {NUMBA: str(tmp_path / "kernels"), TRITON: str(tmp_path / "kernels")}
    assert (tmp_path / "kernels").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PathUnusable):
        choose_kernel_cache(tmp_path / "file", tmp_path)


def test_with_a_home_the_compilers_choose_themselves(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    choose_kernel_cache(None, tmp_path / "data")
    assert chosen() == {NUMBA: None, TRITON: None}


def test_without_a_home_the_data_folder_is_used(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    choose_kernel_cache(None, tmp_path / "data")
    assert chosen()[TRITON] == str(tmp_path / "data" / "kernels")


KERNEL = """
from peterrec.model.inference.cpu.compiled import compiled

@compiled
def double(numbers):
    for index in range(len(numbers)):
        numbers[index] *= 2
"""


def doubled(folder: Path, limit_bytes: int | None = None, **environment: str) -> tuple[str, str]:
    """Run a kernel of a module in this folder in a child; returns its output and its log."""
    program = (
        "import resource, sys, numpy\n"
        f"limit = {limit_bytes}\n"
        "import kernel\n"
        "if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "numbers = numpy.arange(3)\n"
        "kernel.double(numbers)\n"
        "print(*numbers)\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        env={"PYTHONPATH": ":".join([str(folder), *sys.path]), **environment},
        preexec_fn=obey_permissions,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip(), done.stderr


def test_kernels_run_where_nothing_can_be_kept(tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL)
    tmp_path.chmod(0o555)
    out, log = doubled(tmp_path, HOME=str(tmp_path / "home"))
    tmp_path.chmod(0o755)
    assert out == "0 2 4", log
    assert log.count("kernels are compiled at every start") == 1
    assert "Traceback" not in log


def test_kernels_run_where_the_disk_is_full(tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL)
    cache = tmp_path / "cache"
    out, log = doubled(tmp_path, limit_bytes=100, NUMBA_CACHE_DIR=str(cache))
    assert out == "0 2 4", log
    assert log.count("compiled kernels can't be kept") == 1


def test_a_damaged_kernel_on_the_disk_is_compiled_again(tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL)
    cache = tmp_path / "cache"
    doubled(tmp_path, NUMBA_CACHE_DIR=str(cache))
    for file in cache.rglob("*.nb[ic]"):
        file.write_bytes(file.read_bytes()[:50])
    assert doubled(tmp_path, NUMBA_CACHE_DIR=str(cache)) == ("0 2 4", "")
    assert all(file.stat().st_size > 50 for file in cache.rglob("*.nb[ic]"))
