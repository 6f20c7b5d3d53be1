"""Requests that nobody sends by mistake, over raw sockets: bounded, answered, and without a key."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.e2e.running import RunningServer
from tests.waiting import eventually

MEGABYTE = b"x" * 1_000_000
GROWTH_BYTES = 40_000_000
"""How much a worker's memory may grow under hundreds of megabytes of attack."""

HEAD = b"%s HTTP/1.1\r\nHost: here\r\n"


@contextmanager
def connected(server: RunningServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        yield connection


def flood(connection: socket.socket, part: bytes, times: int) -> None:
    """Send a part many times, or until the server has had enough."""
    try:
        for _ in range(times):
            connection.sendall(part)
    except (BrokenPipeError, ConnectionResetError):
        pass


def answer_of(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """Read until the server ends the connection; return the status and the problem."""
    data = b""
    try:
        while part := connection.recv(1 << 20):
            data += part
    except ConnectionResetError:
        pass
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, data[:500]
    return int(head.split(b" ")[1]), json.loads(body)


def workers_memory(server: RunningServer) -> int:
    workers = [each for each in server.children() if "worker" in " ".join(each.cmdline())]
    return max(each.memory_info().rss for each in workers)


ENDLESS_HEADS = {
    "a request line": (b"GET /", MEGABYTE),
    "a field": (b"GET /tasks HTTP/1.1\r\nA: ", MEGABYTE),
    "fields": (b"GET /tasks HTTP/1.1\r\n", b"A: b\r\n" * 10_000),
}


@pytest.mark.parametrize("name", ENDLESS_HEADS)
def test_a_head_without_an_end_is_431_and_costs_no_memory(server: RunningServer, name: str):
    before = workers_memory(server)
    first, part = ENDLESS_HEADS[name]
    with connected(server) as connection:
        connection.sendall(first)
        flood(connection, part, 100)
        status, problem = answer_of(connection)
    assert (status, problem["code"]) == (431, "head_too_large")
    assert workers_memory(server) < before + GROWTH_BYTES


PATHS = [
    b"PUT /tasks/films",
    b"POST /keys",
    b"PUT /tasks/films/aliases/prod",
    b"PUT /tasks/films/traffic",
    b"POST /tasks/films/versions",
    b"POST /tasks/films/predict",
    b"POST /users/predict",
    b"POST /nowhere",
]


@pytest.mark.parametrize("path", PATHS)
def test_without_a_key_nothing_of_a_body_is_read(server: RunningServer, path: bytes):
    before = workers_memory(server)
    with connected(server) as connection:
        connection.sendall(HEAD % path + b"Content-Length: 600000000\r\n\r\n")
        flood(connection, MEGABYTE, 100)
        status, problem = answer_of(connection)
    assert (status, problem["code"]) == (401, "unauthenticated")
    assert workers_memory(server) < before + GROWTH_BYTES


@pytest.mark.parametrize("path", [path for path in PATHS if b"versions" not in path])
@pytest.mark.parametrize("has_length", [True, False])
def test_with_a_key_a_body_is_bounded_by_its_route(
    server: RunningServer, path: bytes, has_length: bool
):
    before = workers_memory(server)
    form = b"Content-Length: 600000000\r\n" if has_length else b"Transfer-Encoding: chunked\r\n"
    part = MEGABYTE if has_length else b"f4240\r\n" + MEGABYTE + b"\r\n"
    with connected(server) as connection:
        key = b"X-API-Key: " + server.key.encode() + b"\r\n"
        connection.sendall(HEAD % path + key + b"Content-Type: application/json\r\n" + form)
        connection.sendall(b"\r\n")
        flood(connection, part, 100)
        status, problem = answer_of(connection)
    assert (status, problem["code"]) == (413, "body_too_large")
    assert workers_memory(server) < before + GROWTH_BYTES


@pytest.mark.parametrize("path", [b"POST /tasks/gender/predict", b"POST /users/predict"])
def test_a_chunked_body_that_stops_is_408_by_the_requests_deadline(
    server: RunningServer, path: bytes
):
    began = time.monotonic()
    with connected(server) as connection:
        key = b"X-API-Key: " + server.key.encode() + b"\r\nX-Request-Timeout-Ms: 300\r\n"
        connection.sendall(HEAD % path + key + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
        status, problem = answer_of(connection)  # which returns when the connection has ended
    assert (status, problem["code"], problem["retryable"]) == (408, "request_timeout", True)
    assert time.monotonic() - began < 5


def test_idle_sockets_keep_nobody_out(server: RunningServer):
    sockets = []
    try:
        for _ in range(3000):
            sockets.append(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        began = time.monotonic()
        for _ in range(20):
            assert httpx.get(f"{server.url}/livez", trust_env=False).status_code == 200
        assert time.monotonic() - began < 10
    finally:
        for each in sockets:
            each.close()


def test_clients_that_reset_their_connections_leave_no_traceback(server: RunningServer):
    at_once = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")  # struct linger: on, 0 s
    for sent in (b"", b"GET /livez HTTP/1.1\r\n\r\n", HEAD % b"POST /users/predict" + b"\r\n"):
        for _ in range(200):
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                connection.sendall(sent)
    eventually(server.is_ready)
    assert "Traceback" not in server.log
    assert "never retrieved" not in server.log


def test_refusals_are_logged_with_their_peer_but_not_each_of_them(server: RunningServer):
    lines_before = server.log.count("code=malformed_request")
    for _ in range(100):
        with connected(server) as connection:
            connection.sendall(b"\x00\r\n\r\n")
            assert answer_of(connection)[0] == 400
    lines = server.log.count("code=malformed_request") - lines_before
    assert 1 <= lines < 30
    assert "peer=127.0.0.1" in server.log
