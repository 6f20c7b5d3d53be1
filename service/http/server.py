"""uvicorn with a shutdown that loses nothing: what was accepted is answered, then the port closes.

uvicorn's own shutdown resets connections that wait in the kernel's queue, and closes those whose
request has arrived but was not read yet. Here the worker accepts by itself, so that it can empty
the queue and close the listening socket in one step.
"""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn
from uvicorn.config import Config

from peterrec.service.http.connection import Connection

log = structlog.get_logger()

ACCEPTED_AT_ONCE = 16
"""Per turn of the loop, so that idle workers get their share of a burst of connections."""

ACCEPT_PAUSE_S = 1.0

LAST_REQUESTS_S = 1.0
"""Connections just accepted get so long to send the request that they were opened for."""

POLL_S = 0.01


class DrainingServer(uvicorn.Server):
    """On SIGTERM: say unready, wait, stop accepting, answer what was accepted, return.

    ``on_drain`` is called when the drain begins. Another signal than SIGTERM, or a second one,
    skips the delay.
    """

    def __init__(
        self,
        config: Config,
        listener: socket.socket,
        on_drain: Callable[[], None],
        delay_s: float,
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._listener.setblocking(False)
        self._on_drain = on_drain
        self._delay_s = delay_s
        self._is_draining = False
        self._opening: set[asyncio.Task[None]] = set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; runs between two instructions of the main thread."""
        is_hurried = self._is_draining or sig != signal.SIGTERM
        self._is_draining = True
        self._on_drain()
        if is_hurried:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._loop.call_later, self._delay_s, self._exit)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept from the listener that this server was made with."""
        self.servers = []
        self._loop = asyncio.get_running_loop()
        self._resume()
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Empty the queue of connections, close it, answer them, then close the idle ones."""
        self._on_drain()
        self._loop.remove_reader(self._listener.fileno())
        while self._accept(ACCEPTED_AT_ONCE):
            pass
        self._listener.close()
        await asyncio.gather(*self._opening)
        deadline = self._loop.time() + LAST_REQUESTS_S
        while self.server_state.connections and self._loop.time() < deadline:  # noqa: ASYNC110  # uvicorn's set tells nobody
            await asyncio.sleep(POLL_S)
        await super().shutdown()

    def _exit(self) -> None:
        self.should_exit = True

    def _resume(self) -> None:
        if self._listener.fileno() != -1:
            self._loop.add_reader(self._listener.fileno(), self._accept, ACCEPTED_AT_ONCE)

    def _accept(self, count: int) -> bool:
        """Accept at most ``count`` connections; False if no more wait."""
        for _ in range(count):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return False
            except OSError as error:  # no file descriptor is left
                log.error("accept_failed", reason=error.strerror)
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(ACCEPT_PAUSE_S, self._resume)
                return False
            opening = self._loop.create_task(self._open(connection))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
        return True

    async def _open(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self._loop.connect_accepted_socket(self._new_protocol, connection)

    def _new_protocol(self) -> asyncio.Protocol:
        return Connection(self.config, self.server_state)
