"""Histories from which no backbone can be learned are refused; doubtful ones are told."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from peterrec.model.data.histories import Histories
from peterrec.model.errors import SplitEmpty, TooFewItems, UnknownItems
from peterrec.model.training.pretrain.corpus import prepare_corpus
from peterrec.model.training.pretrain.pretrain import pretrain
from tests.model.small_shop import TINY, shop_histories


def histories_of(rows: Sequence[Sequence[int]]) -> Histories:
    items = max((max(row) for row in rows if len(row)), default=0) + 1
    return Histories(
        tuple(f"u{i}" for i in range(len(rows))),
        tuple(f"item-{i}" for i in range(items)),
        np.array([code for row in rows for code in row], dtype=np.int64),
        np.cumsum([0, *map(len, rows)]),
    )


def warnings_of(rows: Sequence[Sequence[int]]) -> str:
    return " ".join(prepare_corpus(histories_of(rows), TINY).metadata["warnings"])


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        ([[0, 0, 0]] * 30, TooFewItems, "have one item, 'item-0', so there is nothing to predict"),
        ([[0, 1, 2, 3]], SplitEmpty, "one user, 'u0', leaves none to train on"),
        ([[i % 7] for i in range(60)], SplitEmpty, "each of the 60 users has one event"),
        ([[2 * i, 2 * i + 1] for i in range(60)], SplitEmpty, "no item of the 6 validation users"),
        ([[]] * 30, UnknownItems, "no item occurs 1 times or more"),
    ],
)
def test_histories_that_teach_nothing_are_refused(rows, error, text):
    with pytest.raises(error, match=text) as refused:
        prepare_corpus(histories_of(rows), TINY)
    assert refused.value.hint
    assert "learning rate" not in str(refused.value)


def test_a_vocabulary_cut_to_one_item_is_refused():
    rows = [[0, 0, i + 1] for i in range(40)]
    with pytest.raises(TooFewItems, match="one item, 'item-0'"):
        prepare_corpus(histories_of(rows), replace(TINY, min_count=3))


def test_a_vocabulary_cut_that_leaves_nothing_is_refused():
    with pytest.raises(UnknownItems, match="no item occurs 10000 times") as refused:
        prepare_corpus(shop_histories(), replace(TINY, min_count=10_000))
    assert "`min_count`" in refused.value.hint


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([[0, 1], [1, 0]] * 20, "of the 40 users, 0 have three events or more"),
        ([[0, 1, 2 + i] for i in range(40)], "40 have three events or more, and the newest item"),
    ],
)
def test_newest_items_that_cannot_be_predicted_are_refused_with_the_option(rows, text):
    with pytest.raises(SplitEmpty, match=text) as refused:
        prepare_corpus(histories_of(rows), replace(TINY, validation_share=0.0))
    assert "`validation_share`" in refused.value.hint


def test_too_few_histories_of_two_known_items_are_refused_with_both_numbers():
    with pytest.raises(SplitEmpty, match="give 1 and 0 histories of two known items"):
        prepare_corpus(histories_of([[i % 2] for i in range(29)] + [[0, 1]]), TINY)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([[0, 1, 2, 1]] * 300, "There are only 3 items"),
        ([[0] * 40 + [i % 20 + 1] for i in range(300)], "of the events have the item 'item-0'"),
        (
            [[i % 3, (i + 1) % 3, *range(5 * i + 3, 5 * i + 8)] for i in range(99)],
            "different items, most of them once",
        ),
        ([[0, 1], [2], [3]] * 100, "have fewer than two known items"),
        ([[i % 20] * 12 + [0] for i in range(300)], "of the events repeat the item before them"),
        ([[i % 20, i % 19, i % 18] for i in range(60)], "Only 6 validation sequences"),
    ],
)
def test_doubtful_histories_are_warned_of(rows, text):
    assert text in warnings_of(rows)


def test_warnings_are_told_before_training_and_recorded():
    told: list[str] = []
    rows = [[0, 1, 2, 1, 0]] * 40
    trained = pretrain(histories_of(rows), replace(TINY, epochs=1), notice=told.append)
    assert told == trained.record["data"]["warnings"]
    assert "There are only 3 items" in told[0]


def test_ordinary_histories_are_not_warned_of():
    assert prepare_corpus(shop_histories(400), TINY).metadata["warnings"] == []
