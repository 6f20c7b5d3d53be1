"""When a child process counts as hung. Looks are counted, so nothing here waits."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from peterrec.service.processes.liveness import (
    LONG_STEP_LIMIT_S,
    LOOK_INTERVAL_S,
    STOPPED,
    STUCK,
    Liveness,
    process_state,
)
from peterrec.service.system.pulse import Pulse
from tests.waiting import eventually

LIMIT_S = 3.0
LOOKS = int(LIMIT_S / LOOK_INTERVAL_S)


@pytest.fixture
def pulse() -> Pulse:
    pulse = Pulse()
    pulse.begin()
    return pulse


@pytest.fixture
def stopped() -> Iterator[int]:
    """A process that a signal has stopped."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child.send_signal(signal.SIGSTOP)
    if process_state(child.pid):
        eventually(lambda: process_state(child.pid) == "T")
    yield child.pid
    child.kill()
    child.communicate()


def looks(liveness: Liveness, count: int, pid: int | None = None) -> list[str]:
    return [liveness.look(pid or os.getpid()) for _ in range(count)]


def test_a_process_is_stuck_after_as_many_looks_without_progress_as_fill_the_limit(
    pulse: Pulse,
) -> None:
    pulse.end_start()
    liveness = Liveness(pulse, LIMIT_S)
    liveness.look(os.getpid())
    assert looks(liveness, LOOKS) == [""] * (LOOKS - 1) + [STUCK]


def test_progress_between_two_looks_starts_the_count_anew(pulse: Pulse) -> None:
    pulse.end_start()
    liveness = Liveness(pulse, LIMIT_S)
    liveness.look(os.getpid())
    for _ in range(5):
        assert looks(liveness, LOOKS - 1) == [""] * (LOOKS - 1)
        pulse.beat()
        assert liveness.look(os.getpid()) == ""


def test_a_start_may_take_much_longer_but_not_for_ever(pulse: Pulse) -> None:
    liveness = Liveness(pulse, LIMIT_S)
    liveness.look(os.getpid())
    found = looks(liveness, int(LONG_STEP_LIMIT_S / LOOK_INTERVAL_S))
    assert found == [""] * (len(found) - 1) + [STUCK]


def test_the_progress_of_an_earlier_process_is_not_that_of_the_next(pulse: Pulse) -> None:
    pulse.end_start()
    liveness = Liveness(pulse, LIMIT_S)
    for _ in range(int(LONG_STEP_LIMIT_S / LOOK_INTERVAL_S) - 1):
        pulse.beat()
        assert liveness.look(os.getpid() + 1) == ""
    pulse.beat()
    assert liveness.look(os.getpid() + 1) == STUCK


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell no states of processes")
def test_a_stopped_process_hangs_in_a_long_step_too(pulse: Pulse, stopped: int) -> None:
    liveness = Liveness(pulse, LIMIT_S)
    assert looks(liveness, LOOKS, stopped) == [""] * (LOOKS - 1) + [STOPPED]
