"""Ranks of held-out items, by numbers that were worked out by hand."""

import math

import numpy as np
import pytest
import torch

from peterrec.model.data.histories import Histories
from peterrec.model.data.vocabulary import Vocabulary, tokenize
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import frame_histories
from peterrec.model.progress import no_progress
from peterrec.model.spec import FIRST_ITEM, MASK, BackboneSpec
from peterrec.model.training.next_items import (
    MISSED,
    UNKNOWN,
    HeldOutItems,
    Ranking,
    ScoreItems,
    by_backbone,
    by_last_item,
    by_popularity,
    by_user_vector,
    doubts_of_training,
    gains_of,
    hold_out,
    popularity_of,
    rank_all,
)

KNOWN = Vocabulary(("a", "b", "c", "d", "e"))


def histories_of(**rows: str) -> Histories:
    """Histories by user, an item for each letter."""
    items = tuple(sorted(set("".join(rows.values()))))
    codes = [items.index(letter) for row in rows.values() for letter in row]
    offsets = np.cumsum([0, *map(len, rows.values())])
    return Histories(tuple(rows), items, np.array(codes, dtype=np.int64), offsets)


def texts(row: np.ndarray) -> str:
    return "".join(KNOWN.items[token - FIRST_ITEM] for token in row.tolist())


def rows_of(*histories: str) -> list[np.ndarray]:
    return [KNOWN.tokens(history) for history in histories]


def ranks(held_out: HeldOutItems, scores: ScoreItems, without_seen: bool = False) -> list[int]:
    ranking = Ranking(len(KNOWN), without_seen)
    return rank_all(held_out, scores, ranking, no_progress, "ranking").tolist()


def test_the_newest_events_are_left_out_and_with_them_users_without_older_ones():
    kept = histories_of(ann="abcd", bob="ab", cid="abc").without_newest(2)
    assert kept.users == ("ann", "cid")
    assert [kept.items_of(i) for i in range(2)] == [("a", "b"), ("a",)]
    assert kept.items == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("part", "before", "next_items"),
    [("test", ["abc", "cc", "a"], ["d", "a", None]), ("validation", ["ab", "c", ""], "cca")],
)
def test_the_test_item_is_the_last_and_the_validation_item_the_one_before_it(
    part, before, next_items
):
    given = histories_of(ann="abcd", bob="ab", cid="cca", dan="xay")
    held_out = hold_out(given, KNOWN, part)
    assert [texts(row) for row in held_out.rows] == before
    expected = [UNKNOWN if item is None else KNOWN.items.index(item) for item in next_items]
    assert held_out.targets.tolist() == expected
    assert held_out.too_short == 1


def test_of_too_many_users_evenly_spaced_ones_are_asked():
    given = histories_of(**{f"user{i}": "abc"[: i % 3 + 1] * 3 for i in range(9)})
    held_out = hold_out(given, KNOWN, "test", most=3)
    assert [texts(row) for row in held_out.rows] == ["aa", "ababa", "abcabcab"]


def test_an_unknown_next_item_is_missed_and_of_equal_scores_the_target_is_last():
    held_out = HeldOutItems(rows_of("a", "", "b"), np.array([1, UNKNOWN, 3]))
    popularity = np.array([5, 2, 2, 0, 1])
    assert ranks(held_out, by_popularity(popularity)) == [2, MISSED, 4]


def test_without_seen_items_the_target_moves_up_and_a_repeated_one_is_missed():
    held_out = HeldOutItems(rows_of("ab", "ab", "dd"), np.array([2, 1, 4]))
    scores = by_popularity(np.array([5, 4, 3, 2, 1]))
    assert ranks(held_out, scores) == [2, 1, 4]
    assert ranks(held_out, scores, without_seen=True) == [0, MISSED, 3]


def test_the_last_item_decides_by_counted_moves_and_then_by_popularity():
    trained = rows_of("abac", "abd", "dd")  # a to b twice, a to c, b to a, b to d, d to d
    assert popularity_of(trained, 5).tolist() == [3, 2, 1, 3, 0]
    scores = by_last_item(trained, 5)(rows_of("a", "dab", ""))
    expected = [
        [0.3, 2.2, 1.1, 0.3, 0.0],
        [1.3, 0.2, 0.1, 1.3, 0.0],
        [0.3, 0.2, 0.1, 0.3, 0.0],
    ]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))


def test_gains_are_those_of_the_rank():
    found = gains_of(np.array([0, 2, 7, MISSED]), (5, 10))
    values = {name: metric.of(np.ones(4)) for name, metric in found.items()}
    assert values == pytest.approx(
        {
            "mrr@5": (1 + 1 / 3) / 4,
            "hr@5": 0.5,
            "ndcg@5": (1 + 0.5) / 4,
            "mrr@10": (1 + 1 / 3 + 1 / 8) / 4,
            "hr@10": 0.75,
            "ndcg@10": (1 + 0.5 + 1 / math.log2(9)) / 4,
        },
        rel=1e-15,
    )


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_backbone_ranks_by_the_state_that_pretraining_predicts_from(is_causal):
    torch.manual_seed(0)
    spec = BackboneSpec(5, channels=8, dilations=(1,), max_len=4, is_causal=is_causal)
    backbone = Backbone(spec).requires_grad_(False).eval()
    weight, bias = torch.randn(5, 8), torch.randn(5)
    rows = rows_of("abcdea", "b")
    scores = by_backbone(backbone, weight, bias)(rows)
    for own, row in zip(scores, rows, strict=True):
        last = row if is_causal else np.append(row, MASK)
        expected = backbone.hidden(frame_histories([last], spec))[0, -2] @ weight.t() + bias
        torch.testing.assert_close(own, expected)


def test_the_user_vector_predicts_too_and_alone_if_there_is_no_item():
    torch.manual_seed(0)
    backbone = Backbone(BackboneSpec(5, channels=8, dilations=(1,), max_len=4))
    weight, bias = torch.randn(5, 8), torch.randn(5)
    rows = rows_of("abcdea", "", "b")
    with torch.no_grad():
        expected = backbone.user_vectors(frame_histories(rows, backbone.spec)) @ weight.t() + bias
        by_cls = by_user_vector(backbone, weight, bias)
        torch.testing.assert_close(by_cls(rows), expected)
        for asked in (rows, rows[1:2]):
            by_item = by_backbone(backbone, weight, bias)(asked)
            equal = [torch.allclose(*pair) for pair in zip(by_item, by_cls(asked), strict=True)]
            assert equal == [len(row) == 0 for row in asked]


def test_ranks_are_the_users_own_whatever_the_batches(monkeypatch):
    held_out = HeldOutItems(rows_of("abcd", "a", "", "ab"), np.array([0, 1, 2, 3]))
    trained = tokenize(histories_of(ann="aabbd", bob="abc"), KNOWN).rows
    scores = by_last_item(trained, 5)
    together = ranks(held_out, scores)
    monkeypatch.setattr("peterrec.model.training.next_items.MOST_SCORES", 1)
    assert ranks(held_out, scores) == together == [1, 0, 3, 2]


@pytest.mark.parametrize(
    ("left_out", "share", "part", "expected"),
    [
        (0, 0.05, "test", "was trained on the test items"),
        (1, 0.05, "test", None),
        (1, 0.05, "validation", "was trained on the validation items"),
        (2, 0.05, "validation", None),
        (0, 0, "test", "was chosen by the test items"),
        (0, 0, "validation", "was trained on the validation items"),
        (1, 0, "test", None),
        (1, 0, "validation", None),
    ],
)
def test_a_backbone_that_saw_what_it_is_to_predict_is_told_of(left_out, share, part, expected):
    given = histories_of(ann="abcd", bob="abc")
    digest = given.without_newest(left_out).digest()
    settings = {"leave_out_last": left_out, "validation_share": share}
    record = {"settings": settings, "data": {"data_digest": digest}}
    found = list(doubts_of_training(record, given, part))
    assert (expected is None) == (found == [])
    assert all(expected in doubt for doubt in found)


def test_a_backbone_of_other_data_or_without_a_record_is_told_of():
    given = histories_of(ann="abcd", bob="abc")
    other = {"data": {"data_digest": "0" * 64}}
    assert "other data" in next(doubts_of_training(other, given, "test"))
    assert "no record" in next(doubts_of_training({}, given, "test"))
