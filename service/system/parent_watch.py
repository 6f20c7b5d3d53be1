"""A child must not outlive its supervisor, however that ends."""

import os
import sys
import threading


def end_with_parent() -> None:
    """Exit at once when the supervisor is gone.

    The supervisor holds the other end of this process's standard input, and closes it only by
    ending. Unlike Linux' parent-death signal this works everywhere and needs no race check.
    """
    threading.Thread(target=_wait_for_end, name="parent-watch", daemon=True).start()


def _wait_for_end() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)
