"""How a process shows that it makes progress: a few numbers in a file that other processes map.

A write is a store to memory. It needs no thread, no message and no answer, so it also works between
two parts of a batch, and others read it while the process is stopped or busy.
"""

import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIVING_INTERVAL_S = 0.25
"""Seconds between two signs that a process lives, whatever its main thread does."""

NUMBER_BYTES = 8


_PID, _EPOCH, _LONG_STEPS, _PROGRESS_AT, _LIVES_AT = range(5)
"""Places of the numbers in the file; those of times hold float64, the others int64."""

FILE_BYTES = 5 * NUMBER_BYTES


class Pulse:
    """The numbers of one process, which it alone writes.

    *Progress* is made by the main thread: a turn of its loop, or a part of a batch. A process also
    *lives* while the main thread computes, as long as Python can run another thread. During a *long
    step*, such as loading a backbone or compiling, no progress is expected soon. Times are on
    ``time.monotonic``, which all processes of a machine share.
    """

    def __init__(self, memory: "bytearray | mmap.mmap | None" = None) -> None:
        """By default, nobody else reads the numbers."""
        self._memory = bytearray(FILE_BYTES) if memory is None else memory
        bare = memoryview(self._memory)
        self._times, self._numbers = bare.cast("d"), bare.cast("q")

    @classmethod
    def at(cls, path: Path | None) -> "Pulse":
        """The numbers in a file, which is made if it is missing; without a path nobody's."""
        if path is None:
            return cls()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, FILE_BYTES)
            return cls(mmap.mmap(descriptor, FILE_BYTES))
        finally:
            os.close(descriptor)

    @property
    def pid(self) -> int:
        """The process that wrote last; 0 before any did."""
        return self._numbers[_PID]

    @property
    def progress_at(self) -> float:
        """When the process made progress last."""
        return self._times[_PROGRESS_AT]

    @property
    def is_in_long_step(self) -> bool:
        """True while no progress is expected soon."""
        return self._numbers[_LONG_STEPS] > 0

    def begin(self) -> None:
        """Take the file over from an earlier process. A long step begins, the start."""
        self._numbers[_EPOCH] = 0
        self._numbers[_LONG_STEPS] = 1
        self.beat()
        self._times[_LIVES_AT] = time.monotonic()
        self._numbers[_PID] = os.getpid()

    def end_start(self, epoch: int = 0) -> None:
        """The start is over; ``epoch`` is the device process's, for ``lives``."""
        self.beat()
        self._numbers[_LONG_STEPS] = 0
        self._numbers[_EPOCH] = epoch

    def beat(self) -> None:
        """Show progress; called by the main thread."""
        self._times[_PROGRESS_AT] = time.monotonic()

    @contextmanager
    def living(self) -> Iterator[None]:
        """Show during the block, from a thread of its own, that the process lives."""
        ended = threading.Event()

        def show() -> None:
            while not ended.wait(LIVING_INTERVAL_S):
                self._times[_LIVES_AT] = time.monotonic()

        thread = threading.Thread(target=show, name="pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def lives(self, epoch: int, since: float) -> bool:
        """True if the device process of this epoch has lived or made progress since then."""
        lived_at = max(self._times[_LIVES_AT], self.progress_at)
        return self._numbers[_EPOCH] == epoch and lived_at >= since

    def is_stuck(self, epoch: int, since: float) -> bool:
        """True if the device process of this epoch has made no progress since then."""
        return self._numbers[_EPOCH] == epoch and self.progress_at < since
