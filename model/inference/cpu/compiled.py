"""How kernels are compiled, and when compiled code on the disk is out of date.

numba keeps the code next to the kernel's file or in the user's cache.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from threading import get_ident
from typing import Any  # numba has no types

from numba import njit
from numba.core import event
from numba.core.caching import FunctionCache

from peterrec.model import insertions, spec
from peterrec.model.inference import item_tables


def _digest_of_sources() -> str:
    """sha256 of the sources of all kernels and of the modules whose constants they contain.

    Every kernel counts, because any may be compiled into any other.
    """
    constants = [Path(module.__file__ or "") for module in (insertions, spec, item_tables)]
    found = [*sorted(Path(__file__).parent.glob("*.py")), *constants]
    return sha256(b"\0".join(source.read_bytes() for source in found)).hexdigest()


_SOURCES = _digest_of_sources()  # read at import, as the sources are then


class _Cache(FunctionCache):  # type: ignore[misc]  # numba is untyped
    """A cache whose key covers the sources of all kernels.

    numba's own key covers the kernel's file only, not the files of the functions that it calls.
    """

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(signature, codegen), _SOURCES)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled kernel; None if there is none, or if it cannot be read."""
        try:
            found = super().load_overload(signature, target_context)
            if found is not None:
                _counting.count()
            return found
        except (EOFError, UnpicklingError):  # damaged: begin anew
            with suppress(OSError):
                self.flush()
        except OSError as error:
            _tell(f"compiled kernels can't be read: {error}")
        return None

    def save_overload(self, signature: Any, data: Any) -> None:
        """Keep a compiled kernel, if the disk has room."""
        try:
            super().save_overload(signature, data)
        except OSError as error:
            _tell(f"compiled kernels can't be kept: {error}")


@cache
def _tell(reason: str) -> None:
    """Log once why kernels are compiled at every start, which takes most of a minute."""
    logging.getLogger(__name__).warning("kernels are compiled at every start: %s", reason)


_folders: set[Path] = set()

WRITING_S = 5.0
"""Age in seconds of an unfinished file whose process must have been killed: a write takes less."""


def remove_unfinished() -> None:
    """Remove files that processes were writing to the folder of compiled kernels when killed."""
    for folder in _folders:
        for path in folder.glob("*.tmp.*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > WRITING_S:
                    path.unlink()


class _Counting(event.Listener):  # type: ignore[misc]  # numba is untyped
    """Counts kernels as they are compiled or read from the disk, by thread.

    numba tells of those that it compiles only.
    """

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def count(self) -> None:
        """Count one of the calling thread."""
        self.counts[get_ident()] += 1

    def on_start(self, event: Any) -> None:
        """Count one that is compiled."""
        self.count()

    def on_end(self, event: Any) -> None:
        """Nothing: it was counted."""


_counting = _Counting()
event.register("numba:compile", _counting)


def compilations_of_this_thread() -> int:
    """Kernels that the calling thread has compiled or read since this module was imported."""
    return _counting.counts[get_ident()]


def compiled(function: Callable[..., None]) -> Any:
    """Compile a kernel that releases the GIL, again whenever the source of any kernel changes.

    Where no folder can be written, nothing is kept on the disk.
    """
    kernel = njit(nogil=True)(function)
    try:
        kernel._cache = _Cache(function)
        _folders.add(Path(kernel._cache.cache_path))
    except RuntimeError:  # numba's word for that no folder can be written
        _tell("no folder for compiled kernels can be written; set NUMBA_CACHE_DIR")
    return kernel
