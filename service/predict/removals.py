"""A history without each of its items, one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from peterrec.model.spec import UNK
from peterrec.service.predict.item_ids import (
    UNKNOWN,
    ItemId,
    ItemVocabulary,
    Tokens,
    UnknownItems,
)

LONGEST_UNKNOWN = 256
"""Characters of an unknown item's id that are named; the vocabulary bounds those of known ones."""

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Removals:
    """A history's different items, the newest first, and the history without each of them.

    An item is in the place of its newest occurrence, and all its occurrences are removed together.
    ``ids`` are as the history has them, and ``times`` says how often. ``tokens`` int32 [N] is what
    is read of the whole history, oldest first; ``item_of`` int64 [N] are the items' numbers there,
    and ``ages`` int64 [items] say how many tokens are newer. ``unread`` counts different items that
    are not read: unknown ones.
    """

    tokens: Tokens
    ids: list[ItemId]
    times: list[int]
    item_of: Places
    ages: Places
    unread: int
    max_len: int

    @classmethod
    def of(
        cls, history: Sequence[ItemId], policy: UnknownItems, vocabulary: ItemVocabulary
    ) -> "Removals":
        """Find the different items of a history; ids of two types may be the same item."""
        found = vocabulary.find(history)
        unknown = (found == UNKNOWN).nonzero()[0]
        numbers: dict[str, int] = {}  # unknown items are one token, but different items
        keys = found.astype(np.int64)
        for at in unknown.tolist():
            keys[at] = -1 - numbers.setdefault(str(history[at]), len(numbers))
        is_read = np.ones(len(found), bool) if policy == "map" else found != UNKNOWN
        places = is_read.nonzero()[0]
        ages, item_of, times = _numbered(keys[places])
        return cls(
            tokens=np.where(found == UNKNOWN, UNK, found).astype(np.int32)[places],
            ids=[history[at] for at in places[::-1][ages].tolist()],
            times=times.tolist(),
            item_of=item_of,
            ages=ages,
            unread=0 if policy == "map" else len(numbers),
            max_len=vocabulary.max_len,
        )

    def name(self, item: int) -> ItemId:
        """Return an item's id as an answer names it: the beginning of a long one that is unknown.

        Anybody can make up an id of a megabyte, and an answer names an item once for each output.
        """
        name = self.ids[item]
        is_long = isinstance(name, str) and len(name) > LONGEST_UNKNOWN
        return str(name)[:LONGEST_UNKNOWN] if is_long and self.item_tokens[item] == UNK else name

    def within(self, reach: int) -> int:
        """Return how many items, the first ones, occur among the newest ``reach`` tokens."""
        return int(self.ages.searchsorted(reach))

    @property
    def item_tokens(self) -> Tokens:
        """The token of each item, int32 [items]."""
        return self.tokens[::-1][self.ages]

    def window(self, item: int | None = None) -> Tokens:
        """Return the newest ``max_len`` tokens of the history, or of it without an item."""
        return self._without(item)[-self.max_len :]

    def older(self, item: int | None = None) -> Tokens:
        """Return the tokens before ``window``, which an item table reads."""
        return self._without(item)[: -self.max_len]

    def _without(self, item: int | None) -> Tokens:
        return self.tokens if item is None else self.tokens[self.item_of != item]


def _numbered(keys: Places) -> tuple[Places, Places, Places]:
    """Number different keys by their newest occurrence, the newest first.

    Returns how many keys are newer than each number's newest occurrence, the number of each key,
    and how often it occurs.
    """
    _, newest, inverse, times = np.unique(
        keys[::-1], return_index=True, return_inverse=True, return_counts=True
    )
    order = newest.argsort()
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return newest[order], rank[inverse][::-1], times[order]
