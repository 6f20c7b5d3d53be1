"""What tasks were asked lately is kept in bounded memory."""

import pytest

from peterrec.service.telemetry.recent import EVERY_S, MOST_TASKS, POINTS, CallCounter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0 * EVERY_S

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_calls_are_counted_by_interval_oldest_first(clock):
    counter = CallCounter(clock)
    for calls in (3, 0, 2):
        for _ in range(calls):
            counter.note("films")
        clock.now += EVERY_S
    counter.note("films")  # of the interval that has not ended
    recent = counter.recent()
    assert recent.tasks == {"films": [0] * (POINTS - 3) + [3, 0, 2]}


def test_what_is_long_ago_is_forgotten(clock):
    counter = CallCounter(clock)
    counter.note("films")
    clock.now += POINTS * EVERY_S
    assert counter.recent().tasks["films"][0] == 1
    clock.now += EVERY_S
    assert counter.recent().tasks == {}


def test_a_point_has_a_bounded_number_of_tasks(clock):
    counter = CallCounter(clock)
    for task in range(MOST_TASKS + 100):
        counter.note(f"t{task}")
    counter.note("t0")
    clock.now += EVERY_S
    recent = counter.recent()
    assert len(recent.tasks) == MOST_TASKS
    assert recent.tasks["t0"][-1] == 2
