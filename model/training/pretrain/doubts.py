"""What is doubtful about the histories that a backbone is pretrained on, and what is refused."""

from collections.abc import Iterator

import numpy as np

from peterrec.model.data.histories import Histories
from peterrec.model.data.vocabulary import TokenHistories, Vocabulary
from peterrec.model.errors import SplitEmpty, TooFewItems
from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.objectives.summary import counted

FEW_ITEMS = 10
"""Items below which a backbone has hardly anything to learn."""

FEW_VALIDATED = 20
"""Validation sequences below which the best epoch is chosen by chance."""

DOMINANT_SHARE = 0.9
"""Share of the events from which one item, or repeating the item before, outweighs all else."""

RARE_EVENTS = 2.0
"""Events per item below which most items are seen once, as if each event had an item of its own."""


def require_successions(histories: Histories) -> None:
    """Refuse histories of one event each."""
    if int(np.diff(histories.offsets).max(initial=0)) == 1:
        raise SplitEmpty(
            f"each of the {len(histories.users):,} users has one event: no item follows another.",
            hint="Check the user column: it may be an id of the event.",
        )


def require_sequences(train: TokenHistories, held_out: TokenHistories) -> None:
    """Refuse parts without a sequence of two known items; the message says which way it went."""
    parts = {"training": train, "validation": held_out}
    counts = {name: sum(len(row) > 1 for row in part.rows) for name, part in parts.items()}
    if all(counts.values()):
        return
    users = f"{len(train.users):,} training and {counted(len(held_out.users), 'validation user')}"
    if counts["training"] and not any(len(row) for row in held_out.rows):
        raise SplitEmpty(
            f"no item of the {counted(len(held_out.users), 'validation user')} is one of the "
            "training users' items.",
            hint="Check the item column: it may be an id of the event. Or lower `min_count`.",
        )
    raise SplitEmpty(
        f"{users} give {counts['training']:,} and {counts['validation']:,} histories of two known "
        "items or more.",
        hint="Give more users or longer histories, lower `min_count`. Or give another "
        "`validation_share`.",
    )


def require_newest_items(held_out: TokenHistories) -> None:
    """Refuse histories without a newest item that could be predicted."""
    if not held_out.rows:
        raise SplitEmpty(
            f"of the {counted(len(held_out.users), 'user')}, {held_out.events:,} have three events "
            "or more, and the newest item of none of them is known from others' older events.",
            hint="Give a positive `validation_share`. Or check the user and the item column.",
        )


def require_events_left(given: Histories, kept: Histories, left_out: int) -> None:
    """Refuse histories of which the newest events that are left out are all there is."""
    if len(given.codes) and not len(kept.codes):
        raise SplitEmpty(
            f"none of the {counted(len(given.users), 'user')} has more than the "
            f"{counted(left_out, 'newest event')} left out.",
            hint="Lower `leave_out_last`.",
        )


def require_items(vocabulary: Vocabulary) -> None:
    """Refuse a vocabulary of one item."""
    if len(vocabulary) == 1:
        raise TooFewItems(
            f"the training users' histories have one item, {vocabulary.items[0]!r}, so there is "
            "nothing to predict.",
            hint="Check the item column. Also check `where` and `min_count`.",
        )


def doubts_of_corpus(
    train: TokenHistories, vocabulary: Vocabulary, validated: int
) -> Iterator[str]:
    """A sentence for each doubt; ``validated`` is the number of validation sequences."""
    counts = np.bincount(np.concatenate(train.rows))
    events, most = int(counts.sum()), int(counts.argmax())
    if len(vocabulary) < FEW_ITEMS:
        yield f"There are only {len(vocabulary)} items, so there is little to learn."
    if counts[most] > DOMINANT_SHARE * events:
        item = vocabulary.items[most - FIRST_ITEM]
        yield f"{counts[most] / events:.0%} of the events have the item {item!r}."
    if events < RARE_EVENTS * len(vocabulary):
        yield (
            f"{events:,} events have {len(vocabulary):,} different items, most of them once: the "
            "item column may be an id of the event."
        )
    short = sum(len(row) < 2 for row in train.rows)
    if 2 * short > len(train.rows):
        yield (
            f"{short:,} of {len(train.rows):,} training users have fewer than two known items and "
            "are not learned from; check the user column."
        )
    yield from _doubts_of_repeats(train)
    if validated < FEW_VALIDATED:
        sequences = counted(validated, "validation sequence")
        yield f"Only {sequences}: the best epoch is chosen by chance."


def _doubts_of_repeats(train: TokenHistories) -> Iterator[str]:
    followed = sum(len(row) - 1 for row in train.rows if len(row))
    repeats = sum(int((row[1:] == row[:-1]).sum()) for row in train.rows)
    if followed and repeats > DOMINANT_SHARE * followed:
        yield f"{repeats / followed:.0%} of the events repeat the item before them."
