"""Long work on the event loop in short steps, so that no caller holds up the others."""

import asyncio
import time

from peterrec.service.predict.loop_shares import SHARED_STEP_S, current_call

STEP_S = 0.005
"""Seconds of work after which other requests get a turn: below the 20 ms that nobody may take."""


class Pace:
    """Notes how long the event loop has been busy with one call.

    If tenants share the loop, steps are shorter, and the next one comes when the tenant of the
    call is due (``loop_shares``).
    """

    def __init__(self, step_s: float = STEP_S) -> None:
        self._call = current_call()
        self._step_s = step_s
        self._began_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether other requests should have a turn now."""
        taken_s = time.monotonic() - self._began_at
        if taken_s <= SHARED_STEP_S:
            return False
        is_shared = self._call is not None and self._call.is_shared
        return is_shared or taken_s > self._step_s

    async def rest(self) -> None:
        """Let other requests run."""
        if self._call is None:
            await asyncio.sleep(0)
        else:
            await self._call.rest()
        self._began_at = time.monotonic()
