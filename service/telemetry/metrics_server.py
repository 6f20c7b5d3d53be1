"""The port of the metrics: few connections at a time, and none that stays without a request.

The supervisor has the port. It must not run out of descriptors or threads, and whoever may reach
the port may open connections.
"""

import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hmac import compare_digest
from socketserver import ThreadingMixIn
from typing import Any  # WSGI's environment and its callables have no narrower types
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

MOST_CONNECTIONS = 32
"""Connections at a time. At the limit the oldest one makes room: a scrape takes milliseconds."""

PATIENCE_S = 10.0
"""Seconds that a connection may be silent."""

Peer = tuple[str, int]


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE_S

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128  # with the usual 5, connecting takes seconds when many do

    def __init__(self, *arguments: object) -> None:
        self._open: OrderedDict[socket.socket, None] = OrderedDict()
        self._lock = threading.Lock()
        super().__init__(*arguments)  # type: ignore[arg-type]  # as they are

    def process_request(self, request: object, client_address: object) -> None:
        """Answer a connection in a thread; end the oldest one if there are too many."""
        assert isinstance(request, socket.socket)
        with self._lock:
            oldest = next(iter(self._open)) if len(self._open) >= MOST_CONNECTIONS else None
            self._open[request] = None
        if oldest is not None:
            self._forget(oldest)
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: object) -> None:
        """Forget a connection that has ended."""
        assert isinstance(request, socket.socket)
        self._forget(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that left or was too slow."""

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            self._open.pop(request, None)


class _Server6(_Server):
    address_family = socket.AF_INET6


Answer = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""


def _for_bearers(answer: Answer, tokens: Sequence[str]) -> Answer:
    """Refuse whoever sends none of the tokens."""
    expected = [f"Bearer {token}".encode() for token in tokens]

    def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")
        matches = [compare_digest(given, each) for each in expected]
        if any(matches):
            return answer(environ, start)
        fields = [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")]
        start("401 Unauthorized", fields)
        return [b"the metrics need the token of PETERREC_METRICS_TOKEN\n"]

    return guarded


def _also_head(answer: Answer) -> Answer:
    """Answer HEAD as GET; the server leaves out the body."""

    def asked(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "HEAD":
            return answer(environ, start)
        answer({**environ, "REQUEST_METHOD": "GET"}, start)
        return []

    return asked


RECENT = "/recent-calls"
"""Path of what tasks were asked lately, which the workers read."""


def _with_recent(answer: Answer, recent: Callable[[], bytes]) -> Answer:
    """Answer one more path, with JSON."""

    def asked(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != RECENT:
            return answer(environ, start)
        start("200 OK", [("Content-Type", "application/json")])
        return [recent()]

    return asked


def start_metrics_server(
    port: int,
    host: str,
    registry: CollectorRegistry,
    tokens: Sequence[str] = (),
    recent: Callable[[], bytes] | None = None,
) -> tuple[WSGIServer, threading.Thread]:
    """Serve ``/metrics`` from a thread; return the server and its thread. Raises OSError.

    With tokens, only to those who send one of them. ``recent`` is what workers read beside it.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    kind = _Server6 if family == socket.AF_INET6 else _Server
    answer: Answer = make_wsgi_app(registry)
    if recent is not None:
        answer = _with_recent(answer, recent)
    answer = _also_head(answer)
    if tokens:
        answer = _for_bearers(answer, tokens)
    server = make_server(host, port, answer, kind, handler_class=_Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return server, thread
