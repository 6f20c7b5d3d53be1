"""Equal parts of many records as one object: every process keeps ten thousands of tasks."""

import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

from peterrec.patches.identity import Digest

T = TypeVar("T")

REMEMBERED = 4096
"""Different values that are known; the ones used least recently are forgotten first."""


def shared(value: T) -> T:
    """An equal value that others hold already; it must be immutable."""
    found: T = _shared(value)
    return found


def shared_digest(digest: Digest) -> Digest:
    """The same for a digest, as long as a record holds it.

    The interpreter's table of texts grows with them: who has a table by digest asks that instead.
    """
    return Digest(sys.intern(digest))


def shared_mapping(mapping: Mapping[str, int]) -> Mapping[str, int]:
    """The same for a mapping, which nobody may change."""
    return _shared_mapping(tuple(mapping.items()))


@lru_cache(REMEMBERED, typed=True)
def _shared(value: Any) -> Any:  # Any: the caller's type, which lru_cache would lose
    return value


@lru_cache(REMEMBERED)
def _shared_mapping(items: tuple[tuple[str, int], ...]) -> Mapping[str, int]:
    return dict(items)
