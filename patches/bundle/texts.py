"""Many texts packed into two arrays, as bundles store ids, titles and the values of attributes."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # Any: of several dtypes


class PackedTexts:
    """Texts as UTF-8 ``bytes`` uint8 [N] and ``offsets`` int64 [K + 1].

    A million of them take some megabytes and no Python objects.
    """

    def __init__(self, packed: Array, offsets: Array) -> None:
        self._bytes = np.ascontiguousarray(packed)
        self._offsets = offsets

    @classmethod
    def pack(cls, texts: Iterable[str]) -> Self:
        """Pack the given texts."""
        encoded = [text.encode() for text in texts]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    @classmethod
    def named(cls, tensors: Mapping[str, Array], name: str) -> Self:
        """Take the texts from a bundle's tensors ``name.bytes`` and ``name.offsets``; no copy."""
        return cls(tensors[f"{name}.bytes"], tensors[f"{name}.offsets"])

    def tensors_named(self, name: str) -> dict[str, Array]:
        """Return the two tensors that a bundle stores."""
        return {f"{name}.bytes": self._bytes, f"{name}.offsets": self._offsets}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} outside 0..{len(self) - 1}")
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def encoded(self) -> Iterator[bytes]:
        """Return the texts as they are stored, in their order."""
        data = self._bytes.tobytes()
        return (data[begin:end] for begin, end in pairwise(self._offsets.tolist()))


def text_problem(
    packed: Array,
    offsets: Array,
    what: str,
    *,
    may_be_empty: bool = False,
    longest: int | None = None,
) -> str | None:
    """Say what is wrong with packed texts, or None. They have to differ unless some may be empty.

    ``what`` names one of the texts in the answer, and ``longest`` is a bound on their characters.
    """
    if offsets[0] != 0 or offsets[-1] != packed.size:
        return f"offsets run from {offsets[0]} to {offsets[-1]}, expected 0 to {packed.size}"
    if may_be_empty and not (offsets[:-1] <= offsets[1:]).all():
        return "offsets do not ascend"
    if not may_be_empty and not (offsets[:-1] < offsets[1:]).all():
        return f"offsets do not ascend ({what} is empty or overlaps the next)"
    begins = offsets[:-1][offsets[:-1] < offsets[1:]]
    if ((packed[begins] & 0xC0) == 0x80).any():
        return f"{what} begins inside a UTF-8 character"
    data = packed.tobytes()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"{what} is not UTF-8: {error}"
    if longest is not None and _longest(packed, offsets) > longest:
        return f"{what} has {_longest(packed, offsets)} characters, at most {longest} are accepted"
    if may_be_empty:
        return None
    ends = offsets.tolist()
    repeated = len(ends) - 1 - len({data[begin:end] for begin, end in pairwise(ends)})
    return f"{repeated} times {what} occurs twice" if repeated else None


def _longest(packed: Array, offsets: Array) -> int:
    """The characters of the longest text: the bytes that do not continue a character."""
    begins = offsets[:-1][offsets[:-1] < offsets[1:]]
    if not len(begins):
        return 0
    is_first = (packed & 0xC0) != 0x80
    return int(np.add.reduceat(is_first, begins, dtype=np.int64).max())
