"""Items of many users as tokens of a backbone, without a Python object for each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from peterrec.model.data.user_rows import UserRows
from peterrec.model.data.values import WHOLE
from peterrec.model.network.collate import PackedHistories
from peterrec.model.spec import FIRST_ITEM

UNKNOWN = -1
"""Stands for an item without a number."""

NUMBERS_PER_ITEM = 64
"""A table of numbers covers up to this many for each item: at most 256 bytes for each."""

Numbers = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]


class ItemNumbers:
    """Numbers of items by their ids: tokens of a backbone, or places in a catalog."""

    def __init__(self, ids: Sequence[str], first: int = 0) -> None:
        """The items get the numbers ``first``, ``first`` + 1, …"""
        self._ids = pa.array(ids, pa.string())
        self._first = first
        self._table = self._numbers()

    def of(self, items: pa.Array) -> Numbers:
        """The number of each item, int64 or text, or UNKNOWN.

        A text that is unknown is looked for again without a fraction of zeros: ``5.0`` is 5.
        """
        if pa.types.is_integer(items.type):
            if self._table is None:
                return self._find(items.cast(pa.string()))
            numbers: Numbers = np.take(self._table, items.to_numpy() + 1, mode="clip")
            return numbers
        found = self._find(items)
        missing = np.flatnonzero(found == UNKNOWN)
        if len(missing):
            texts = items.take(pa.array(missing))
            is_whole = pc.and_(
                pc.match_substring(texts, "."), pc.match_substring_regex(texts, WHOLE)
            )
            if pc.any(is_whole).as_py():
                plain = pc.replace_substring_regex(texts, r"\.0+$", "")
                again = self._find(pc.if_else(is_whole, plain, texts))
                found = found.copy()
                found[missing] = again
        return found

    def _find(self, texts: pa.Array) -> Numbers:
        places = pc.index_in(texts, value_set=self._ids)
        found: Numbers = pc.add(places, self._first).fill_null(UNKNOWN).to_numpy()
        return found.astype(np.int32, copy=False)

    def _numbers(self) -> Numbers | None:
        """A table of the numbers that ids may be; None if some id is too large for it."""
        is_number = pc.match_substring_regex(self._ids, r"^(0|-?[1-9][0-9]{0,17})$")
        at = np.flatnonzero(is_number.to_numpy(zero_copy_only=False))
        values = self._ids.take(pa.array(at)).cast(pa.int64()).to_numpy()
        size = NUMBERS_PER_ITEM * len(self._ids)
        if len(values) and not (values.min() >= 0 and values.max() < size):
            return None
        table = np.full(int(values.max(initial=-1)) + 3, UNKNOWN, np.int32)
        table[values + 1] = at + self._first
        return table


@dataclass(frozen=True, slots=True)
class UserTokens:
    """Users' histories as tokens, oldest first, without unknown items.

    ``newest`` are those that the network reads, and ``whole`` all, for item tables. ``unknown`` [N]
    counts the items of each user that were left out.
    """

    newest: PackedHistories
    whole: PackedHistories
    unknown: Counts


def tokens_of(rows: UserRows, vocabulary: ItemNumbers, max_len: int) -> UserTokens:
    """The histories of users as the service reads them: unknown items are dropped first."""
    tokens = vocabulary.of(rows.items)
    is_known = tokens != UNKNOWN
    lengths = np.diff(rows.offsets)
    if is_known.all():
        ends, unknown = rows.offsets, np.zeros(len(lengths), np.int64)
    else:
        known_before = np.concatenate([[0], np.cumsum(is_known)])
        ends = known_before[rows.offsets]
        tokens = tokens[is_known]
        unknown = lengths - np.diff(ends)
    whole = PackedHistories(tokens, ends[:-1], ends[1:])
    return UserTokens(whole.newest(max_len), whole, unknown)


def vocabulary_of(items: Sequence[str]) -> ItemNumbers:
    """The tokens of a backbone's items."""
    return ItemNumbers(items, FIRST_ITEM)
