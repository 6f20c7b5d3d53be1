"""The divergence of two answers."""

import pytest

from peterrec.patches.bundle.divergence import (
    class_divergence,
    ranking_divergence,
    tag_divergence,
    value_divergence,
)


def test_classes_are_the_same_or_not() -> None:
    assert (class_divergence("a", "a"), class_divergence("a", "b")) == (0.0, 1.0)


def test_tags_count_by_the_share_that_differs() -> None:
    assert tag_divergence({"a", "b"}, {"b", "c"}, tag_count=8) == 0.25
    assert tag_divergence(set(), set(), tag_count=0) == 0.0


def test_rankings_differ_by_the_items_that_do_not_overlap_in_any_order() -> None:
    assert ranking_divergence(("a", "b"), ("b", "a")) == 0.0
    assert ranking_divergence(("a", "b"), ("b", "c")) == 0.5
    assert ranking_divergence(("a",), ("a", "b")) == 0.5
    assert ranking_divergence((), ()) == 0.0
    assert ranking_divergence((), ("a",)) == 1.0


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0.0, 0.0, 0.0), (2.0, 1.0, 0.5), (-1.0, 1.0, 1.0), (0.0, 3.0, 1.0), (-4.0, -3.0, 0.25)],
)
def test_values_differ_in_relation_to_the_larger(
    first: float, second: float, expected: float
) -> None:
    assert value_divergence(first, second) == expected
    assert value_divergence(second, first) == expected
