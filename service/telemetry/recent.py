"""How many calls each task has had lately, in bounded memory."""

import time
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

EVERY_S = 3
"""Seconds that one point counts."""

POINTS = 40
"""Points that are kept: two minutes."""

MOST_TASKS = 2_000
"""Tasks of one point. Further ones, which nobody sees in a list, are not counted in it."""


class RecentCalls(msgspec.Struct, frozen=True):
    """Calls in each interval of ``every_s``, oldest first, by the tasks' labels in the metrics."""

    every_s: int
    tasks: Mapping[str, list[int]]


class CallCounter:
    """Counts calls by interval. One thread notes them, and others may read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._points: deque[tuple[int, dict[str, int]]] = deque(maxlen=POINTS + 1)

    def note(self, label: str) -> None:
        """Count a call."""
        interval = int(self._clock() // EVERY_S)
        if not self._points or self._points[-1][0] != interval:
            self._points.append((interval, {}))
        counts = self._points[-1][1]
        if label in counts:
            counts[label] += 1
        elif len(counts) < MOST_TASKS:
            counts[label] = 1

    def recent(self) -> RecentCalls:
        """The intervals that have ended; tasks without calls in them are left out."""
        now = int(self._clock() // EVERY_S)
        tasks: dict[str, list[int]] = {}
        for interval, counts in list(self._points):
            place = interval - (now - POINTS)
            if not 0 <= place < POINTS:  # too long ago, or still being counted
                continue
            for label, calls in counts.items():
                tasks.setdefault(label, [0] * POINTS)[place] = calls
        return RecentCalls(EVERY_S, tasks)

    def encoded(self) -> bytes:
        """What ``recent`` returns, as JSON."""
        return msgspec.json.encode(self.recent())
