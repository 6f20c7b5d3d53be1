"""How kernels are compiled, and when compiled code on the disk is out of date.

numba keeps the code next to the kernel's file or in the user's cache.
"""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any  # numba has no types

from numba import njit
from numba.core.caching import FunctionCache

from peterrec.model import insertions, spec


def _digest_of_sources() -> str:
    """sha256 of the sources of all kernels and of the modules whose constants they contain.

    Every kernel counts, because any may be compiled into any other.
    """
    constants = [Path(module.__file__ or "") for module in (insertions, spec)]
    found = [*sorted(Path(__file__).parent.glob("*.py")), *constants]
    return sha256(b"\0".join(source.read_bytes() for source in found)).hexdigest()


_SOURCES = _digest_of_sources()  # read at import, as the sources are then


class _Cache(FunctionCache):  # type: ignore[misc]  # numba is untyped
    """A cache whose key covers the sources of all kernels.

    numba's own key covers the kernel's file only, not the files of the functions that it calls.
    """

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(signature, codegen), _SOURCES)


def compiled(function: Callable[..., None]) -> Any:
    """Compile a kernel that releases the GIL, again whenever the source of any kernel changes."""
    kernel = njit(nogil=True)(function)
    kernel._cache = _Cache(function)
    return kernel
