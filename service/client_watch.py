"""Ends a request whose client has left, without a task per request for it."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Receive

from service.asgi import ClientLeft

Result = TypeVar("Result")

WATCH_AFTER_S = 0.05
"""Most answers are there sooner; only a longer wait is worth a task that looks."""


class _Watch:
    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._watched = asyncio.current_task()
        self._timer = self._loop.call_later(WATCH_AFTER_S, self._begin)
        self._watcher: asyncio.Task[None] | None = None
        self.has_left = False

    def _begin(self) -> None:
        self._watcher = self._loop.create_task(self._look())

    async def _look(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.has_left = True
        assert self._watched is not None
        self._watched.cancel()

    async def stop(self) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])


async def unless_client_leaves(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of ``work``; ClientLeft, with ``work`` cancelled, if the connection closes.

    The request's body must have been read.
    """
    watch = _Watch(receive)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.has_left:
            raise ClientLeft from None
        raise
    finally:
        await watch.stop()
