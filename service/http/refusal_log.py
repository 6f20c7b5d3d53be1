"""Log lines about refused connections and requests: few, however many are refused."""

import time
from collections.abc import Callable

import structlog

log = structlog.get_logger()

INTERVAL_S = 1.0
"""Seconds between two lines about the same code: an attack must not fill the disk."""


def _ignore(code: str) -> None:
    pass


class RefusalLog:
    """Writes one line per code and second, with the number of those that were left out.

    ``count`` is called for each.
    """

    def __init__(
        self,
        count: Callable[[str], None] = _ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count = count
        self._clock = clock
        self._next_at: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def note(self, code: str, peer: str, request_id: str) -> None:
        """Write a line, or count it if there was one with this code within the last second."""
        self._count(code)
        now = self._clock()
        if now < self._next_at.get(code, 0.0):
            self._left_out[code] = self._left_out.get(code, 0) + 1
            return
        self._next_at[code] = now + INTERVAL_S
        left_out = self._left_out.pop(code, 0)
        log.warning("refused", code=code, peer=peer, request_id=request_id, left_out=left_out)
