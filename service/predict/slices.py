"""Long work in small slices while somebody waits for other answers, and at once else."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from peterrec.service.predict.turns import Turns

SLICE_S = 0.001
"""Seconds that a slice should take, with its way to the device: what an interactive call that comes
meanwhile waits for."""

LARGEST_GROWTH = 2.0
"""How many times as large the next slice may be."""


class Slices:
    """The slices of all streams of a worker: one at a time, as large as takes a millisecond.

    Lives on the event loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turns = Turns()
        self._rows = 1.0

    @property
    def rows(self) -> int:
        """How many rows the next slice may have."""
        return max(1, int(self._rows))

    @asynccontextmanager
    async def turn(self, tenant: str, rows: int, deadline: float) -> AsyncIterator[None]:
        """Run a slice of so many rows in a turn of the tenant's, and learn how long it takes."""
        async with self._turns.turn(tenant, deadline):
            began_at = self._clock()
            yield
            taken_s = self._clock() - began_at
        fitting = rows * SLICE_S / max(taken_s, 1e-6)
        self._rows = max(1.0, min(fitting, LARGEST_GROWTH * rows))
