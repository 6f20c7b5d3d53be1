"""Item ids as callers know them → token ids of the backbone and outputs of a ranking head."""

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from peterrec.model.errors import PeterRecError
from peterrec.model.spec import FIRST_ITEM, UNK
from peterrec.patches.bundle.bundle import Catalog

ItemId = str | int
"""An item id as callers send it. An int means the item whose id is its decimal string."""

UnknownItems = Literal["drop", "map", "error"]

Tokens = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

SHOWN_UNKNOWN = 10
"""Unknown ids that an answer names at most; the count it states is always exact."""

SHOWN_ID = 64
"""Characters of an unknown id that an answer repeats."""

UNKNOWN, BEYOND = -1, -2
"""Stand in for a token: the item is unknown, or its number is beyond the table of numbers."""

NUMBERS_PER_ITEM = 16
"""The table covers numbers up to 16 times the count of items: at most 64 bytes for each item."""


class MappedHistory(msgspec.Struct, frozen=True, gc=False):
    """A history as the network reads it: ``tokens`` are int32, oldest first, without [CLS].

    ``used_items`` counts the tokens; ``is_cold`` means that none of them is a known item. ``older``
    are the tokens before them, which item tables read too.
    """

    tokens: bytes
    used_items: int
    unknown_items: int
    unknown: list[ItemId]
    is_truncated: bool
    is_cold: bool
    older: bytes = b""

    @property
    def whole(self) -> "MappedHistory":
        """The history as an item table reads it: nothing is left out."""
        older = np.frombuffer(self.older, np.int32)
        return msgspec.structs.replace(
            self,
            used_items=self.used_items + len(older),
            is_truncated=False,
            is_cold=self.is_cold and bool((older == UNK).all()),
        )


class Readings:
    """One history as each of a server's backbones reads it: mapped when a version needs it.

    ``by`` has what is mapped, or the error why it can't be, by the place of the backbone.
    """

    __slots__ = ("by", "ids", "unknown_items")

    def __init__(self, ids: Sequence[ItemId], unknown_items: UnknownItems) -> None:
        self.ids = ids
        self.unknown_items = unknown_items
        self.by: dict[int, MappedHistory | PeterRecError] = {}


History = MappedHistory | Readings
"""A history of a call: mapped at once if the server has one backbone."""


class ItemVocabulary:
    """The token ids of the backbone's items, by external id."""

    def __init__(self, items: Iterable[str], max_len: int) -> None:
        self._max_len = max_len
        self._tokens = {item: token for token, item in enumerate(items, FIRST_ITEM)}
        self._numbers = _NumberTable(self._tokens)

    @property
    def max_len(self) -> int:
        """The number of newest items that the network reads."""
        return self._max_len

    def find(self, history: Sequence[ItemId]) -> Tokens:
        """Return the token of each item, or UNKNOWN: a new array int32, as long as the history."""
        found = self._numbers.find(history)
        return self._find_names(history) if found is None else found

    def map_history(self, history: Sequence[ItemId], unknown_items: UnknownItems) -> MappedHistory:
        """Map items to tokens, the newest ``max_len`` and the older ones apart.

        Unknown items are dropped, or mapped to UNK.

        The policy ``error`` maps like ``drop``: the caller refuses a history with unknown items.
        """
        found = self.find(history)
        is_unknown = found == UNKNOWN
        count = int(np.count_nonzero(is_unknown))
        unknown: list[ItemId] = []
        if count:
            unknown = _first_unknown(history, is_unknown)
            if unknown_items == "map":
                found[is_unknown] = UNK
            else:
                found = found[~is_unknown]
        older, kept = found[: -self._max_len], found[-self._max_len :]
        return MappedHistory(
            tokens=kept.tobytes(),
            used_items=len(kept),
            unknown_items=count,
            unknown=unknown,
            is_truncated=len(found) > self._max_len,
            is_cold=not len(kept) or (count > 0 and bool((kept == UNK).all())),
            older=older.tobytes(),
        )

    def _find_names(self, history: Sequence[ItemId]) -> Tokens:
        found = list(map(self._tokens.get, history))  # type: ignore[arg-type]  # no int is found
        if None in found:
            found = [self._tokens.get(str(item), UNKNOWN) for item in history]
        return np.array(found, np.int32)


class _NumberTable:
    """Tokens of the items whose ids are small numbers: maps a history of ints in one operation.

    Fifty look-ups in a dict miss the CPU cache about a hundred times, which took a sixth of a
    worker's time for a request.
    """

    def __init__(self, tokens: Mapping[str, int]) -> None:
        numbers = {
            item: number for item in tokens if (number := _canonical_number(item)) is not None
        }
        size = NUMBERS_PER_ITEM * len(tokens)
        inside = [item for item, number in numbers.items() if 0 <= number < size]
        at = np.array([numbers[item] for item in inside], np.int64)
        self._table = np.full(at.max(initial=-1) + 3, UNKNOWN, np.int32)
        self._table[at + 1] = [tokens[item] for item in inside]
        self._is_complete = len(inside) == len(numbers)
        self._table[[0, -1]] = UNKNOWN if self._is_complete else BEYOND  # numbers past either end

    def find(self, history: Sequence[ItemId]) -> Tokens | None:
        """Return the token of each item, or UNKNOWN; None if an item may be outside the table."""
        try:
            numbers = array("q", history)  # type: ignore[type-var]  # a string is refused
        except (TypeError, OverflowError):
            return None
        found = self._table.take(np.frombuffer(numbers, np.int64) + 1, mode="clip")
        return found if self._is_complete or BEYOND not in found else None


def _first_unknown(history: Sequence[ItemId], is_unknown: Flags) -> list[ItemId]:
    return _first_distinct(history[at] for at in is_unknown.nonzero()[0].tolist())


def _first_distinct(items: Iterable[ItemId]) -> list[ItemId]:
    """Return the first few items, each once and cut: 5 and "5" are one item."""
    found: dict[str, ItemId] = {}
    for item in items:
        text = str(item)
        shown = item if len(text) <= SHOWN_ID else f"{text[: SHOWN_ID - 1]}…"
        found.setdefault(str(shown), shown)
        if len(found) == SHOWN_UNKNOWN:
            break
    return list(found.values())


def _canonical_number(item: str) -> int | None:
    if not item.removeprefix("-").isdecimal() or not item.isascii() or len(item) > 20:
        return None
    number = int(item)
    return number if str(number) == item else None


class MappedSelection(msgspec.Struct, frozen=True, gc=False):
    """The outputs of a ranking head that may be returned; indices are int64.

    Without ``candidates`` all outputs may be returned that are ``allowed`` (bits, or empty for all)
    but the ``excluded`` ones. ``matching`` counts the items of the catalog, or of the candidates,
    that are allowed, None if all are; ``filtered`` those among them that are excluded.
    """

    excluded: bytes
    candidates: bytes | None
    filtered: int
    unknown_candidates: list[ItemId]
    allowed: bytes = b""
    matching: int | None = None


class Filter(Protocol):
    """The items of a catalog that may be answered, as bits, and how many these are."""

    @property
    def bits(self) -> bytes: ...

    @property
    def count(self) -> int: ...

    def passes(self, indices: npt.NDArray[np.int64]) -> Flags:
        """Return which of these items may be answered."""


def map_selection(
    catalog: Catalog,
    excluded: Collection[ItemId],
    candidates: Sequence[ItemId] | None,
    allowed: Filter | None = None,
) -> MappedSelection:
    """Map excluded items and candidates to catalog indices, of which ``allowed`` leaves some."""
    found_excluded = _indices(catalog, excluded)
    if allowed is not None:
        return _filtered(catalog, _passing(found_excluded, allowed), candidates, allowed)
    if candidates is None:
        return MappedSelection(_packed(found_excluded), None, len(found_excluded), [])
    found_candidates = _indices(catalog, candidates)
    return MappedSelection(
        excluded=_packed(found_excluded),
        candidates=_packed(found_candidates),
        filtered=len(found_excluded & found_candidates),
        unknown_candidates=_first_distinct(
            candidate for candidate in candidates if catalog.index_of(str(candidate)) is None
        ),
    )


def _filtered(
    catalog: Catalog,
    excluded: set[int],
    candidates: Sequence[ItemId] | None,
    allowed: Filter,
) -> MappedSelection:
    """``excluded`` are those that pass: the others are not answered anyway."""
    if candidates is None:
        packed = _packed(excluded)
        return MappedSelection(packed, None, len(excluded), [], allowed.bits, allowed.count)
    unfiltered = map_selection(catalog, (), candidates)
    found = _passing(_indices(catalog, candidates), allowed)
    return MappedSelection(
        excluded=_packed(excluded),
        candidates=_packed(found),
        filtered=len(excluded & found),
        unknown_candidates=unfiltered.unknown_candidates,
        matching=len(found),
    )


def _passing(indices: set[int], allowed: Filter) -> set[int]:
    given = np.fromiter(indices, np.int64, len(indices))
    return set(given[allowed.passes(given)].tolist())


def _indices(catalog: Catalog, items: Iterable[ItemId]) -> set[int]:
    found = (catalog.index_of(str(item)) for item in items)
    return {index for index in found if index is not None}


def _packed(indices: Iterable[int]) -> bytes:
    return array("q", sorted(indices)).tobytes()
