"""A history without each of its items is what a caller would send without them."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from peterrec.service.predict.item_ids import ItemId, ItemVocabulary, UnknownItems
from peterrec.service.predict.removals import Removals

ITEMS = ["a", "b", "1", "2", "3", "04", "-5"]
IDS: list[ItemId] = ["a", "b", 1, "1", 2, "2", "3", "04", -5, "x", "y", 9, "9"]
MAX_LEN = 6
VOCABULARY = ItemVocabulary(ITEMS, MAX_LEN)


def random_histories(count: int) -> list[list[ItemId]]:
    draw = random.Random(3)
    return [draw.choices(IDS, k=draw.randrange(25)) for _ in range(count)]


def removals(history: Sequence[ItemId], policy: UnknownItems = "drop") -> Removals:
    return Removals.of(history, policy, VOCABULARY)


@pytest.mark.parametrize("policy", ["drop", "map"])
@pytest.mark.parametrize("history", random_histories(40))
def test_each_window_is_that_of_the_history_sent_without_the_item(history, policy):
    found = removals(history, policy)
    assert found.window().tobytes() == VOCABULARY.map_history(history, policy).tokens
    for number, item in enumerate(found.ids):
        rest = [each for each in history if str(each) != str(item)]
        expected = VOCABULARY.map_history(rest, policy).tokens
        assert found.window(number).tobytes() == expected
        assert found.times[number] == len(history) - len(rest)


@pytest.mark.parametrize("policy", ["drop", "map"])
@pytest.mark.parametrize("history", random_histories(40))
def test_an_item_out_of_reach_changes_nothing_that_is_in_reach(history, policy):
    found = removals(history, policy)
    for reach in range(MAX_LEN + 1):
        within = found.within(reach)
        newest = found.window()[len(found.window()) - min(reach, len(found.window())) :]
        for number in range(len(found.ids)):
            window = found.window(number)
            rest = window[len(window) - min(reach, len(window)) :]
            assert number < within or np.array_equal(rest, newest)


def test_items_are_named_as_the_history_names_their_newest_occurrence():
    found = removals([1, "b", "x", "1", "a", "b"])
    assert found.ids == ["b", "a", "1"]
    assert found.times == [2, 1, 2]


def test_unknown_items_are_different_items_if_they_are_read():
    dropped, mapped = (removals(["x", "a", 9, "9", "y"], policy) for policy in ("drop", "map"))
    assert (dropped.ids, dropped.unread) == (["a"], 3)
    assert (mapped.ids, mapped.times, mapped.unread) == (["y", "9", "a", "x"], [1, 2, 1, 1], 0)


def test_a_long_id_is_named_whole_only_if_it_is_known():
    vocabulary = ItemVocabulary(["k" * 1000], MAX_LEN)
    found = Removals.of(["u" * 1000, "k" * 1000, 7], "map", vocabulary)
    assert [found.name(item) for item in range(3)] == [7, "k" * 1000, "u" * 256]


def test_an_empty_history_has_no_items():
    found = removals([])
    assert (found.ids, found.within(MAX_LEN), len(found.window())) == ([], 0, 0)
