"""Ends a child process when its supervisor ends, even if that was killed."""

import os
import sys
import threading


def end_with_parent() -> None:
    """Exit this process as soon as the supervisor has ended.

    The supervisor has the other end of this process's standard input, which closes when the
    supervisor ends. Unlike Linux' parent-death signal, this works on every system, and also if the
    supervisor ended before this call.
    """
    threading.Thread(target=_wait_for_end, name="parent-watch", daemon=True).start()


def _wait_for_end() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)
