"""Whole answers in one write: uvicorn sends the head and the body of an answer apart.

A write is a system call that wakes the client: the second one took an eighth of a worker's time for
a small prediction, and clients woke twice.
"""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from starlette.types import Message, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

CLOSE = (b"connection", b"close")

Fields = Callable[[], list[tuple[bytes, bytes]]]
"""Says header fields at the time of an answer."""


class WholeSend:
    """The ``send`` of a request whose body is here. It can also send a whole answer at once."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def with_fields(self, fields: Fields) -> "WholeSend":
        """Return a ``send`` that adds header fields to the answer."""
        return WholeSendWithFields(self._cycle, fields)

    @property
    def is_head(self) -> bool:
        """Whether the answer has no body, whatever its length says."""
        return self._cycle.scope["method"] == "HEAD"

    def __call__(self, message: Message) -> Coroutine[Any, Any, None]:  # Any: as asyncio has it
        """Send a part of an answer."""
        return self._cycle.send(message)  # type: ignore[arg-type]  # uvicorn has its own types

    async def whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send an answer. ``headers`` are in lower case, with the length of the body."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        if not cycle.keep_alive and CLOSE not in headers:
            headers.append(CLOSE)
        elif cycle.keep_alive and CLOSE in headers:
            cycle.keep_alive = False
        answer = _head(status, headers) + body
        cycle.response_started = cycle.response_complete = True
        cycle.transport.write(answer)
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


class WholeSendWithFields(WholeSend):
    """A ``WholeSend`` that adds header fields, which are read when the answer is sent."""

    __slots__ = ("_fields",)

    def __init__(self, cycle: RequestResponseCycle, fields: Fields) -> None:
        super().__init__(cycle)
        self._fields = fields

    def __call__(self, message: Message) -> Coroutine[Any, Any, None]:  # Any: as asyncio has it
        """Send a part of an answer."""
        return super().__call__(_with_fields(message, self._fields))

    def whole(
        self, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> Coroutine[Any, Any, None]:  # Any: as asyncio has it
        """Send an answer."""
        headers += self._fields()
        return super().whole(status, headers, body)


def with_fields(send: Send, fields: Fields) -> Send:
    """Add header fields to an answer, which are read when it is sent."""
    if isinstance(send, WholeSend):
        return send.with_fields(fields)

    async def send_more(message: Message) -> None:
        await send(_with_fields(message, fields))

    return send_more


def _with_fields(message: Message, fields: Fields) -> Message:
    if message["type"] != "http.response.start":
        return message
    return {**message, "headers": [*message.get("headers", ()), *fields()]}


def _head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a status line and header fields; RuntimeError if a value would end its line."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    head = b"".join((STATUS_LINE[status], *lines, b"\r\n"))
    if head.count(b"\n") != len(lines) + 2 or head.count(b"\r") != len(lines) + 2:
        raise RuntimeError("a header's value has the end of a line in it")
    return head
