"""Long work on the event loop in short steps, so that no caller holds up the others."""

import asyncio
import time

STEP_S = 0.005
"""Seconds of work after which other requests get a turn: below the 20 ms that nobody may take."""


SMALL_STEP_S = 0.0005
"""Seconds of work that nobody waits for: a small part of what an interactive call takes."""


class Pace:
    """Notes how long the event loop has been busy with one call."""

    def __init__(self, step_s: float = STEP_S) -> None:
        self._step_s = step_s
        self._began_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether other requests should have a turn now."""
        return time.monotonic() - self._began_at > self._step_s

    async def rest(self) -> None:
        """Let other requests run."""
        await asyncio.sleep(0)
        self._began_at = time.monotonic()
