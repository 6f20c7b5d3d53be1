"""The HTTP connection of a request: what of it has arrived, and whether the client is there."""

import asyncio
import weakref
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from peterrec.service.http.asgi import ClientLeft

Result = TypeVar("Result")


class Connection(HttpToolsProtocol):
    """uvicorn's, which applications find in their scope's state.

    ASGI tells of a client that left only to a task that waits for it beside the work: two tasks
    more for each request.
    """

    def __init__(self, config: Config, server_state: ServerState) -> None:
        # a request under way holds its connection; a reference back would keep both after their end
        super().__init__(config, server_state, {"connection": weakref.ref(self)})
        self._working: asyncio.Task[Any] | None = None  # Any: whatever the application returns
        self._has_ended = False

    @classmethod
    def of(cls, scope: Scope) -> "Connection":
        """The connection that a request came by."""
        connection = scope["state"]["connection"]()
        assert isinstance(connection, cls)
        return connection

    @property
    def has_whole_body(self) -> bool:
        """True if nothing of the request in progress is still to come."""
        return not self.cycle.more_body

    def connection_lost(self, exc: Exception | None) -> None:
        """End what the client had waited for."""
        super().connection_lost(exc)
        self._has_ended = True
        if self._working is not None:
            self._working.cancel()

    async def while_it_lasts(self, work: Awaitable[Result]) -> Result:
        """The result of ``work``; ClientLeft, with ``work`` cancelled, if the connection ends.

        The request's body must have been read.
        """
        self.flow.resume_reading()  # paused after a large body: then it would not hear of an end
        self._working = asyncio.current_task()
        assert self._working is not None
        if self._has_ended:
            self._working.cancel()
        try:
            return await work
        except asyncio.CancelledError:
            if self._has_ended:
                raise ClientLeft from None
            raise
        finally:
            self._working = None
