"""Ends a child process when its supervisor ends, even if that was killed."""

import ctypes
import os
import signal
import sys
import threading

SET_PARENT_DEATH_SIGNAL = 1
"""``PR_SET_PDEATHSIG`` of Linux' prctl."""


def end_with_parent() -> None:
    """Exit this process as soon as the supervisor has ended.

    The supervisor has the other end of this process's standard input, which closes when the
    supervisor ends. Unlike Linux' parent-death signal, this works on every system, and also if the
    supervisor ended before this call. On Linux there is that signal, too: it ends a process that
    is stopped, or that lets no other thread run.
    """
    die_with_parent()
    threading.Thread(target=_wait_for_end, name="parent-watch", daemon=True).start()


def die_with_parent() -> None:
    """On Linux, have this process killed when the process that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _wait_for_end() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)
