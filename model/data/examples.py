"""A task's users: their histories as tokens, with their answers."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from peterrec.model.data.histories import UserLabels
from peterrec.model.data.vocabulary import TokenHistories
from peterrec.model.errors import HistoriesMissing


@dataclass(frozen=True, slots=True)
class Examples:
    """Users with a history and an answer. ``items`` is the vocabulary of the tokens in ``rows``.

    ``without_history`` counts users who were left out because none of their items is known.
    """

    users: tuple[str, ...]
    rows: list[npt.NDArray[np.int64]]
    answers: list[tuple[str, ...]]
    items: tuple[str, ...]
    without_history: int = 0

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of items in each history."""
        return np.array([len(row) for row in self.rows], dtype=np.int64)


def join_answers(histories: TokenHistories, labels: UserLabels, items: tuple[str, ...]) -> Examples:
    """The users who have both a history and an answer, in the order of the labels."""
    row_of = dict(zip(histories.users, histories.rows, strict=True))
    users = tuple(user for user in labels.by_user if len(row_of.get(user, ())))
    if not users:
        raise HistoriesMissing(
            f"none of the {len(labels.by_user)} users of {labels.source} has a known history.",
            hint="Check that both files use equal user ids.",
        )
    return Examples(
        users=users,
        rows=[row_of[user] for user in users],
        answers=[labels.by_user[user] for user in users],
        items=items,
        without_history=len(labels.by_user) - len(users),
    )


def keep_frequent(examples: Examples, min_count: int) -> Examples:
    """Drop answers that fewer than ``min_count`` users have, and users who lose all their answers.

    Users who had no answer before stay, because having no tag is an answer too.
    """
    counts: dict[str, int] = {}
    for answer in examples.answers:
        for text in answer:
            counts[text] = counts.get(text, 0) + 1
    kept = [tuple(t for t in answer if counts[t] >= min_count) for answer in examples.answers]
    stays = [bool(new) or not old for new, old in zip(kept, examples.answers, strict=True)]
    at = [i for i, stay in enumerate(stays) if stay]
    return Examples(
        users=tuple(examples.users[i] for i in at),
        rows=[examples.rows[i] for i in at],
        answers=[kept[i] for i in at],
        items=examples.items,
        without_history=examples.without_history,
    )
