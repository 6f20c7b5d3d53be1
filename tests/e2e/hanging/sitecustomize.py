"""Lets tests hang a process from outside: Python imports this before any process's own code.

A handler of a signal runs on the main thread, wherever that is at that time: in a device process
it is the thread that computes, and in a worker the event loop's.
"""

import signal
import threading
import time

SLOW_S = 4.5
"""Seconds: longer than workers wait for a message of the device process, and no hang."""


def _loop(number: int, frame: object) -> None:
    while True:
        pass


def _wait(number: int, frame: object) -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _be_slow(number: int, frame: object) -> None:
    time.sleep(SLOW_S)


signal.signal(signal.SIGUSR1, _loop)
signal.signal(signal.SIGUSR2, _wait)
signal.signal(signal.SIGALRM, _be_slow)
