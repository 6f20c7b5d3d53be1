"""Turns: work that comes in parts, of several tenants, one part at a time."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from peterrec.service.errors import DeadlineExceeded
from peterrec.service.predict.loop_shares import until, waiting


class Turns:
    """Lets one part of work run at a time, and the tenants that wait take turns.

    A tenant that waits with many calls gets no more turns than one that waits with a single call.
    Lives on the event loop.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._last: dict[str, int] = {}  # numbers of the tenants' last turns
        self._count = 0
        self._is_taken = False

    @asynccontextmanager
    async def turn(self, tenant: str, deadline: float) -> AsyncIterator[None]:
        """Run the block in a turn of the tenant's; raise DeadlineExceeded if none came in time.

        Does not await if nobody has the turn. ``deadline`` is on ``time.monotonic``.
        """
        if self._is_taken:
            await self._wait(tenant, deadline)
        self._is_taken = True
        self._count += 1
        self._last[tenant] = self._count
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, tenant: str, deadline: float) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(mine)
        try:
            async with until(deadline):
                with waiting():
                    await mine
        except BaseException as error:
            if mine.done() and not mine.cancelled():
                self._pass_on()  # the turn came in the moment of giving up
            mine.cancel()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("its turn did not come in time.") from error
            raise

    def _pass_on(self) -> None:
        """Give the turn to the waiting tenant whose own last one was the longest ago."""
        while self._waiting:
            tenant = min(self._waiting, key=lambda waiting: self._last.get(waiting, 0))
            first = self._waiting[tenant].popleft()
            if not self._waiting[tenant]:
                del self._waiting[tenant]
            if not first.done():
                first.set_result(None)
                return
        self._is_taken = False
        self._last.clear()
