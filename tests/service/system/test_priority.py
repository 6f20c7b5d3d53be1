"""Threads that step back leave the others where they were; workers step back as a whole."""

import os
import subprocess
import sys
import threading

import pytest

from peterrec.service.system.priority import AUTOGROUP, NICENESS, WORKER_NICENESS, step_back

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="threads have priorities of their own there"
)
WORKER = """
import os, sys, threading
from peterrec.service.system import priority
if len(sys.argv) > 1:
    os.setuid(int(sys.argv[1]))
priority.give_way_to_device()
found = []
thread = threading.Thread(target=lambda: found.append(os.getpriority(os.PRIO_PROCESS, 0)))
thread.start()
thread.join()
session = priority.AUTOGROUP.read_text() if priority.AUTOGROUP.exists() else ""
print(os.getpriority(os.PRIO_PROCESS, 0), found[0], *session.split()[-1:])
"""


def test_only_the_thread_that_steps_back_does() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    found: list[int] = []

    def work() -> None:
        step_back()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [max(before, NICENESS)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def started(*arguments: str, is_session: bool = True) -> list[str]:
    """Run a worker's start in a process, and return its niceness, a thread's and the session's.

    The last is missing where the session is in no group that has a niceness.
    """
    command = [sys.executable, "-c", WORKER, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, start_new_session=is_session
    )
    return done.stdout.split()


def sessions_niceness() -> list[str]:
    """Return the niceness of this session; nothing if it is in a control group of its own."""
    return AUTOGROUP.read_text().split()[-1:] if AUTOGROUP.exists() else []


def test_a_worker_steps_back_with_its_later_threads_and_its_session() -> None:
    wanted = min(19, os.getpriority(os.PRIO_PROCESS, 0) + WORKER_NICENESS)
    process, thread, *session = started()
    assert [process, thread] == [str(wanted), str(wanted)]
    assert session in ([], [str(WORKER_NICENESS)])


@pytest.mark.skipif(not sessions_niceness(), reason="this session has no niceness of its own")
def test_a_process_in_the_session_of_others_leaves_that_alone() -> None:
    before = sessions_niceness()
    assert started(is_session=False)[2:] == before
    assert sessions_niceness() == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_a_worker_of_an_unprivileged_user_steps_back_too() -> None:
    wanted = min(19, os.getpriority(os.PRIO_PROCESS, 0) + WORKER_NICENESS)
    assert started("65534")[:2] == [str(wanted), str(wanted)]
