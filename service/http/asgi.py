"""Read requests and send answers over plain ASGI, without the layers of a framework."""

import asyncio
import itertools
import re
import secrets
from collections.abc import Coroutine, Iterable

import msgspec
from starlette.types import Receive, Scope, Send

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    MalformedRequest,
    Problem,
    problem_of,
    retry_headers,
)

Header = tuple[bytes, bytes]
Headers = list[Header]

MAX_TIMEOUT_MS = 600_000
"""Largest value of the header ``X-Request-Timeout-Ms``: ten minutes."""

BODY_TIMEOUT_S = 30.0
"""Seconds that a body may take: a client that stops sending must not hold a connection for ever."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")
_PROCESS = secrets.token_hex(6)
_counter = itertools.count(1)

encode_json = msgspec.json.Encoder().encode


class ClientLeft(Exception):  # not an error of the service: it only ends the request
    """The client closed the connection before its request was read or answered."""


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """The request headers that the routes read, as raw values; empty means absent."""

    request_id: str
    authorization: bytes = b""
    api_key: bytes = b""
    content_length: bytes = b""
    timeout_ms: bytes = b""

    @classmethod
    def read(cls, scope: Scope) -> "RequestHead":
        """Read the headers of an ASGI scope, in which names are in lower case."""
        get = dict(scope["headers"]).get
        given = get(b"x-request-id")
        return cls(
            given.decode("ascii")
            if given is not None and _SANE_ID.match(given)
            else f"{_PROCESS}-{next(_counter):x}",
            get(b"authorization", b""),
            get(b"x-api-key", b""),
            get(b"content-length", b""),
            get(b"x-request-timeout-ms", b""),
        )

    def timeout_s(self, default_ms: int) -> float:
        """Return the seconds that the request may take."""
        if not self.timeout_ms:
            return default_ms / 1000
        is_number = self.timeout_ms.isdigit() and len(self.timeout_ms) < 9
        if not is_number or not 1 <= int(self.timeout_ms) <= MAX_TIMEOUT_MS:
            raise MalformedRequest(
                f"X-Request-Timeout-Ms {_shown(self.timeout_ms)} is not a number of milliseconds "
                f"from 1 to {MAX_TIMEOUT_MS}.",
                hint="Leave it out for the server's own limit.",
            )
        return int(self.timeout_ms) / 1000


def _shown(value: bytes) -> str:
    """Return the beginning of a header's value for a message."""
    return repr(value[:20].decode("latin-1"))


def read_body(
    receive: Receive, content_length: bytes, limit_bytes: int, *, has_arrived: bool
) -> Coroutine[object, object, bytes]:
    """Read the whole body.

    Raises BodyTooLarge as soon as the size passes the limit, ClientLeft if the client disconnects
    and DeadlineExceeded after ``BODY_TIMEOUT_S``. ``has_arrived`` says that the whole body is
    received already, so that no timer is needed.
    """
    if content_length.isdigit() and int(content_length) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    return _read(receive, limit_bytes) if has_arrived else _read_in_time(receive, limit_bytes)


async def _read_in_time(receive: Receive, limit_bytes: int) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read(receive, limit_bytes)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"the body did not arrive within {BODY_TIMEOUT_S:g} s.", hint="Send it again."
        ) from error


async def _read(receive: Receive, limit_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def send_json(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Send a whole response."""
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_problem(send: Send, problem: Problem, more: Iterable[Header] = ()) -> None:
    """Send a refusal as problem+json."""
    headers: Headers = [
        (b"content-type", b"application/problem+json"),
        (b"x-request-id", problem.request_id.encode()),
        *retry_headers(problem.status),
        *more,
    ]
    if problem.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send_json(send, problem.status, encode_json(problem), headers)


async def send_error(send: Send, error: PeterRecError, request_id: str) -> None:
    """Send one of our errors as a response."""
    await send_problem(send, problem_of(error, request_id))
