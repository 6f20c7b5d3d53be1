"""The listening end of a Unix socket, for one thread: messages from and to connected processes."""

import contextlib
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from peterrec.service.protocol.frames import LENGTH, FrameReader

Peer = int
"""A connection. Numbers are not used twice."""

Arrival = tuple[Peer, list[bytes]]
"""Messages that have come from a connection."""

READ_BYTES = 1 << 18
"""Bytes that one call reads from a connection."""

BACKLOG = 128


@dataclass(slots=True, eq=False)
class _Connection:
    peer: Peer
    socket: socket.socket
    reader: FrameReader = field(default_factory=FrameReader)
    unsent: deque[memoryview] = field(default_factory=deque)


class Listener:
    """Accepts the processes that connect to a Unix socket.

    Reading never waits longer than asked, and sending never: what a connection does not take at
    once is kept and sent by later polls. Only ``wake`` is for other threads.

    ``on_gone`` is called with each connection that ends, within ``poll``, ``send`` or ``close``.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # of a process that was killed
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen(BACKLOG)
        self._socket.setblocking(False)
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._connections: dict[Peer, _Connection] = {}
        self._accepted = 0
        self.on_gone: Callable[[Peer], object] = lambda peer: None

    def wake(self) -> None:
        """Let the poll that waits, or the next one, return at once. For any thread."""
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b"\0")

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Wait for messages or ``wake``; return what has arrived.

        Of a message that is still on its way there is an arrival without a message.
        """
        arrived: list[Arrival] = []
        for key, events in self._selector.select(timeout_s):
            connection: _Connection | None = key.data
            if connection is not None:
                if events & selectors.EVENT_WRITE:
                    self._send_unsent(connection)
                if events & selectors.EVENT_READ:
                    self._read(connection, arrived)
            elif key.fileobj is self._wake:
                self._wake.recv(4096)
            else:
                self._accept(arrived)
        return arrived

    def send(self, peer: Peer, message: bytes) -> None:
        """Send a message; does nothing if the connection has ended."""
        connection = self._connections.get(peer)
        if connection is None:
            return
        head = LENGTH.pack(len(message))
        if connection.unsent:
            connection.unsent += (memoryview(head), memoryview(message))
            return
        try:
            sent = connection.socket.sendmsg((head, message))
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        if sent < len(head) + len(message):
            connection.unsent.append(memoryview(head + message)[sent:])
            self._register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def close(self, linger_s: float = 0.0) -> None:
        """Send what is kept for as long as ``linger_s``, and close all connections."""
        until = time.monotonic() + linger_s
        while (left := until - time.monotonic()) > 0 and any(
            connection.unsent for connection in self._connections.values()
        ):
            self.poll(left)
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._selector.close()
        for each in (self._socket, self._wake, self._waker):
            each.close()

    def _accept(self, arrived: list[Arrival]) -> None:
        """Accept all that ask, and read what they have sent already."""
        with contextlib.suppress(OSError):  # none asks any more, or no descriptor is left
            while True:
                accepted, _ = self._socket.accept()
                accepted.setblocking(False)
                self._accepted += 1
                connection = _Connection(self._accepted, accepted)
                self._connections[connection.peer] = connection
                self._selector.register(accepted, selectors.EVENT_READ, connection)
                self._read(connection, arrived)

    def _read(self, connection: _Connection, arrived: list[Arrival]) -> None:
        try:
            data = connection.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            arrived.append((connection.peer, connection.reader.feed(data)))
        else:
            self._drop(connection)

    def _send_unsent(self, connection: _Connection) -> None:
        unsent = connection.unsent
        try:
            while unsent:
                sent = connection.socket.send(unsent[0])
                if sent < len(unsent[0]):
                    unsent[0] = unsent[0][sent:]
                    return
                unsent.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        self._register(connection, selectors.EVENT_READ)

    def _register(self, connection: _Connection, events: int) -> None:
        self._selector.modify(connection.socket, events, connection)

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.peer, None) is not None:
            self._selector.unregister(connection.socket)
            connection.socket.close()
            self.on_gone(connection.peer)
