"""What is doubtful about a task's users before it is trained: their histories, and the parts."""

from collections.abc import Iterator

import numpy as np

from peterrec.model.data.examples import Examples
from peterrec.model.data.splits import Indices, UserSplit
from peterrec.model.training.objectives.summary import counted, listed

FEW_TRAINED = 50
"""Training users below which a task is warned of."""

FEW_MEASURED = 20
"""Test users below which metrics are warned of: one user more or less changes them by 5 %."""

MISSED_SHARE = 0.5
"""Share of users without a known history from which the two tables' ids are doubtful."""


def doubts_of_task(examples: Examples, split: UserSplit) -> Iterator[str]:
    """A sentence for each doubt about the users that a task is trained and measured on."""
    yield from doubts_of_histories(examples)
    if examples.dropped:
        yield (
            f"{len(examples.dropped):,} answers are left out, as they have too few users: "
            f"{listed(examples.dropped, len(examples.users))}."
        )
    if len(split.train) < FEW_TRAINED:
        yield f"Only {counted(len(split.train), 'user')} to train on; {FEW_TRAINED} are few."
    if 0 < len(split.test) < FEW_MEASURED:
        yield f"Only {counted(len(split.test), 'test user')}: the metrics depend on single users."
    yield from doubts_of_part(examples, split.validation, "validation")
    yield from doubts_of_part(examples, split.test, "test")


def doubts_of_histories(examples: Examples) -> Iterator[str]:
    """A sentence for each doubt about the users' histories."""
    users = len(examples.users) + examples.without_history
    if examples.without_history > MISSED_SHARE * users:
        yield (
            f"{examples.source}: {examples.without_history:,} of {users:,} users have no known "
            "history and are left out; check that both tables write user ids alike."
        )
    items = np.unique(np.concatenate(examples.rows))
    if len(items) == 1:
        yield "All histories consist of one item, so they say nothing but their length."
    elif examples.lengths.max() == 1:
        yield "Every history has only one item; check the user column."


def doubts_of_part(examples: Examples, rows: Indices, part: str) -> Iterator[str]:
    """A sentence if all users of a part have the same answer."""
    answers = {tuple(sorted(examples.answers[i])) for i in rows.tolist()}
    if len(answers) == 1 and len(rows) > 1:
        text = ", ".join(map(repr, answers.pop())) or "no tag"
        yield (
            f"All {len(rows):,} {part} users have the same answer, {text}: metrics that compare "
            "different answers are left out or say nothing."
        )
