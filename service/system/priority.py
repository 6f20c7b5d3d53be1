"""Priorities of threads and processes: what serves first, and what can wait."""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

NICENESS = 10
"""Niceness that leaves a thread a tenth of the CPU time of a serving thread on the same core."""

WORKER_NICENESS = 2
"""Niceness of HTTP workers: on a core that both want, the device process gets three fifths.

With 5 the workers fall behind: calls wait unread, and refusals take a second. With 10 a call of one
row has a third of the throughput on one core (docs/decisions/0156-the-device-comes-first.md).
"""

AUTOGROUP = Path("/proc/self/autogroup")
"""Where Linux keeps the niceness of a session if it schedules by sessions (sched(7))."""

ATTEMPTS, PAUSE_S = 10, 0.11
"""Unprivileged processes may change the niceness of a session ten times a second, all together."""


def step_back() -> None:
    """Lower the priority of the calling thread, from now on."""
    if sys.platform == "linux":  # elsewhere the priority of the whole process would be lowered
        _step_back_to(max(NICENESS, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))


def give_way_to_device() -> None:
    """Lower the priority of this process, a worker in a session of its own, from now on.

    Call it before the process has other threads, which inherit it. If Linux schedules by sessions,
    each child of the supervisor gets an equal share whatever its niceness, and only the niceness of
    its session counts. Never raises: where it is not permitted, all have the same priority.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        own = os.getpriority(os.PRIO_PROCESS, 0)
        _step_back_to(min(19, own + WORKER_NICENESS))
    if os.getsid(0) == os.getpid():  # else the session is also that of others
        _lower_session(AUTOGROUP, WORKER_NICENESS)


def _step_back_to(niceness: int) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def _lower_session(file: Path, niceness: int) -> None:
    for _ in range(ATTEMPTS):
        try:
            file.write_text(f"{niceness}\n")
        except BlockingIOError:  # somebody else has just changed a session
            time.sleep(PAUSE_S)
        except OSError:  # not compiled in, or hidden by a container
            return
        else:
            return
