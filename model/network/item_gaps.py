"""Ascending item tokens as the gaps between them, in bytes of variable length.

A table has a row for most of the backbone's items, so nearly all gaps are 0 and take one byte
where a token takes four. A number is written in groups of seven bits, the lowest first; every byte
but the last has its high bit set (LEB128, https://dwarfstd.org, section 7.6). The first number is
the first token above ``FIRST_ITEM``, each other one the number of tokens that are skipped. So no
stream of bytes can name a special token, or one token twice.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from peterrec.model.spec import FIRST_ITEM

BITS = 7
CONTINUES = 1 << BITS
MOST_BYTES = 5
"""Bytes of the largest gap between tokens of 31 bits."""

LAST_TOKEN = 2**31 - 1

CHUNK = 1 << 20
"""Bytes that are decoded at a time, which bounds the extra memory."""

Gaps = NDArray[np.uint8]


class GapsInvalid(ValueError):
    """Bytes that are no list of gaps; the message says why."""


def pack_gaps(tokens: NDArray[np.integer]) -> Gaps:
    """Tokens [N], ascending strictly from ``FIRST_ITEM`` on, as the bytes of their gaps."""
    gaps = tokens.astype(np.int64) - FIRST_ITEM  # [N]
    gaps[1:] -= gaps[:-1] + 1
    sizes = _sizes(gaps)
    starts = np.cumsum(sizes) - sizes  # [N]
    packed = np.empty(int(sizes.sum()), np.uint8)
    for place in range(MOST_BYTES):
        has = sizes > place
        more = np.where(sizes[has] > place + 1, CONTINUES, 0)
        packed[starts[has] + place] = gaps[has] >> BITS * place & CONTINUES - 1 | more
    return packed


def unpack_gaps(packed: Gaps, count: int) -> NDArray[np.int32]:
    """The tokens int32 [count] of a list of gaps; GapsInvalid if it breaks a rule of the form."""
    found = int(np.count_nonzero(packed < CONTINUES))
    if found != count:
        raise GapsInvalid(f"lists {found} items where {count} have a row")
    tokens = np.empty(count, np.int32)
    at, last = 0, FIRST_ITEM - 1
    for gaps in _numbers(packed):
        reached = last + np.cumsum(gaps + 1)
        last = int(reached[-1])
        if last > LAST_TOKEN:
            raise GapsInvalid(f"goes past token {LAST_TOKEN}")
        tokens[at : at + len(reached)] = reached
        at += len(reached)
    return tokens


def _sizes(gaps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes that each number takes."""
    limits = [1 << BITS * place for place in range(1, MOST_BYTES)]
    return np.searchsorted(limits, gaps, side="right") + 1


def _numbers(packed: Gaps) -> Iterator[NDArray[np.int64]]:
    """The numbers of the bytes, some at a time."""
    begin = 0
    while begin < len(packed):
        part = packed[begin : begin + CHUNK]
        ends = np.flatnonzero(part < CONTINUES)
        if not len(ends):
            raise GapsInvalid("ends inside a gap")
        yield _decoded(part, ends)
        begin += int(ends[-1]) + 1


def _decoded(part: Gaps, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers int64 [n] whose last bytes are at ``ends`` [n] of bytes [m]."""
    sizes = np.diff(ends, prepend=-1)  # [n]
    if sizes.max() > MOST_BYTES:
        raise GapsInvalid(f"has a gap of more than {MOST_BYTES} bytes")
    if ((part[ends] == 0) & (sizes > 1)).any():
        raise GapsInvalid("has a gap of more bytes than it needs")
    numbers = np.zeros(len(ends), np.int64)
    for place in range(int(sizes.max())):
        has = sizes > place
        low = part[(ends - sizes + 1 + place)[has]].astype(np.int64) & CONTINUES - 1
        numbers[has] |= low << BITS * place
    return numbers
