"""The backbone's ordered items and their token ids.

HTTP workers import this module, so it must not import torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from peterrec.model.data.histories import Histories
from peterrec.model.errors import UnknownItems
from peterrec.model.spec import FIRST_ITEM, UNK


@dataclass(frozen=True)
class Vocabulary:
    """Items in the order of their embedding rows, the most frequent first.

    The order is part of the backbone's fingerprint, and sampled losses rely on it.
    """

    items: tuple[str, ...]

    @cached_property
    def token_of(self) -> dict[str, int]:
        """Token id of every item."""
        return {item: FIRST_ITEM + index for index, item in enumerate(self.items)}

    def tokens(self, items: Iterable[str]) -> npt.NDArray[np.int64]:
        """Token ids int64 [n] of items; UNK for items outside the vocabulary."""
        token_of = self.token_of
        return np.array([token_of.get(item, UNK) for item in items], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.items)


def build_vocabulary(histories: Histories, min_count: int = 1) -> Vocabulary:
    """Items that occur at least ``min_count`` times, by descending count, then by id."""
    counts = np.bincount(histories.codes, minlength=len(histories.items))
    frequent = [i for i in np.flatnonzero(counts >= min_count).tolist() if counts[i] > 0]
    if not frequent:
        raise UnknownItems(
            f"no item occurs {min_count} times or more in the training users' histories.",
            hint="Check the items. A lower `min_count` keeps rarer ones.",
        )
    frequent.sort(key=lambda i: (-int(counts[i]), histories.items[i]))
    return Vocabulary(tuple(histories.items[i] for i in frequent))


@dataclass(frozen=True, slots=True)
class TokenHistories:
    """Every user's known items as token ids, oldest first, and how many were unknown.

    ``rows[i]`` is int64 [length] and belongs to ``users[i]``.
    """

    users: tuple[str, ...]
    rows: list[npt.NDArray[np.int64]]
    events: int
    unknown_events: int

    @property
    def unknown_share(self) -> float:
        """Share of events whose item the backbone does not know."""
        return self.unknown_events / max(1, self.events)


def tokenize(histories: Histories, vocabulary: Vocabulary) -> TokenHistories:
    """Histories as token ids. Unknown items are left out, as in serving."""
    token_of_code = vocabulary.tokens(histories.items)  # [distinct items]
    tokens = token_of_code[histories.codes]  # [events]
    is_known = tokens != UNK
    kept_before = np.concatenate([[0], np.cumsum(is_known)])  # [events + 1]
    bounds = kept_before[histories.offsets]  # [users + 1]
    known = tokens[is_known]
    rows = [known[a:b] for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
    return TokenHistories(histories.users, rows, len(tokens), int((~is_known).sum()))


def require_known(histories: TokenHistories, max_unknown_share: float, source: str) -> None:
    """Refuse histories with too many items that the backbone does not know.

    The limit holds for the share of unknown events and for the share of users without any known
    item.
    """
    unreadable = [u for u, row in zip(histories.users, histories.rows, strict=True) if not len(row)]
    user_share = len(unreadable) / max(1, len(histories.users))
    if histories.unknown_share <= max_unknown_share and user_share <= max_unknown_share:
        return
    raise UnknownItems(
        f"{source}: {histories.unknown_events} of {histories.events} events "
        f"({histories.unknown_share:.1%}) name items outside the backbone's vocabulary and "
        f"{len(unreadable)} of {len(histories.users)} users{_example(unreadable)} have no known "
        f"item; the limit is {max_unknown_share:.1%}.",
        hint="Check the item column, or pretrain on these items. Or raise `max_unknown_share`.",
    )


def _example(users: Sequence[str]) -> str:
    return f" (such as {users[0]!r})" if users else ""
