"""Nothing at or after a target may be read."""

from dataclasses import replace

import pytest

from peterrec.model.data.interactions import Events
from peterrec.model.errors import FutureItem, OrderUnreadable
from peterrec.model.study.cutoffs import cuts_after, first_times, is_past, require_past
from tests.model.data.few_events import events


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


def test_a_past_that_holds_the_target_item_too_is_allowed_if_times_say_so():
    require_past(events(("a", "t", 1)), events(("a", "t", 5)))


def test_without_times_a_target_in_the_input_is_refused():
    inputs = events(("a", "x", 0), ("b", "t", 1), has_times=False)
    require_past(inputs, events(("a", "t", 0), has_times=False))
    with pytest.raises(FutureItem, match="item 't' of user 'b' is also a target"):
        require_past(inputs, events(("b", "t", 0), has_times=False))


def test_events_without_times_are_not_cut_by_their_place_in_the_file():
    with pytest.raises(OrderUnreadable, match=r"events\.csv has no times"):
        is_past(events(("a", "x", 1), has_times=False), {"a": 2})


def nanoseconds(*rows: tuple[str, str, int]) -> Events:
    return replace(events(*rows), time_kind="timestamp", time_scale=9)


def test_events_one_nanosecond_apart_are_told_apart():
    now = 1_700_000_000_123_456_789
    inputs = nanoseconds(("a", "x", now), ("a", "y", now + 1))
    assert is_past(inputs, {"a": now + 1}).tolist() == [True, False]
    require_past(inputs, nanoseconds(("a", "t", now + 2)))
    with pytest.raises(FutureItem, match=f"has item 'y' at {now + 1}, but a target at {now + 1}"):
        require_past(inputs, nanoseconds(("a", "t", now + 1)))


def test_inputs_and_targets_of_two_scales_are_compared_in_one():
    now = 1_700_000_000_123_456
    targets = replace(events(("a", "t", now)), time_kind="timestamp", time_scale=6)
    require_past(nanoseconds(("a", "x", now * 1000 - 1)), targets)
    with pytest.raises(FutureItem):
        require_past(nanoseconds(("a", "x", now * 1000)), targets)
    with pytest.raises(OrderUnreadable, match="nothing says which events are earlier"):
        require_past(events(("a", "x", 1)), targets)
