"""What kept the device thread from running batches lately, so that a late row can say why."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

SHORTEST_S = 0.0005
"""Shorter pauses are not kept: there are many, and none makes a request slow."""

KEPT = 256
"""Pauses that are kept, of all kinds; rows that wait longer than these are rare."""


class HoldUps:
    """Pauses between batches, by their kind: the stages ``swap`` and ``kernels``."""

    def __init__(self) -> None:
        self._pauses: deque[tuple[float, float, str]] = deque(maxlen=KEPT)

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Note the time that the block takes."""
        began_at = time.monotonic()
        try:
            yield
        finally:
            self.note(kind, began_at, time.monotonic())

    def note(self, kind: str, began_at: float, ended_at: float) -> None:
        """Note a pause."""
        if ended_at - began_at >= SHORTEST_S:
            self._pauses.append((began_at, ended_at, kind))

    def between(self, since: float, until: float) -> dict[str, float]:
        """Return the seconds of pauses in a time, by kind; mostly there are none."""
        if not self._pauses or self._pauses[-1][1] <= since:
            return {}
        found: dict[str, float] = {}
        for began_at, ended_at, kind in self._pauses:
            seconds = min(ended_at, until) - max(began_at, since)
            if seconds > 0:
                found[kind] = found.get(kind, 0.0) + seconds
        return found
