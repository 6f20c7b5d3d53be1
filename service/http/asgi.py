"""Read requests and send answers over plain ASGI, without the layers of a framework."""

import asyncio
import itertools
import re
import secrets
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import (
    RETRY_AFTER_S,
    BodyTooLarge,
    EncodingUnsupported,
    MalformedRequest,
    Problem,
    RateExceeded,
    RequestTimedOut,
    cut,
    plain_problem,
    problem_of,
    retry_after_s,
    retry_headers,
)
from peterrec.service.http.encodings import ACCEPTED, decode_body, encode_body, find_decoder
from peterrec.service.http.whole_answers import WholeSend
from peterrec.service.predict.pace import Pace
from peterrec.service.protocol.sender import INTERACTIVE, PRIORITIES

Header = tuple[bytes, bytes]
Headers = list[Header]

SHOWN_PATH = 200
"""Characters of a path that an answer repeats."""

MAX_TIMEOUT_MS = 600_000
"""Largest value of the header ``X-Request-Timeout-Ms``: ten minutes."""

_BEARER = re.compile(rb"bearer +[^ ]", re.IGNORECASE)
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")
_PROCESS = secrets.token_hex(6)
_counter = itertools.count(1)

PROBLEM_JSON = b"application/problem+json"

encode_json = msgspec.json.Encoder().encode


def new_request_id() -> str:
    """Return an id for a request that brings none."""
    return f"{_PROCESS}-{next(_counter):x}"


class ClientLeft(Exception):  # not an error of the service: it only ends the request
    """The client closed the connection before its request was read or answered."""


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """The request headers that the routes read, as raw values; empty means absent."""

    request_id: str
    authorization: bytes = b""
    api_key: bytes = b""
    content_length: bytes = b""
    timeout_ms: bytes = b""
    content_encoding: bytes = b""
    accept_encoding: bytes = b""
    transfer_encoding: bytes = b""
    content_type: bytes = b""
    accept: bytes = b""
    priority: bytes = b""
    traceparent: bytes = b""
    server_timing: bytes = b""

    @classmethod
    def read(cls, scope: Scope) -> "RequestHead":
        """Read the headers of an ASGI scope, in which names are in lower case."""
        headers = scope["headers"]
        found = dict(headers)
        get = (found if len(found) == len(headers) else _joined(headers)).get
        given = get(b"x-request-id")
        authorization, api_key = get(b"authorization"), get(b"x-api-key", b"")
        if authorization is not None and api_key and not _BEARER.match(authorization):
            authorization = b"Bearer -" + authorization  # whatever it is, it is another key
        return cls(
            given.decode("ascii")
            if given is not None and _SANE_ID.match(given)
            else new_request_id(),
            authorization or b"",
            api_key,
            get(b"content-length", b""),
            get(b"x-request-timeout-ms", b""),
            get(b"content-encoding", b""),
            get(b"accept-encoding", b""),
            get(b"transfer-encoding", b""),
            get(b"content-type", b""),
            get(b"accept", b""),
            get(b"x-priority", b""),
            get(b"traceparent", b""),
            get(b"x-server-timing", b""),
        )

    @property
    def has_body(self) -> bool:
        """Whether the request announces a body."""
        return bool(self.transfer_encoding) or self.content_length.strip(b"0") != b""

    @property
    def size_bytes(self) -> int:
        """The size of the body, as far as it is announced."""
        is_number = self.content_length.isdigit() and len(self.content_length) < 9
        return int(self.content_length) if is_number else 0

    def place_of_priority(self) -> int:
        """Return the priority of a prediction: a place in ``PRIORITIES``."""
        if not self.priority:
            return INTERACTIVE
        for place, name in enumerate(PRIORITIES):
            if self.priority == name.encode():
                return place
        raise MalformedRequest(
            f"X-Priority {_shown(self.priority)} is neither {' nor '.join(PRIORITIES)}.",
            hint="Leave it out for a call that somebody waits for.",
        )

    def timeout_s(self, default_ms: int, limit_ms: int = MAX_TIMEOUT_MS) -> float:
        """Return the seconds that the request may take: what it asks for, up to a limit."""
        if not self.timeout_ms:
            return default_ms / 1000
        is_number = self.timeout_ms.isdigit() and len(self.timeout_ms) < 9
        if not is_number or not 1 <= int(self.timeout_ms) <= MAX_TIMEOUT_MS:
            raise MalformedRequest(
                f"X-Request-Timeout-Ms {_shown(self.timeout_ms)} is not a number of milliseconds "
                f"from 1 to {MAX_TIMEOUT_MS}.",
                hint="Leave it out for the server's own limit.",
            )
        return min(int(self.timeout_ms), limit_ms) / 1000


def _joined(headers: Sequence[Header]) -> dict[bytes, bytes]:
    """Join the values of fields that occur several times (RFC 9110, section 5.3).

    So two keys that differ are no key, in whatever order they come.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if found.setdefault(name, value) != value:
            found[name] += b", " + value
    return found


def _shown(value: bytes) -> str:
    """Return the beginning of a header's value for a message."""
    return repr(value[:20].decode("latin-1"))


def read_body(
    receive: Receive, head: RequestHead, limit_bytes: int, timeout_s: float, *, has_arrived: bool
) -> Coroutine[object, object, bytes]:
    """Read the whole body, and decode it if it is compressed.

    Raises BodyTooLarge as soon as the size passes the limit, ClientLeft if the client disconnects
    and RequestTimedOut after ``timeout_s``. ``has_arrived`` says that the whole body is received
    already, so that no timer is needed.
    """
    length = head.content_length
    if length.isdigit() and (len(length) > 18 or int(length) > limit_bytes):
        raise BodyTooLarge(limit_bytes)
    if head.content_encoding:
        return _read_encoded(receive, head.content_encoding, limit_bytes, timeout_s)
    return _read(receive, limit_bytes) if has_arrived else _in_time(receive, limit_bytes, timeout_s)


async def _read_encoded(
    receive: Receive, content_encoding: bytes, limit_bytes: int, timeout_s: float
) -> bytes:
    decoder = find_decoder(content_encoding)
    body = await _in_time(receive, limit_bytes, timeout_s)
    return body if decoder is None else await decode_body(decoder, body, limit_bytes)


async def _in_time(receive: Receive, limit_bytes: int, timeout_s: float) -> bytes:
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(receive, limit_bytes)
    except TimeoutError as error:
        raise RequestTimedOut("body", timeout_s) from error


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


async def encode_each(
    parts: Iterable[object], encode: Callable[[object], bytes] = encode_json
) -> list[Any]:
    """Encode the parts of a large answer in short steps. They stand for themselves in the whole."""
    # Any: a part that is encoded already takes the place of the part itself
    pace = Pace()
    encoded: list[Any] = []
    for part in parts:
        encoded.append(msgspec.Raw(encode(part)))
        if pace.is_due:
            await pace.rest()
    return encoded


async def send_json(
    send: Send, status: int, body: bytes, headers: Headers, accept_encoding: bytes = b""
) -> None:
    """Send a whole response, compressed if the client asks for that and it is large."""
    if accept_encoding:
        coding, body = await encode_body(accept_encoding, body)
        if coding:
            headers += [(b"content-encoding", coding.encode()), (b"vary", b"accept-encoding")]
    headers.append((b"content-length", b"%d" % len(body)))
    if isinstance(send, WholeSend) and not send.is_head:
        await send.whole(status, headers, body)
        return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_methods(send: Send, methods: Sequence[str], *more: Header) -> None:
    """Answer OPTIONS: the methods of a path."""
    headers: Headers = [(b"allow", ", ".join(methods).encode()), *more]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def send_no_method(send: Send, scope: Scope, methods: Sequence[str], request_id: str) -> None:
    """Refuse a method that a path does not have."""
    names = ", ".join(methods)
    detail = f"{scope['method']} {cut(scope['path'], SHOWN_PATH)}: only {names} are allowed."
    problem = plain_problem(405, detail, request_id)
    await send_problem(send, problem, [(b"allow", names.encode())])


async def send_problem(
    send: Send,
    problem: Problem,
    more: Iterable[Header] = (),
    retry_after_s: int = RETRY_AFTER_S,
) -> None:
    """Send a refusal as problem+json."""
    headers = [*problem_headers(problem, retry_after_s), *more]
    await send_json(send, problem.status, encode_json(problem), headers)


def problem_headers(problem: Problem, retry_after_s: int = RETRY_AFTER_S) -> Headers:
    """Return the headers of a refusal; the first is its type."""
    headers: Headers = [
        (b"content-type", PROBLEM_JSON),
        (b"x-request-id", problem.request_id.encode()),
        *retry_headers(problem.status, retry_after_s),
    ]
    if problem.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


async def send_error(
    send: Send,
    error: PeterRecError,
    request_id: str,
    encode: Callable[[object], bytes] = encode_json,
    content_type: bytes = PROBLEM_JSON,
) -> None:
    """Send one of our errors as a response, in a format that the client reads."""
    problem = problem_of(error, request_id)
    fields = [*problem_headers(problem, retry_after_s(error))[1:], *error_headers(error)]
    headers: Headers = [(b"content-type", content_type), *fields]
    await send_json(send, problem.status, encode(problem), headers)


def error_headers(error: PeterRecError) -> Headers:
    """Return the headers that belong to one error alone."""
    if isinstance(error, RateExceeded):
        return error.headers
    is_coding = isinstance(error, EncodingUnsupported)
    return [(b"accept-encoding", ACCEPTED.encode())] if is_coding else []
