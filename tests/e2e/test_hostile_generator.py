"""Three hundred hostile requests: no fault, bounded answers, short steps, and no memory left."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import KINDS, push
from tests.e2e.hostile import hostile_request
from tests.e2e.running import RunningServer, running_server
from tests.service.random_bundles import Workshop

REQUESTS = 300
GROWTH_BYTES = 60_000_000
LONGEST_STEP_S = 0.1
"""Far above the 20 ms that no step should take: machines on which tests run are slow and busy."""

MOST_ECHOED = 4096
"""Bytes of a refusal: it repeats a path, a name or an id of the caller's, each of which is cut."""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = tmp_path_factory.mktemp("steps") / "long"
    file.touch()
    return file


@pytest.fixture(scope="module")
def watched(
    workshop: Workshop, tmp_path_factory: pytest.TempPathFactory, steps: Path
) -> Iterator[RunningServer]:
    """A server with one worker, whose event loop notes its long steps."""
    with pytest.MonkeyPatch.context() as patch:
        folder = Path(__file__).parent / "watching"
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("LONG_STEPS", str(steps))
        with running_server(
            workshop.folder, tmp_path_factory.mktemp("watched"), workers=1, log_level="info"
        ) as server:
            with server.client() as client:
                for kind in KINDS:
                    push(client, kind, workshop.bundle(kind, seed=1))
            yield server


def send(server: RunningServer, request: bytes) -> bytes:
    """Send bytes, say that no more will come, and return what comes back."""
    found = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        with suppress(ConnectionResetError):
            while part := connection.recv(1 << 16):
                found += part
                if b"text/event-stream" in found[:2000]:
                    break  # which never ends
    return found


def problem_with(seed: int, answer: bytes) -> str:
    """Say what is wrong with an answer; empty if nothing is."""
    if not answer:
        return ""  # the request was not complete, or its client left
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    status, fields = int(head.split(b" ")[1]), head.lower()
    if b"x-request-id" not in fields:
        return f"{seed}: no request id: {head!r}"
    if b"evil.example" in fields:
        return f"{seed}: a foreign host is repeated: {head!r}"
    if status >= 500 and status not in {503, 504, 507}:
        return f"{seed}: {status} {body[:300]!r}"
    if status >= 400 and body:
        if b"problem+json" not in fields:
            return f"{seed}: {status} is no problem: {head!r}"
        if b"content-encoding" not in fields and len(body) > MOST_ECHOED:
            many = json.loads(body).get("errors", {})
            if len(many) < 2 or len(body) > MOST_ECHOED * len(many):
                return f"{seed}: {status} repeats too much: {len(body)} bytes"
    return ""


def long_steps(file: Path) -> list[float]:
    return [float(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hostile_requests_find_no_fault_and_leave_nothing(watched: RunningServer, steps: Path):
    worker = watched.child("worker")
    found: list[str] = []
    before = 0
    for seed in range(REQUESTS):
        noted = len(long_steps(steps))
        answer = send(watched, hostile_request(seed, watched.key))
        found.append(problem_with(seed, answer))
        longest = max(long_steps(steps)[noted:], default=0.0)
        if longest > LONGEST_STEP_S:
            found.append(f"{seed}: a step of {1000 * longest:.0f} ms")
        if seed == REQUESTS // 3:
            before = worker.memory_info().rss
    assert [each for each in found if each] == []
    assert worker.is_running()
    assert worker.memory_info().rss < before + GROWTH_BYTES
    with watched.client() as client:
        assert client.post("/tasks/tags/predict", json={"history": [1]}).status_code == 200
    for text in ("Traceback", "never retrieved", "request_failed"):
        assert text not in watched.log
