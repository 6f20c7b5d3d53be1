"""A proxy between a replica and Redis that a test may cut, silence and mend."""

import asyncio
import socket
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import TypeVar

HOST = "127.0.0.1"
BACKLOG = 128

Result = TypeVar("Result")


class Connection:
    """One client's connection. A mute connection reads everything and never sends anything."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter | None) -> None:
        self._ends = [client] if server is None else [client, server]
        self.is_mute = server is None

    async def copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter | None) -> None:
        """Carry one direction until either end has gone."""
        with suppress(OSError):
            while data := await source.read(1 << 16):
                if target is not None and not self.is_mute:
                    target.write(data)
                    await target.drain()
        if not self.is_mute:
            self.abort()

    def abort(self) -> None:
        """Reset both ends."""
        for end in self._ends:
            end.transport.abort()


class BreakableProxy:
    """Forwards a TCP port to another, in a separate thread.

    ``cut`` resets all connections and refuses new ones. After ``silence``, existing and new
    connections stay open but transfer nothing, like connections that a firewall has dropped.

    The proxy accepts connections itself and registers the client in the same step. An
    ``asyncio.Server`` that is closed immediately afterwards can lose a client that it has just
    accepted, and the client's socket then stays open for ever.
    """

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._connections: set[Connection] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self.is_silent = False
        self.port = 0
        self.mend()

    @property
    def is_open(self) -> bool:
        """True if a client could reach the other side."""
        return self._listener is not None and not self.is_silent

    def cut(self) -> None:
        self._run(self._cut())

    def silence(self) -> None:
        self._run(self._silence())

    def mend(self) -> None:
        """Let new connections through."""
        self._run(self._mend())

    def close(self) -> None:
        self._run(self._cut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[None, None, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _mend(self) -> None:
        self.is_silent = False
        if self._listener is None:
            self._listener = socket.create_server((HOST, self.port), backlog=BACKLOG)
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            self._loop.add_reader(self._listener, self._accept, self._listener)

    async def _silence(self) -> None:
        await self._mend()
        self.is_silent = True
        for connection in self._connections:
            connection.is_mute = True

    async def _cut(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        while self._serving:
            for connection in list(self._connections):
                connection.abort()
            await asyncio.wait(self._serving, timeout=0.01)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):  # the client left meanwhile
            client, _ = listener.accept()
            task = self._loop.create_task(self._serve(client))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, client: socket.socket) -> None:
        client.setblocking(False)
        await self._connect(*await asyncio.open_connection(sock=client))

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader: asyncio.StreamReader | None = None
        upstream_writer: asyncio.StreamWriter | None = None
        if not self.is_silent:
            try:
                upstream_reader, upstream_writer = await asyncio.open_connection(
                    HOST, self._upstream_port
                )
            except OSError:
                writer.transport.abort()
                return
        if self._listener is None:  # cut while it connected
            for end in (writer, upstream_writer):
                if end is not None:
                    end.transport.abort()
            return
        connection = Connection(writer, upstream_writer)
        self._connections.add(connection)
        downward = [] if upstream_reader is None else [connection.copy(upstream_reader, writer)]
        await asyncio.gather(connection.copy(reader, upstream_writer), *downward)
        connection.abort()
        self._connections.discard(connection)
