"""Only time orders events, and nothing at or after a target may be read."""

import numpy as np
import pytest

from peterrec.model.errors import FutureItem
from peterrec.model.study.events import (
    Events,
    cuts_after,
    first_targets,
    first_times,
    histories_of,
    is_past,
    require_past,
)


def events(*rows: tuple[str, str, int], has_times: bool = True) -> Events:
    users = tuple(dict.fromkeys(user for user, _, _ in rows))
    items = tuple(dict.fromkeys(item for _, item, _ in rows))
    return Events(
        users,
        items,
        np.array([users.index(user) for user, _, _ in rows]),
        np.array([items.index(item) for _, item, _ in rows]),
        np.array([time for _, _, time in rows]),
        has_times,
        "events.csv",
    )


def order_of(given: Events, user: int = 0) -> tuple[str, ...]:
    return histories_of(given).items_of(user)


def test_events_of_one_day_come_in_an_order_that_neither_file_nor_id_decides():
    names = [f"item-{i:03d}" for i in range(40)]
    forward = order_of(events(*(("a", name, 5) for name in names)))
    backward = order_of(events(*(("a", name, 5) for name in reversed(names))))
    assert forward == backward
    assert list(forward) not in (sorted(names), sorted(names, reverse=True))
    other_user = order_of(events(*(("b", name, 5) for name in names)))
    assert other_user != forward


def test_days_come_in_their_order():
    given = events(("a", "z", 1), ("a", "y", 3), ("a", "x", 2), ("b", "z", 9))
    assert order_of(given) == ("z", "x", "y")


def test_first_targets_are_the_earliest_distinct_items():
    given = events(("a", "x", 3), ("a", "y", 1), ("a", "y", 2), ("a", "z", 4))
    assert first_targets(given, 2).by_user == {"a": ("y", "x")}


def test_what_happened_on_the_day_of_the_first_target_is_not_past():
    given = events(("a", "x", 1), ("a", "y", 2), ("a", "z", 3), ("b", "x", 7))
    assert is_past(given, {"a": 2}).tolist() == [True, False, False, True]
    assert first_times(given) == {"a": 1, "b": 7}


def test_a_cut_waits_until_enough_inputs_precede_it():
    inputs = events(("a", "x", 1), ("a", "y", 4), ("b", "x", 9))
    targets = events(("a", "t", 1), ("a", "u", 4), ("a", "v", 5), ("b", "t", 2))
    assert cuts_after(inputs, targets, 1) == {"a": 4}
    assert cuts_after(inputs, targets, 2) == {"a": 5}
    assert cuts_after(inputs, targets, 3) == {}


@pytest.mark.parametrize("time", [5, 6])
def test_a_future_item_in_the_input_is_refused(time):
    inputs = events(("a", "x", 1), ("a", "y", time))
    with pytest.raises(FutureItem, match=r"user 'a' has item 'y' at .* target at 5"):
        require_past(inputs, events(("a", "t", 5), ("a", "u", 8)))


def test_a_past_that_holds_the_target_item_too_is_allowed_if_times_tell():
    require_past(events(("a", "t", 1)), events(("a", "t", 5)))


def test_without_times_a_target_in_the_input_is_refused():
    inputs = events(("a", "x", 0), ("b", "t", 1), has_times=False)
    require_past(inputs, events(("a", "t", 0), has_times=False))
    with pytest.raises(FutureItem, match="item 't' of user 'b' is also a target"):
        require_past(inputs, events(("b", "t", 0), has_times=False))
