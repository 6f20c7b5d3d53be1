"""A connection is left unread after a refusal if refused calls come back faster than they may."""

import pytest

from peterrec.service.http.refusal_pace import (
    AT_ONCE_S,
    MAX_TENANTS,
    REFUSALS_PER_S,
    TICK_S,
    RefusalPace,
)

AT_ONCE = int(REFUSALS_PER_S * AT_ONCE_S) - 1


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_peak_of_refusals_causes_no_pause(clock: Clock):
    pace = RefusalPace(clock)
    assert {pace.pause_s("a", 1) for _ in range(AT_ONCE)} == {0.0}


def test_refusals_that_go_on_are_spread_to_their_rate(clock: Clock):
    pace = RefusalPace(clock)
    for _ in range(AT_ONCE):
        pace.pause_s("a", 10)
    ends = sorted(clock.now + pace.pause_s("a", 10) for _ in range(int(5 * REFUSALS_PER_S)))
    for second in range(5):
        count = sum(clock.now + second < end <= clock.now + second + 1 for end in ends)
        assert count == pytest.approx(REFUSALS_PER_S, abs=2 * TICK_S * REFUSALS_PER_S)


def test_a_pause_is_never_longer_than_the_client_was_told_to_wait(clock: Clock):
    pace = RefusalPace(clock)
    assert max(pace.pause_s("a", 2) for _ in range(10_000)) == pytest.approx(2, abs=TICK_S)


def test_a_tenant_that_floods_causes_no_pause_for_another_one(clock: Clock):
    pace = RefusalPace(clock)
    for _ in range(10_000):
        pace.pause_s("a", 1)
    assert pace.pause_s("b", 1) == 0.0


def test_after_a_quiet_time_there_is_no_pause(clock: Clock):
    pace = RefusalPace(clock)
    for _ in range(10_000):
        pace.pause_s("a", 1)
    clock.now += 1 + AT_ONCE_S
    assert pace.pause_s("a", 1) == 0.0


def test_tenants_are_forgotten(clock: Clock):
    pace = RefusalPace(clock)
    for number in range(10 * MAX_TENANTS):
        clock.now += 0.001
        pace.pause_s(str(number), 1)
    assert len(pace._next_at) <= MAX_TENANTS
