"""A task's users: their histories as tokens, with their answers."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from peterrec.model.data.histories import UserLabels
from peterrec.model.data.vocabulary import TokenHistories
from peterrec.model.errors import HistoriesMissing, LabelsTooRare

SHOWN_USERS = 3
"""User ids of each table that a message about different ids shows."""

SEARCHED_USERS = 10_000
"""User ids of each table that are searched for ids that are written in two ways."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Users with a history and an answer. ``items`` is the vocabulary of the tokens in ``rows``.

    ``without_history`` counts users who were left out because none of their items is known.
    ``source`` names the answers in messages. ``dropped`` are the answers that ``keep_frequent``
    left out, with the number of their users.
    """

    users: tuple[str, ...]
    rows: list[npt.NDArray[np.int64]]
    answers: list[tuple[str, ...]]
    items: tuple[str, ...]
    without_history: int = 0
    source: str = "the answers"
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of items in each history."""
        return np.array([len(row) for row in self.rows], dtype=np.int64)

    def counts(self, rows: Iterable[int] | None = None) -> Counter[str]:
        """Number of users of each answer, among all or some rows."""
        chosen = self.answers if rows is None else (self.answers[i] for i in rows)
        return Counter(text for answer in chosen for text in answer)


def require_shared_users(users: Collection[str], labels: UserLabels) -> None:
    """Refuse answers of which no user has a history; the message shows ids of both tables."""
    known = users if isinstance(users, set | frozenset) else set(users)
    if not known.isdisjoint(labels.by_user):
        return
    histories, answers = (_ids(each) for each in (users, labels.by_user))
    pair = _same_but_for_writing(users, labels.by_user)
    raise HistoriesMissing(
        f"{labels.source}: none of the {len(labels.by_user)} users has a history. Its users are "
        f"{answers}, those of the histories {histories}.",
        hint=f"{pair[0]!r} and {pair[1]!r} may be one user: write both alike."
        if pair
        else "Check that both user columns hold the same ids.",
    )


def _ids(users: Collection[str]) -> str:
    shown = ", ".join(repr(user) for user in islice(users, SHOWN_USERS))
    return f"{shown}, …" if len(users) > SHOWN_USERS else shown


def _same_but_for_writing(one: Collection[str], other: Collection[str]) -> tuple[str, str] | None:
    """An id of each table that are equal but for case, prefix, leading zeros or ``.0``."""
    found = {_bare(user): user for user in islice(one, SEARCHED_USERS)}
    pairs = ((found.get(_bare(user)), user) for user in islice(other, SEARCHED_USERS))
    return next(((left, right) for left, right in pairs if left is not None), None)


def _bare(user: str) -> str:
    plain = user.strip().casefold().removesuffix(".0")
    digits = re.fullmatch(r"\D*?0*(\d+)", plain)
    return digits.group(1) if digits else plain


def join_answers(histories: TokenHistories, labels: UserLabels, items: tuple[str, ...]) -> Examples:
    """The users who have both a history and an answer, in the order of the labels."""
    row_of = dict(zip(histories.users, histories.rows, strict=True))
    users = tuple(user for user in labels.by_user if len(row_of.get(user, ())))
    if not users:
        raise HistoriesMissing(
            f"{labels.source}: none of the {len(labels.by_user)} users has a known item in the "
            "history.",
            hint="Check the item column, or pretrain on these items.",
        )
    return Examples(
        users=users,
        rows=[row_of[user] for user in users],
        answers=[labels.by_user[user] for user in users],
        items=items,
        without_history=len(labels.by_user) - len(users),
        source=labels.source,
    )


def keep_frequent(examples: Examples, min_count: int) -> Examples:
    """Drop answers that fewer than ``min_count`` users have, and users who lose all their answers.

    Users who had no answer before stay, because having no tag is an answer too. It is refused if
    no answer stays.
    """
    counts = examples.counts()
    dropped = {text: count for text, count in counts.items() if count < min_count}
    if not dropped:
        return examples
    if len(dropped) == len(counts):
        text, most = counts.most_common(1)[0]
        raise LabelsTooRare(
            f"{examples.source}: no answer has {min_count} users with a history; the most frequent "
            f"is {text!r} with {most}.",
            hint="Lower `min_label_count`.",
        )
    kept = [tuple(text for text in answer if text not in dropped) for answer in examples.answers]
    stays = [bool(new) or not old for new, old in zip(kept, examples.answers, strict=True)]
    at = [i for i, stay in enumerate(stays) if stay]
    return replace(
        examples,
        users=tuple(examples.users[i] for i in at),
        rows=[examples.rows[i] for i in at],
        answers=[kept[i] for i in at],
        dropped=dropped,
    )
