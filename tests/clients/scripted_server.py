"""A small real HTTP server that answers from a script and records the requests."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Scripted:
    """One answer of the script."""

    status: int = 200
    body: bytes = b"[]"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HangUp:
    """Close the connection without an answer."""


@dataclass(frozen=True)
class Silence:
    """Keep the connection open without an answer until the server ends."""


Step = Scripted | HangUp | Silence


@dataclass(frozen=True)
class Asked:
    """A request that arrived, with the time of arrival on the test's clock."""

    method: str
    path: str
    headers: Message
    body: bytes
    at: float
    connection: object


class ScriptedServer:
    """Answers each request with the next step of the script; the last step repeats."""

    def __init__(self, port: int, clock: Callable[[], float]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.steps: list[Step] = [Scripted()]
        self.asked: list[Asked] = []
        self.clock = clock
        self.is_over = threading.Event()

    def take(self, asked: Asked) -> Step:
        """Record a request and return its answer."""
        self.asked.append(asked)
        return self.steps[min(len(self.asked), len(self.steps)) - 1]


@contextmanager
def scripted_server(clock: Callable[[], float]) -> Iterator[ScriptedServer]:
    """Run a server on a free port until the ``with`` block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline()
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked = Asked(
                self.command, self.path, self.headers, body, script.clock(), self.client_address
            )
            step = script.take(asked)
            if isinstance(step, Scripted):
                self._answer(step)
                return
            if isinstance(step, Silence):
                script.is_over.wait(30)
            self.close_connection = True

        def _answer(self, step: Scripted) -> None:
            self.send_response_only(step.status)
            for name, value in step.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(step.body)))
            self.end_headers()
            self.wfile.write(step.body)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.block_on_close = False
    script = ScriptedServer(http.server_port, clock)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield script
    finally:
        script.is_over.set()
        http.shutdown()
        http.server_close()
        thread.join()
