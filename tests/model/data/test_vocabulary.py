"""The vocabulary is ordered by frequency; histories lose what it does not know, and say so."""

import numpy as np
import pytest

from peterrec.model.data.histories import Histories
from peterrec.model.data.vocabulary import Vocabulary, build_vocabulary, require_known, tokenize
from peterrec.model.errors import UnknownItems
from peterrec.model.spec import FIRST_ITEM, UNK


def make_histories(**by_user: str) -> Histories:
    items = tuple(dict.fromkeys("".join(by_user.values())))
    codes = [items.index(item) for history in by_user.values() for item in history]
    offsets = np.cumsum([0, *(len(history) for history in by_user.values())])
    return Histories(tuple(by_user), items, np.array(codes, dtype=np.int64), offsets)


def test_items_are_ordered_by_count_then_by_id():
    assert build_vocabulary(make_histories(u="caba", v="bad")).items == ("a", "b", "c", "d")


def test_rare_items_are_left_out():
    assert build_vocabulary(make_histories(u="caba", v="bad"), min_count=2).items == ("a", "b")


def test_a_minimum_count_that_no_item_reaches_is_refused():
    with pytest.raises(UnknownItems, match="no item occurs 9 times"):
        build_vocabulary(make_histories(u="ab"), min_count=9)


def test_items_get_the_tokens_after_the_special_ones():
    tokens = Vocabulary(("a", "b")).tokens(["b", "new", "a"])
    assert tokens.tolist() == [FIRST_ITEM + 1, UNK, FIRST_ITEM]


def test_unknown_items_are_left_out_and_counted():
    tokenized = tokenize(make_histories(u="axb", v="x", w="b"), Vocabulary(("a", "b")))
    rows = [row.tolist() for row in tokenized.rows]
    assert rows == [[FIRST_ITEM, FIRST_ITEM + 1], [], [FIRST_ITEM + 1]]
    assert (tokenized.events, tokenized.unknown_events, tokenized.unknown_share) == (5, 2, 0.4)


def test_a_share_of_unknown_events_above_the_limit_is_refused():
    histories = tokenize(make_histories(u="aaxb", v="b"), Vocabulary(("a", "b")))
    require_known(histories, max_unknown_share=0.2, source="events.csv")
    with pytest.raises(UnknownItems, match=r"events\.csv: 1 of 5 events \(20\.0%\)"):
        require_known(histories, max_unknown_share=0.19, source="events.csv")


def test_a_share_of_users_without_any_known_item_above_the_limit_is_refused():
    histories = tokenize(make_histories(u="aaaaaaaaa", v="x"), Vocabulary(("a",)))
    with pytest.raises(UnknownItems, match=r"1 of 2 users \(such as 'v'\)"):
        require_known(histories, max_unknown_share=0.4, source="events.csv")
