"""Threads that step back leave the others of their process where they were."""

import os
import sys
import threading

import pytest

from peterrec.service.system.priority import NICENESS, step_back


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own there")
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
