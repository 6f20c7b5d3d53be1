"""The HTTP connection of a request: how much of it has arrived, and whether the client has left."""

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
    """uvicorn's connection, which the application finds in the state of its scope.

    With ASGI alone, a second task must wait for the disconnect while the first one works. This
    class cancels the work itself, which saves two tasks per request.
    """

    def __init__(self, config: Config, server_state: ServerState) -> None:
        # A request holds its connection; a strong reference back would keep both alive.
        super().__init__(config, server_state, {"connection": weakref.ref(self)})
        self._working: asyncio.Task[Any] | None = None  # Any: whatever the application returns
        self._has_ended = False

    @classmethod
    def of(cls, scope: Scope) -> "Connection":
        """Return the connection of a request."""
        connection = scope["state"]["connection"]()
        assert isinstance(connection, cls)
        return connection

    @property
    def has_whole_body(self) -> bool:
        """Whether the whole body of the current request is received."""
        return not self.cycle.more_body

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the work that the client was waiting for."""
        super().connection_lost(exc)
        self._has_ended = True
        if self._working is not None:
            self._working.cancel()

    async def while_it_lasts(self, work: Awaitable[Result]) -> Result:
        """Return the result of ``work``; cancel it and raise ClientLeft if the connection ends.

        The request's body must have been read.
        """
        self.flow.resume_reading()  # it is paused after a large body and then misses a disconnect
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
