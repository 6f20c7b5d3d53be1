"""What the application puts around FastAPI's own ``receive`` and ``send``."""

import asyncio
import time

from starlette.types import Message, Receive, Send

from peterrec.service.errors import RequestTimedOut
from peterrec.service.http.asgi import Header, Headers, RequestHead
from peterrec.service.http.encodings import encode_body

UPLOAD_PAUSE_S = 10.0
"""Seconds without a byte after which an upload is given up."""

UPLOAD_GRACE_S = 30.0
UPLOAD_BYTES_PER_S = 64 << 10
"""After the grace, an upload must have been at least this fast on average: a slow office line."""


def with_header(send: Send, header: Header) -> Send:
    """Add a header to the answer, unless it has it."""

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Headers = [*message.get("headers", [])]
            if not any(name == header[0] for name, _ in headers):
                headers.append(header)
            message = {**message, "headers": headers}
        await send(message)

    return send_more


def noting_status(send: Send, statuses: list[int]) -> Send:
    """Append the status of the answer to a list."""

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        await send(message)

    return send_more


def replaying(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read already, and then what the connection says."""
    is_given = False

    async def receive_more() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_more


def in_pace(receive: Receive) -> Receive:
    """Give the parts of an upload; raise RequestTimedOut if they come too slowly."""
    began_at = time.monotonic()
    size_bytes, has_more = 0, True

    async def receive_more() -> Message:
        nonlocal size_bytes, has_more
        if not has_more:
            return await receive()
        allowed_s = UPLOAD_GRACE_S + size_bytes / UPLOAD_BYTES_PER_S
        left_s = began_at + allowed_s - time.monotonic()
        try:
            async with asyncio.timeout(min(UPLOAD_PAUSE_S, left_s)):
                message = await receive()
        except TimeoutError as error:
            raise RequestTimedOut("body", min(UPLOAD_PAUSE_S, allowed_s)) from error
        size_bytes += len(message.get("body", b""))
        has_more = message.get("more_body", False)
        return message

    return receive_more


class FinishingSend:
    """Compresses whole answers for clients that ask for it, and answers HEAD without a body."""

    def __init__(self, head: RequestHead, send: Send, *, is_head: bool) -> None:
        self._accept_encoding = b"" if is_head else head.accept_encoding
        self._send = send
        self._is_head = is_head
        self._start: Message = {}
        self._is_done = False

    async def __call__(self, message: Message) -> None:
        """Send a part of the answer. Its begin waits for the first part of the body."""
        if self._is_done:
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start:
            message = await self._begin(message)
        await self._send(message)

    async def _begin(self, message: Message) -> Message:
        start, self._start = self._start, {}
        if self._is_head:
            self._is_done = True
            message = {"type": "http.response.body", "body": b""}
        elif self._accept_encoding and not message.get("more_body", False) and not _is_coded(start):
            coding, body = await encode_body(self._accept_encoding, message.get("body", b""))
            if coding:
                start = {**start, "headers": _encoded(start["headers"], coding, len(body))}
                message = {**message, "body": body}
        await self._send(start)
        return message


def _is_coded(start: Message) -> bool:
    """Whether an answer has its coding already, as files have that are kept compressed."""
    return any(name == b"content-encoding" for name, _ in start.get("headers", ()))


def _encoded(headers: Headers, coding: str, size_bytes: int) -> Headers:
    """Return the headers of an answer in a coding."""
    return [
        *(header for header in headers if header[0] != b"content-length"),
        (b"content-length", b"%d" % size_bytes),
        (b"content-encoding", coding.encode()),
        (b"vary", b"accept-encoding"),
    ]
