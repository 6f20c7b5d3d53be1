"""HTTP/1.1 exchanges whose answer is read while their body is still being sent.

httpx sends a whole body before it reads anything, which a stream of answers cannot wait for. These
transports give httpx such exchanges: each has a connection of its own, a part of the body is taken
only when there is room to send it, and nothing is received before the answer is asked for.
"""

import asyncio
import selectors
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import h11
import httpx

RECEIVED_BYTES = 1 << 16
"""Bytes that are received at a time, and that wait for the caller."""


class _Head(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]


class _Wire:
    """One exchange as bytes, in both directions at once. No network access happens here."""

    def __init__(self, request: httpx.Request) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._request = request

    def begin(self) -> bytes:
        """The head of the request."""
        request = self._request
        return self._sent(
            h11.Request(
                method=request.method, target=request.url.raw_path, headers=request.headers.raw
            )
        )

    def part(self, data: bytes) -> bytes:
        """A part of the body."""
        return self._sent(h11.Data(data=data))

    def end(self) -> bytes:
        """The end of the body."""
        return self._sent(h11.EndOfMessage())

    def receive(self, data: bytes) -> None:
        """Take what has come; nothing means that the connection has ended."""
        self._http.receive_data(data)

    def next(self) -> _Head | bytes | None:
        """The head of the answer, a part of its body, b"" at its end; None: more must come."""
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Response):
                return _Head(event.status_code, event.headers.raw_items())
            if isinstance(event, h11.Data):
                if event.data:
                    return bytes(event.data)
            elif isinstance(event, h11.InformationalResponse):
                continue
            elif event is h11.NEED_DATA:
                return None
            else:
                return b""

    def _sent(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b""


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what h11 and the network raise as httpx would."""
    try:
        yield
    except h11.RemoteProtocolError as error:
        raise httpx.RemoteProtocolError(str(error)) from error
    except TimeoutError as error:
        raise httpx.ReadTimeout(str(error)) from error
    except OSError as error:
        raise httpx.ReadError(str(error)) from error


@contextmanager
def _connecting() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise httpx.ConnectTimeout(str(error)) from error
    except OSError as error:
        raise httpx.ConnectError(str(error)) from error


def _address(url: httpx.URL) -> tuple[str, int]:
    return url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)


class DuplexTransport(httpx.BaseTransport):
    """Exchanges in both directions at once, in the caller's thread alone."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request, as far as there is room, until the head of its answer has come."""
        times = request.extensions["timeout"]
        with _connecting():
            connection = socket.create_connection(_address(request.url), times["connect"])
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if request.url.scheme == "https":
                connection = self._tls.wrap_socket(connection, server_hostname=request.url.host)
        exchange = _Exchange(connection, request, times["read"])
        try:
            head = exchange.head()
        except BaseException:
            exchange.close()
            raise
        return httpx.Response(head.status, headers=head.headers, stream=exchange)


_WAITING = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _Exchange(httpx.SyncByteStream):
    """One exchange; iterating gives the body of the answer."""

    def __init__(
        self, connection: socket.socket, request: httpx.Request, patience_s: float
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._patience_s = patience_s
        self._wire = _Wire(request)
        self._unsent = memoryview(self._wire.begin())
        assert isinstance(request.stream, httpx.SyncByteStream)
        self._body: Iterator[bytes] | None = iter(request.stream)

    def head(self) -> _Head:
        """The head of the answer."""
        found = self._next()
        assert isinstance(found, _Head)
        return found

    def __iter__(self) -> Iterator[bytes]:
        while part := self._next():
            assert isinstance(part, bytes)
            yield part

    def close(self) -> None:
        """Close the connection, also in the middle of the exchange."""
        self._selector.close()
        self._connection.close()

    def _next(self) -> _Head | bytes:
        while True:
            with _translated():
                found = self._wire.next()
                if found is not None:
                    return found
                if self._has_received():
                    continue
            if not self._unsent:
                self._take()  # the caller's errors stay what they are
            with _translated():
                if not (self._unsent and self._has_sent()):
                    self._wait()

    def _wait(self) -> None:
        """Wait until something can be received or sent."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._connection, events)
        if not self._selector.select(self._patience_s):
            raise TimeoutError("nothing could be sent or received")

    def _take(self) -> None:
        """Take a part of the body that is to be sent."""
        if self._body is None:
            return
        part = next(self._body, None)
        if part is None:
            self._body = None
        self._unsent = memoryview(self._wire.end() if part is None else self._wire.part(part))

    def _has_received(self) -> bool:
        try:
            data = self._connection.recv(RECEIVED_BYTES)
        except _WAITING:
            return False
        self._wire.receive(data)
        return True

    def _has_sent(self) -> bool:
        try:
            self._unsent = self._unsent[self._connection.send(self._unsent) :]
        except _WAITING:
            return False
        except OSError:  # the answer may say why no more is read
            self._unsent, self._body = memoryview(b""), None
        return True


class AsyncDuplexTransport(httpx.AsyncBaseTransport):
    """Exchanges in both directions at once on the event loop."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Begin to send the request, and wait for the head of its answer."""
        times = request.extensions["timeout"]
        host, port = _address(request.url)
        tls = self._tls if request.url.scheme == "https" else None
        with _connecting():
            async with asyncio.timeout(times["connect"]):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=tls, limit=RECEIVED_BYTES
                )
        exchange = _AsyncExchange(reader, writer, request, times["read"])
        try:
            head = await exchange.head()
        except BaseException:
            await exchange.aclose()
            raise
        return httpx.Response(head.status, headers=head.headers, stream=exchange)


class _AsyncExchange(httpx.AsyncByteStream):
    """One exchange; iterating gives the body of the answer."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: httpx.Request,
        patience_s: float,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._patience_s = patience_s
        self._wire = _Wire(request)
        self._failure: BaseException | None = None
        assert isinstance(request.stream, httpx.AsyncByteStream)
        self._sending = asyncio.create_task(self._send(request.stream))

    async def head(self) -> _Head:
        """The head of the answer."""
        found = await self._next()
        assert isinstance(found, _Head)
        return found

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while part := await self._next():
            assert isinstance(part, bytes)
            yield part

    async def aclose(self) -> None:
        """Close the connection, also in the middle of the exchange."""
        self._sending.cancel()
        await asyncio.gather(self._sending, return_exceptions=True)
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _send(self, body: httpx.AsyncByteStream) -> None:
        try:
            self._writer.write(self._wire.begin())
            async for part in body:
                self._writer.write(self._wire.part(part))
                await self._writer.drain()
                await asyncio.sleep(0)  # a fast source must not keep the event loop
            self._writer.write(self._wire.end())
            await self._writer.drain()
        except OSError:
            pass  # the answer may say why no more is read
        except Exception as error:  # the caller's own, which goes back to the caller
            self._failure = error
            self._writer.transport.abort()

    async def _next(self) -> _Head | bytes:
        while True:
            with _translated():
                found = self._wire.next()
                if found is not None:
                    return found
                async with asyncio.timeout(self._patience_s):
                    data = await self._reader.read(RECEIVED_BYTES)
            if self._failure is not None:
                raise self._failure
            self._wire.receive(data)
