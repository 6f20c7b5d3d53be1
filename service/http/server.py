"""A uvicorn server whose shutdown loses no request.

uvicorn's own shutdown resets the connections that wait in the kernel's queue, and closes those
whose request has arrived but was not read yet. This server accepts connections itself, so it can
empty the queue, close the listening socket, and answer everything that it accepted.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn
from uvicorn.config import Config

from peterrec.service.http.connection import Connection
from peterrec.service.http.peers import Peers
from peterrec.service.http.refusal_log import RefusalLog

log = structlog.get_logger()

ACCEPTED_AT_ONCE = 16
"""Connections accepted per turn of the loop: few enough to leave some to idle workers."""

ACCEPT_PAUSE_S = 1.0
"""Seconds without accepting after the process ran out of file descriptors."""

LAST_REQUESTS_S = 2.0
"""Seconds that connections accepted last have to send the request for which they were opened."""

POLL_S = 0.01
"""Seconds between two looks at the open connections during a shutdown."""


class DrainingServer(uvicorn.Server):
    """Drains on SIGTERM: become unready, wait, stop accepting, answer what was accepted, return.

    ``on_drain`` is called when the drain begins; ``delay_s`` is the wait. Any other signal, or a
    second one, skips the wait. ``peers`` bounds the connections; without it, nothing does.
    """

    def __init__(
        self,
        config: Config,
        listener: socket.socket,
        on_drain: Callable[[], None],
        delay_s: float,
        peers: Peers | None = None,
        refusals: RefusalLog | None = None,
    ) -> None:
        super().__init__(config)
        self._peers = peers
        self._refusals = refusals or RefusalLog()
        self._listener = listener
        self._listener.setblocking(False)
        self._on_drain = on_drain
        self._delay_s = delay_s
        self._is_draining = False
        self._opening: set[asyncio.Task[None]] = set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain. Runs as a signal handler, between two instructions of the main thread."""
        is_hurried = self._is_draining or sig != signal.SIGTERM
        self._is_draining = True
        self._on_drain()
        if is_hurried:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._loop.call_later, self._delay_s, self._exit)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections from the listener that was passed to the constructor."""
        self.servers = []
        self._loop = asyncio.get_running_loop()
        self._resume()
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Empty and close the queue of connections, answer them, then close the idle ones."""
        self._on_drain()
        self._loop.remove_reader(self._listener.fileno())
        while self._accept(ACCEPTED_AT_ONCE):
            pass
        self._listener.close()
        await asyncio.gather(*self._opening)
        for _ in range(round(LAST_REQUESTS_S / POLL_S)):  # by turns: a loop that was held up
            if not self.server_state.connections:  # has not read yet what has come
                break
            await asyncio.sleep(POLL_S)
        await super().shutdown()

    def _exit(self) -> None:
        self.should_exit = True

    def _resume(self) -> None:
        if self._listener.fileno() != -1:
            self._loop.add_reader(self._listener.fileno(), self._accept, ACCEPTED_AT_ONCE)

    def _accept(self, count: int) -> bool:
        """Accept at most ``count`` connections; return False if none is waiting any more."""
        for _ in range(count):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return False
            except OSError as error:  # out of file descriptors
                log.error("accept_failed", reason=error.strerror, pid=os.getpid())
                self._refusals.note("out_of_descriptors", "", "")
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(ACCEPT_PAUSE_S, self._resume)
                return False
            opening = self._loop.create_task(self._open(connection))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
        return True

    async def _open(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._new_protocol, connection)
        except OSError:  # the client has reset it already
            connection.close()

    def _new_protocol(self) -> asyncio.Protocol:
        return Connection(self.config, self.server_state, self._peers, self._refusals)
