"""Counts the kernels that Triton compiles, or reads from its cache on the disk, by thread."""

import shutil
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from triton import knobs

from peterrec.model.scratch import is_alive

_COUNTS: Counter[int] = Counter()


def _count(*, is_manual_warmup: bool = False, **kernel: Any) -> None:  # Any: Triton has no types
    _COUNTS[threading.get_ident()] += 1


def of_this_thread() -> int:
    """Kernels that the calling thread has compiled or read since Triton was imported."""
    return _COUNTS[threading.get_ident()]


def remove_unfinished() -> None:
    """Remove what processes that have ended were writing to the folder of compiled kernels."""
    with suppress(OSError):
        for path in Path(knobs.cache.dir).glob("*/tmp.pid_*"):
            with suppress(OSError, ValueError):
                if not is_alive(int(path.name.split("_")[1])):
                    shutil.rmtree(path, ignore_errors=True)


knobs.runtime.jit_post_compile_hook = _count
