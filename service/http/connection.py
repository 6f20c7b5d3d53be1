"""The HTTP connection of a request: its bounds, what has arrived, and when the client leaves."""

import asyncio
import time
import weakref
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

import httptools
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import (
    HeadTooLarge,
    MalformedRequest,
    RequestTimedOut,
    TooManyConnections,
    problem_of,
)
from peterrec.service.http.asgi import ClientLeft, encode_json, new_request_id, problem_headers
from peterrec.service.http.peers import Peers
from peterrec.service.http.refusal_log import RefusalLog
from peterrec.service.http.whole_answers import WholeSend

Result = TypeVar("Result")

SPARE_PATHS = frozenset({b"/livez", b"/readyz"})
"""Paths that are answered on connections for which there is no room otherwise."""

UNBOUNDED = 1 << 30
"""Connections of a server whose descriptors nobody counts: in tests of single connections."""


@dataclass(frozen=True, slots=True)
class EdgeBounds:
    """What one connection may cost, whoever opened it.

    ``head_bytes`` and ``head_fields`` bound the request line with the header fields, and with the
    trailer of a chunked body. A head has ``head_s`` seconds from the begin of the connection, or
    from its first byte if it is a later one. ``pipelined`` requests may wait for the answer of an
    earlier one. An answer is given up if the client takes less than ``stalled_bytes`` of it in
    ``stalled_s`` seconds. If an answer is sent before the whole body has arrived, at most
    ``late_bytes`` of the rest are read in at most ``late_s`` seconds, so that the client can read
    the answer before the connection ends.
    """

    head_bytes: int = 32 << 10
    head_fields: int = 100
    head_s: float = 10.0
    pipelined: int = 16
    stalled_bytes: int = 64 << 10
    stalled_s: float = 30.0
    late_bytes: int = 8 << 20
    late_s: float = 2.0


class Stage(Enum):
    """What the parser reads next: the first byte of a request, the rest of a head, or a body."""

    BETWEEN = auto()
    HEAD = auto()
    BODY = auto()


PROXIED = frozenset({b"forwarded", b"via", b"x-forwarded-for"})
"""Headers of requests that come through a proxy."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection with bounds, which the application finds in the state of its scope.

    With ASGI alone, a second task must wait for the disconnect while the first one works. This
    class cancels the work itself, which saves two tasks per request.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        peers: Peers | None = None,
        refusals: RefusalLog | None = None,
        bounds: EdgeBounds = EdgeBounds(),
    ) -> None:
        # A request holds its connection; a strong reference back would keep both alive.
        super().__init__(config, server_state, {"connection": weakref.ref(self)})
        self._bounds = bounds
        self._peers = Peers(UNBOUNDED, UNBOUNDED) if peers is None else peers
        self._refusals = refusals or RefusalLog()
        self._working: asyncio.Task[Any] | None = None  # Any: whatever the application returns
        self._running: RequestResponseCycle | None = None
        self._dropping: RequestResponseCycle | None = None  # is answered before its body is here
        self._has_ended = False
        self.is_ending = False  # no further request is read: what still arrives is dropped
        self._stage = Stage.BETWEEN
        self._has_advanced = False  # a head or a part of a body is among the data being parsed
        self._stuck_bytes = 0  # have arrived since
        self._may_be_too_large = False  # the head, by what has arrived of it and after it
        self._has_asked = False
        self._late_bytes = 0
        self._pause_s = 0.0
        self._tenant = ""  # of the last request whose caller is known
        self._has_several = False  # tenants
        self._address = ""
        self._is_spare = False  # there is room for health checks only
        self._excess: PeterRecError | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._late_timer: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, scope: Scope) -> "Connection":
        """Return the connection of a request."""
        connection = scope["state"]["connection"]()
        assert isinstance(connection, cls)
        return connection

    @property
    def has_whole_body(self) -> bool:
        """Whether the whole body of the current request is received."""
        return not self.cycle.more_body

    def connection_made(  # type: ignore[override]  # as in uvicorn: it has a socket
        self, transport: asyncio.Transport
    ) -> None:
        """Begin, or refuse a connection for which there is no room."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else "local"
        if self._peers.open(self._address, self):
            self._wait_for_head()
        elif self._peers.open_spare(self):
            self._is_spare = True
            self._wait_for_head()
        else:
            self._refuse(TooManyConnections())
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the work that the client was waiting for."""
        super().connection_lost(exc)
        self._has_ended = self.is_ending = True
        self._stop_head_timer()
        self._stop_stall_timer()
        self._stop_late_timer()
        self._peers.close(self._address, self)
        if self._working is not None:
            self._working.cancel()

    def close_unused(self) -> None:
        """Close the connection, which has no request, to make room for another one."""
        self._refusals.note("idle_connection_closed", self._address, "")
        self._peers.close(self._address, self)
        self.transport.abort()

    @property
    def is_resting(self) -> bool:
        """Whether no request is in progress."""
        return self._running is None or (self._running.response_complete and not self.pipeline)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, within the bounds."""
        if self.is_ending:
            self._drop(len(data))
            return
        self._unset_keepalive_if_required()
        limit = self._bounds.head_bytes
        while self._stage is not Stage.BODY and len(data) > limit:
            self._read(data[:limit])  # few enough fields for one step
            data = data[limit:]
            if self.is_ending:
                return
        self._read(data)

    def _read(self, data: bytes) -> None:
        limit, self._has_advanced = self._bounds.head_bytes, False
        self._may_be_too_large = self._stuck_bytes + len(data) >= limit
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:  # HTTP allows to ignore it
            self._has_advanced = True
            if rest := data[offer.args[0] :]:
                self._read(rest)
                return
        except httptools.HttpParserError:
            self._refuse(self._excess or _not_http())
            return
        self._stuck_bytes = 0 if self._has_advanced else self._stuck_bytes + len(data)
        if self._stuck_bytes > limit:
            self._refuse(self._too_large())
        elif self._stage is Stage.HEAD or (self._stage is Stage.BETWEEN and self._stuck_bytes):
            self._wait_for_head()

    def on_message_begin(self) -> None:
        """Begin a request, unless too many wait already for the answer of an earlier one."""
        if len(self.pipeline) >= self._bounds.pipelined:
            self._excess = MalformedRequest(
                f"{self._bounds.pipelined} requests wait on this connection for their answers.",
                hint="Read answers before you send further requests, or open more connections.",
            )
            raise self._excess
        super().on_message_begin()
        self.scope["state"]["began_at"] = time.monotonic()  # its deadline counts from here
        self._stage = Stage.HEAD

    def on_headers_complete(self) -> None:
        """Start the request."""
        self._stage = Stage.BODY
        self._has_advanced = True
        if self._head_timer is not None:
            self._stop_head_timer()
        if len(self.headers) > self._bounds.head_fields or (
            self._may_be_too_large and self._head_bytes > self._bounds.head_bytes
        ):
            self._excess = self._too_large()
            raise self._excess
        if self._is_spare and self.url.partition(b"?")[0] not in SPARE_PATHS:
            self._excess = TooManyConnections()
            raise self._excess
        if not self._has_asked:
            self._has_asked = True
            self._peers.hear(self._address, self)
        super().on_headers_complete()
        self.headers = []  # for the fields of a trailer, which nobody reads

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        self._has_advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body."""
        self._stage = Stage.BETWEEN
        self._has_advanced = True
        super().on_message_complete()
        if self._dropping is not None:
            self._dropping = None
            if self._late_timer is not None:
                self._stop_late_timer()
                self._begin_idling()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless the answer ends the connection."""
        if self.is_ending:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self._pause_s and not self.pipeline and not self.transport.is_closing():
            self.flow.pause_reading()
            self.loop.call_later(self._pause_s, self.flow.resume_reading)
        if self._dropping is not None:
            late_s = self._bounds.late_s + self._pause_s
            self._late_timer = self.loop.call_later(late_s, self.transport.abort)
        self._pause_s = 0.0

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, which has been idle for too long."""
        if self.is_resting:
            self._close()

    def pause_writing(self) -> None:
        """Hold the application up while the client does not take the answer; at last, give up."""
        super().pause_writing()
        self._time_writing()

    def resume_writing(self) -> None:
        """Continue the answer."""
        super().resume_writing()
        self._stop_stall_timer()

    async def while_it_lasts(self, work: Awaitable[Result]) -> Result:
        """Return the result of ``work``; cancel it and raise ClientLeft if the connection ends.

        The request's body must have been read.
        """
        if not self.pipeline:
            self.flow.resume_reading()  # paused after a large body; it would miss a disconnect
        self._working = asyncio.current_task()
        assert self._working is not None
        if self._has_ended:
            self._working.cancel()
        try:
            return await work
        except asyncio.CancelledError:
            if self._has_ended:
                raise ClientLeft from None
            raise
        finally:
            self._working = None

    def end_with_late_body(self) -> None:
        """Let the client read the answer, although its body has not arrived as a whole."""
        self.is_ending = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(self._bounds.late_s, self.transport.abort)

    def cut(self) -> None:
        """End the connection after what was sent, so that the client sees that more is missing."""
        self.is_ending = True
        self.transport.close()

    def note_tenant(self, tenant: str) -> None:
        """Note whose request this one is."""
        if tenant != self._tenant:
            self._has_several |= bool(self._tenant)
            self._tenant = tenant

    def drop_body(self, pause_s: float) -> None:
        """Let the connection outlast a refusal that is sent before the request's body is here.

        What arrives of the body is dropped. It must have come within ``late_s`` of the answer. A
        body of unknown or large size ends the connection, as does a client that waits to be asked
        for it. Nothing is read for ``pause_s`` seconds after the answer, unless the connection is a
        proxy's, which brings requests of others too.
        """
        cycle = self.cycle
        is_shared = self._has_several or any(name in PROXIED for name, _ in cycle.scope["headers"])
        self._pause_s = 0.0 if is_shared else pause_s
        if not cycle.more_body or cycle.waiting_for_100_continue or not cycle.keep_alive:
            return
        length = dict(cycle.scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and len(length) < 9 and int(length) <= self._bounds.late_bytes:
            cycle.transport = self.transport
            self._dropping = cycle

    def _begin_idling(self) -> None:
        """Let the connection end when no further request comes."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # Any: uvicorn has types of its own for ASGI applications
        self._running = cycle
        super()._start_asgi_task(cycle, partial(self._run, cycle, app))

    async def _run(
        self, cycle: RequestResponseCycle, app: Any, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if not cycle.more_body:
            await app(scope, receive, WholeSend(cycle))
            return
        cycle.transport = LateTransport(self, cycle)  # type: ignore[assignment]  # enough
        try:
            await app(scope, receive, partial(self._send_before_body, cycle, send))
        finally:
            cycle.transport = self.transport  # no circle of references is left

    async def _send_before_body(
        self, cycle: RequestResponseCycle, send: Send, message: Message
    ) -> None:
        """Send a part of an answer. One that begins before the body is here is mostly the last."""
        is_early = cycle.more_body and cycle is not self._dropping
        if is_early and message["type"] == "http.response.start":
            cycle.keep_alive = False
        await send(message)

    @property
    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _too_large(self) -> HeadTooLarge:
        return HeadTooLarge(self._bounds.head_bytes, self._bounds.head_fields)

    def _drop(self, size_bytes: int) -> None:
        self._late_bytes += size_bytes
        if self._late_bytes > self._bounds.late_bytes:
            self.transport.abort()

    def _wait_for_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._bounds.head_s, self._give_up_head)

    def _give_up_head(self) -> None:
        self._head_timer = None
        if self._stage is Stage.HEAD:
            self._refuse(RequestTimedOut("head", self._bounds.head_s))
        elif self._running is None or self._running.response_complete:
            self._close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: PeterRecError) -> None:
        """Answer what cannot be read with an error, and end the connection.

        While an earlier request is not answered, its answer is the last one.
        """
        request_id = new_request_id()
        self._refusals.note(error.code, self._address, request_id)
        self._stop_head_timer()
        self.is_ending = True
        running = self._running
        if running is not None and not running.response_complete:
            if running is not self.cycle or not running.more_body:
                running.keep_alive = False
                running.transport = LateTransport(self, running)  # type: ignore[assignment]  # enough
                return
            if running.response_started:
                self.transport.abort()
                return
            running.disconnected = True
            running.message_event.set()
        self.transport.write(_answer(error, request_id))
        self.end_with_late_body()

    def _close(self) -> None:
        """Close the connection, also if the client never reads the rest of the last answer."""
        if not self.transport.is_closing():
            self.transport.close()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self._bounds.late_s, self.transport.abort)

    def _time_writing(self) -> None:
        left_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(
            self._bounds.stalled_s, self._check_writing, left_bytes
        )

    def _check_writing(self, before_bytes: int) -> None:
        taken_bytes = before_bytes - self.transport.get_write_buffer_size()
        if taken_bytes < self._bounds.stalled_bytes:
            self._refusals.note("answer_not_taken", self._address, "")
            self.transport.abort()
        else:
            self._time_writing()

    def _stop_late_timer(self) -> None:
        if self._late_timer is not None:
            self._late_timer.cancel()
            self._late_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


class LateTransport:
    """What an answer is written to while its request's body has not arrived as a whole."""

    def __init__(self, connection: Connection, cycle: RequestResponseCycle) -> None:
        self._connection = connection
        self._cycle = cycle
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        """End the connection after the answer."""
        if self._cycle.more_body or self._connection.is_ending:
            self._connection.end_with_late_body()
        else:
            self._connection.transport.close()


def _not_http() -> MalformedRequest:
    return MalformedRequest(
        "these bytes are not an HTTP request.", hint="Send HTTP/1.1 without TLS to this port."
    )


def _answer(error: PeterRecError, request_id: str) -> bytes:
    """Return a whole answer as bytes, for a request that no application sees."""
    problem = problem_of(error, request_id)
    body = encode_json(problem)
    headers = [
        *problem_headers(problem),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    status = HTTPStatus(problem.status)
    lines = [f"HTTP/1.1 {status} {status.phrase}".encode(), *map(b": ".join, headers), b"", body]
    return b"\r\n".join(lines)
