"""A closed-loop HTTP/1.1 load generator: each client sends its next request after the answer.

Requests are rendered beforehand and connections are kept alive, so the generator takes little time
from a server on the same machine. ``measure`` runs it in a separate process.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Self, cast

import msgspec
import numpy as np
import uvloop

PATIENCE_S = 30

REFUSALS = frozenset({429, 503})
"""Statuses after which a client tries again."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Where to send what. ``bodies`` are (path, JSON text) pairs, which are sent in rotation.

    A refused client tries again at once, or with ``honours_retry_after`` when the server says.
    Each client waits for ``pause_s`` between requests. ``headers`` are further fields of the head.
    """

    host: str
    port: int
    clients: int
    seconds: float
    warm_up_s: float
    bodies: list[tuple[str, str]]
    honours_retry_after: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Figures of one run: latencies in milliseconds; ``failed`` counts answers other than 200.

    ``refused`` of them were 429 or 503, with latencies of their own. ``answered`` counts all
    answers with 200, also those before and after the time that is measured.
    """

    requests: int
    failed: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    answered: int = 0
    refused: int = 0
    refused_p50_ms: float = 0.0
    refused_p99_ms: float = 0.0

    @property
    def requests_per_s(self) -> float:
        """Completed requests per second."""
        return self.requests / self.seconds

    @property
    def answered_per_s(self) -> float:
        """Requests per second that were answered with 200."""
        return (self.requests - self.failed) / self.seconds

    @classmethod
    def of(
        cls,
        latencies_s: Sequence[float],
        failed: int,
        seconds: float,
        answered: int = 0,
        refusals_s: Sequence[float] = (),
    ) -> Self:
        """Compute the result from the latencies of all answers of one run, and of refusals."""
        p50, p90, p99 = np.percentile(np.array(latencies_s) * 1000, [50, 90, 99])
        of_refusals = np.percentile(np.array(refusals_s) * 1000, [50, 99]) if refusals_s else (0, 0)
        return cls(
            len(latencies_s),
            failed,
            seconds,
            float(p50),
            float(p90),
            float(p99),
            answered,
            len(refusals_s),
            *map(float, of_refusals),
        )


def measure(plan: LoadPlan, cpus: str | None = None) -> LoadResult:
    """Run the plan in a separate process, pinned to ``cpus`` if given."""
    with NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(asdict(plan), file)
        file.flush()
        pinned = ["taskset", "-c", cpus] if cpus else []
        command = [*pinned, sys.executable, "-m", "bench.load", file.name]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return LoadResult(**json.loads(out))


class Client(asyncio.Protocol):
    """One connection. An answer counts when its last byte has arrived."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class
        self._send()

    def data_received(self, data: bytes) -> None:
        """Collect an answer. When it is complete, record its latency and send the next request."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _content_length(head):
            return
        self._received = b""
        status, wait_s = int(head[9:12]), 0.0
        self._run.note(time.perf_counter() - self._sent_at, status)
        if status in REFUSALS and self._run.honours_retry_after:
            wait_s = _header(head, b"retry-after:")
        if self._run.is_over(wait_s):
            self._transport.close()
        elif wait_s := wait_s or self._run.pause_s:
            asyncio.get_running_loop().call_later(wait_s, self._send)
        else:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        """Report the end of this connection; the run ends with its last connection."""
        self._run.leave(error)

    def _send(self) -> None:
        if self._transport.is_closing():
            return
        self._sent_at = time.perf_counter()
        self._transport.write(self._run.next_request())


class Run:
    """The state that the clients of one run share."""

    def __init__(self, plan: LoadPlan) -> None:
        self._requests = [_render(plan, path, body) for path, body in plan.bodies]
        self.pause_s = plan.pause_s
        self._next = 0
        self._left = plan.clients
        self.honours_retry_after = plan.honours_retry_after
        self.latencies: list[float] = []
        self.refusals: list[float] = []
        self.failed = self.answered = 0
        self.done = asyncio.get_running_loop().create_future()
        self._counts_from = time.perf_counter() + plan.warm_up_s
        self._ends_at = self._counts_from + plan.seconds

    def next_request(self) -> bytes:
        """Return the next rendered request, starting again after the last one."""
        self._next = (self._next + 1) % len(self._requests)
        return self._requests[self._next]

    def note(self, latency_s: float, status: int) -> None:
        """Count an answer, unless the run is still warming up or has ended."""
        self.answered += status == 200
        if self._counts_from <= time.perf_counter() <= self._ends_at:
            self.latencies.append(latency_s)
            self.failed += status != 200
            if status in REFUSALS:
                self.refusals.append(latency_s)

    def is_over(self, wait_s: float = 0.0) -> bool:
        """True when clients must send no further requests, or none after a wait."""
        return time.perf_counter() + wait_s > self._ends_at

    def leave(self, error: Exception | None) -> None:
        """Count a closed connection; an error ends the run."""
        self._left -= 1
        if error is not None and not self.done.done():
            self.done.set_exception(error)
        elif self._left == 0 and not self.done.done():
            self.done.set_result(None)


async def generate(plan: LoadPlan) -> LoadResult:
    """Run the plan in this process."""
    run = Run(plan)
    loop = asyncio.get_running_loop()
    for _ in range(plan.clients):
        await loop.create_connection(lambda: Client(run), plan.host, plan.port)
    await asyncio.wait_for(run.done, plan.warm_up_s + plan.seconds + PATIENCE_S)
    return LoadResult.of(run.latencies, run.failed, plan.seconds, run.answered, run.refusals)


def _render(plan: LoadPlan, path: str, body: str) -> bytes:
    own = "".join(f"{name}: {value}\r\n" for name, value in plan.headers.items())
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\n{own}"
        f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n\r\n"
    )
    return head.encode() + body.encode()


def _content_length(head: bytes) -> int:
    return _header(head, b"content-length:")


def _header(head: bytes, name: bytes) -> int:
    lowered = head.lower()
    at = lowered.find(name)
    return int(lowered[at + len(name) :].split(b"\r\n", 1)[0]) if at >= 0 else 0


if __name__ == "__main__":
    plan = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=LoadPlan)
    print(json.dumps(asdict(uvloop.run(generate(plan)))))
