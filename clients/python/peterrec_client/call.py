"""One call to the server and the outcome of one attempt at it. No network access happens here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Generic, TypeVar

import httpx

from peterrec_client.errors import PeterRecError, out_of_time, refusal, unreachable

T = TypeVar("T")

MAX_TIMEOUT_MS = 600_000
"""Largest deadline, in milliseconds, that the server accepts."""

CONNECT_TIMEOUT_S = 3.0
"""Seconds to wait for a connection. It normally takes milliseconds; if it takes longer, another
attempt may reach another replica."""

REPEATED_STATUSES = frozenset({429, 502, 503})
"""Statuses of requests that were not run, or that reached no server that could run them."""


CHUNK_BYTES = 1 << 20
"""Bytes of a file that are read and sent at a time."""


def unheard(sent: int) -> None:
    """Ignore how many bytes were sent."""


class Repeat(StrEnum):
    """When a failed attempt may be followed by another."""

    ALWAYS = "always"
    IF_UNSENT = "if_unsent"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """What to send and how to read the answer.

    A ``Path`` as body is streamed from the file, and ``on_sent`` is called with the number of bytes
    sent so far. ``timeout_s`` covers all attempts; None means the client's own. ``read`` raises
    msgspec's errors if it does not understand an answer. Statuses in ``also_answers`` are answers
    rather than errors. With ``is_hedged`` a second attempt may be made beside a slow first one.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    body: bytes | Path = b""
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    repeat: Repeat = Repeat.ALWAYS
    timeout_s: float | None = None
    also_answers: frozenset[int] = frozenset()
    is_hedged: bool = False
    on_sent: Callable[[int], None] = unheard

    def headers_for(self, left_s: float) -> dict[str, str]:
        """Headers of an attempt. The server drops work that it can't do in the time left."""
        left_ms = min(max(int(left_s * 1000), 1), MAX_TIMEOUT_MS)
        content_type = "application/json" if isinstance(self.body, bytes) else OCTETS
        return {
            "Content-Type": content_type,
            "X-Request-Timeout-Ms": str(left_ms),
            **self.headers,
        }


OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, of any status."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def cause(self) -> None:
        """Always None, because the connection did not break."""
        return

    @property
    def is_repeatable(self) -> bool:
        """True if another attempt makes sense after this status."""
        return self.status in REPEATED_STATUSES

    def error(self) -> PeterRecError:
        """This answer as an error."""
        return refusal(self.status, self.body, is_retryable=self.is_repeatable)


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt that got no answer."""

    cause: httpx.RequestError
    url: str
    timeout_s: float

    @property
    def is_unsent(self) -> bool:
        """True if the server can't have seen the request."""
        return isinstance(self.cause, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)

    @property
    def is_repeatable(self) -> bool:
        """True if the network failed, and not the request itself or its time limit."""
        network = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
        return isinstance(self.cause, network)

    def error(self) -> PeterRecError:
        """The missing answer as an error."""
        if isinstance(self.cause, httpx.ConnectTimeout):
            return unreachable(self.url, self.cause)
        if isinstance(self.cause, httpx.TimeoutException):
            return out_of_time(self.timeout_s)
        return unreachable(self.url, self.cause)


Outcome = Reply | Lost


def timeouts(left_s: float) -> httpx.Timeout:
    """Limits of one attempt's steps when ``left_s`` seconds are left for it."""
    return httpx.Timeout(left_s, connect=min(left_s, CONNECT_TIMEOUT_S))
