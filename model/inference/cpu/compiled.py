"""Kernels whose compiled code is kept on disk, beside their file or in the user's cache."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any  # numba has no types

from numba import njit
from numba.core.caching import FunctionCache


def _digest_of_sources() -> str:
    """Of all kernels: any of them may be compiled into any other."""
    found = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"\0".join(source.read_bytes() for source in found)).hexdigest()


_SOURCES = _digest_of_sources()  # now, as they are imported


class _Cache(FunctionCache):  # type: ignore[misc]  # numba is untyped
    """numba's own asks for the file of the kernel only, not for those that it calls into."""

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(signature, codegen), _SOURCES)


def compiled(function: Callable[..., None]) -> Any:
    """A kernel that runs without Python's lock; compiled anew when any kernel's source changes."""
    kernel = njit(nogil=True)(function)
    kernel._cache = _Cache(function)
    return kernel
