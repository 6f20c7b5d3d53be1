"""Item ids as callers know them → token ids of the backbone and outputs of a ranking head."""

from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from model.spec import FIRST_ITEM, UNK

ItemId = str | int
"""An int means the item whose id is that number's decimal string."""

UnknownItems = Literal["drop", "map", "error"]

SHOWN_UNKNOWN = 10
"""Unknown ids that an answer names; their count is always exact."""


@dataclass(frozen=True, slots=True)
class MappedHistory:
    """A history as the network reads it: ``tokens`` int32, oldest first, without [CLS].

    ``used_items`` counts the tokens; ``is_cold`` means that none of them is a known item.
    """

    tokens: bytes
    used_items: int
    unknown_items: int
    unknown: list[ItemId]
    is_truncated: bool
    is_cold: bool


class ItemVocabulary:
    """Token ids by external id, ints included, so that a lookup is one dict access."""

    def __init__(self, items: Iterable[str], max_len: int) -> None:
        self._max_len = max_len
        self._tokens: dict[ItemId, int] = {}
        for token, item in enumerate(items, FIRST_ITEM):
            self._tokens[item] = token
            number = _canonical_number(item)
            if number is not None:
                self._tokens[number] = token

    def map_history(self, history: Sequence[ItemId], unknown_items: UnknownItems) -> MappedHistory:
        """Tokens of the newest ``max_len`` items; unknown ones are left out unless mapped to UNK.

        The policy ``error`` maps like ``drop``: the caller refuses a history with unknown items.
        """
        get = self._tokens.get
        found = [get(item) for item in history]
        unknown: list[ItemId] = []
        count = found.count(None)
        if count:
            unknown = _first_unknown(history, found)
            if unknown_items == "map":
                found = [UNK if token is None else token for token in found]
        known = [token for token in found if token is not None] if count else found
        kept = known[-self._max_len :]
        return MappedHistory(
            tokens=array("i", kept).tobytes(),  # type: ignore[type-var]  # no None is left
            used_items=len(kept),
            unknown_items=count,
            unknown=unknown,
            is_truncated=len(known) > self._max_len,
            is_cold=len(kept) == kept.count(UNK),
        )


def _first_unknown(history: Sequence[ItemId], found: Sequence[int | None]) -> list[ItemId]:
    missing = (item for item, token in zip(history, found, strict=True) if token is None)
    return list(dict.fromkeys(missing))[:SHOWN_UNKNOWN]


def _canonical_number(item: str) -> int | None:
    if not item.removeprefix("-").isdecimal() or not item.isascii() or len(item) > 20:
        return None
    number = int(item)
    return number if str(number) == item else None


class Catalog(Protocol):
    """The ordered items of a ranking head."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...

    def index_of(self, external_id: str) -> int | None:
        """The output that stands for an item; None if the catalog lacks it."""


@dataclass(frozen=True, slots=True)
class MappedSelection:
    """Which outputs of a ranking head may be returned; indices int64, None means all.

    ``filtered``: how many items of the catalog, or of the candidates, are held back.
    """

    excluded: bytes
    candidates: bytes | None
    filtered: int
    unknown_candidates: list[ItemId]


def map_selection(
    catalog: Catalog, excluded: Collection[ItemId], candidates: Sequence[ItemId] | None
) -> MappedSelection:
    """Catalog indices of items never to return and, if given, of the only ones to choose from."""
    held_back = _indices(catalog, excluded)
    if candidates is None:
        return MappedSelection(_packed(held_back), None, len(held_back), [])
    chosen = _indices(catalog, candidates)
    return MappedSelection(
        excluded=_packed(held_back),
        candidates=_packed(chosen),
        filtered=len(held_back & chosen),
        unknown_candidates=[c for c in candidates if catalog.index_of(str(c)) is None][
            :SHOWN_UNKNOWN
        ],
    )


def _indices(catalog: Catalog, items: Iterable[ItemId]) -> set[int]:
    found = (catalog.index_of(str(item)) for item in items)
    return {index for index in found if index is not None}


def _packed(indices: Iterable[int]) -> bytes:
    return array("q", sorted(indices)).tobytes()
