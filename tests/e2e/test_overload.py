"""More calls than the device can take: who is refused, when, and what is left afterwards."""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.conftest import push
from tests.e2e.running import RunningServer, Start, running_server
from tests.service.random_bundles import Workshop
from tests.waiting import eventually

QUEUE_ROWS = 64
LIMIT_MS = 2500
PATH = "/tasks/tags/predict"
GROWTH_BYTES = 40_000_000
"""How much a process may grow under waves of thousands of connections, after the first wave."""


@pytest.fixture(scope="module")
def narrow(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with one worker and a short queue."""
    with running_server(
        workshop.folder,
        tmp_path_factory.mktemp("narrow"),
        workers=1,
        max_queue_rows=QUEUE_ROWS,
        request_timeout_ms=LIMIT_MS,
        request_timeout_limit_ms=LIMIT_MS,
        log_level="warning",
    ) as server:
        with server.client() as client:
            push(client, "tags", workshop.bundle("tags", seed=1))
        yield server


@contextmanager
def device_stopped(server: RunningServer) -> Iterator[None]:
    """Stop the device process for a moment, so that rows wait."""
    device = server.child("device")
    device.suspend()
    try:
        yield
    finally:
        device.resume()


def head(server: RunningServer, size_bytes: int, **fields: object) -> bytes:
    given = {"Host": "x", "X-API-Key": server.key, "Content-Length": size_bytes, **fields}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items()]
    return f"POST {PATH} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


def call(server: RunningServer, rows: int, items: int = 3, **fields: object) -> bytes:
    body = json.dumps({"instances": [{"history": [1] * items}] * rows}).encode()
    return head(server, len(body), **fields) + body


def connect(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def answer(connection: socket.socket) -> tuple[int, dict[str, str], dict[str, object]]:
    """Read one answer: its status, its headers and its body."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        lines = iter(file.readline, b"\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.decode().partition(":") for line in lines)
        }
        return status, headers, json.loads(file.read(int(headers["content-length"])))


@contextmanager
def waiting(server: RunningServer, rows: int) -> Iterator[list[socket.socket]]:
    """Send calls of one row each, from as many connections."""
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(server)) for _ in range(rows)]
        for each in opened:
            each.sendall(call(server, 1))
        yield opened


def wait_until_full(server: RunningServer) -> None:
    """Send further calls until one is refused."""
    eventually(lambda: is_refused(server))


def is_refused(server: RunningServer) -> bool:
    """Send a call of one row while the device stands still: it is refused, or it waits."""
    with connect(server) as probe, suppress(TimeoutError):
        probe.sendall(call(server, 1))
        probe.settimeout(0.1)
        return answer(probe)[0] == 429
    return False


def refused(server: RunningServer, code: str) -> float:
    return server.metrics().get(f'peterrec_refused_total{{code="{code}"}}', 0.0)


def left(server: RunningServer) -> float:
    return server.metrics().get('peterrec_rejected_total{code="client_left"}', 0.0)


def test_a_call_for_which_there_is_no_place_is_refused_before_its_body_is_sent(
    narrow: RunningServer,
):
    before = refused(narrow, "queue_full")
    with connect(narrow) as late:
        body = b" " * 1_900_000
        with device_stopped(narrow), waiting(narrow, QUEUE_ROWS):
            wait_until_full(narrow)
            late.sendall(head(narrow, len(body)))
            status, headers, problem = answer(late)
        assert (status, problem["code"], problem["retryable"]) == (429, "queue_full", True)
        assert int(headers["retry-after"]) >= 1
        assert "connection" not in headers
        late.sendall(body + call(narrow, 1))
        assert answer(late)[0] == 200
    eventually(lambda: refused(narrow, "queue_full") > before)


def test_calls_that_have_their_places_are_all_answered(narrow: RunningServer):
    with waiting(narrow, QUEUE_ROWS) as calls:
        found = [answer(each) for each in calls]
        assert {each[0] for each in found} == {200}


def rows_computed(server: RunningServer) -> float:
    """Rows of all batches until now: the count once it stands still, as it comes each second."""
    found, before = server.metrics()["peterrec_batch_rows_sum"], -1.0
    while found != before:
        time.sleep(1.5)
        found, before = server.metrics()["peterrec_batch_rows_sum"], found
    return float(found)


def test_rows_whose_client_left_are_never_computed(narrow: RunningServer):
    before, computed = left(narrow), rows_computed(narrow)
    with device_stopped(narrow):
        with waiting(narrow, QUEUE_ROWS):
            wait_until_full(narrow)
        eventually(lambda: not is_refused(narrow))  # the server has noticed that they left
    with connect(narrow) as last:
        last.sendall(call(narrow, 1))
        assert answer(last)[0] == 200
    eventually(lambda: left(narrow) > before + QUEUE_ROWS / 2)
    assert narrow.metrics()["peterrec_batch_rows_sum"] < computed + QUEUE_ROWS / 2


def test_the_deadline_counts_from_the_first_byte(narrow: RunningServer):
    request = call(narrow, 1, X_Request_Timeout_Ms=400)
    with connect(narrow) as slow:
        slow.sendall(request[:1])
        with suppress(TimeoutError):
            slow.settimeout(0.6)
            assert slow.recv(1) == b"", "it was answered before it was asked"
        slow.settimeout(20)
        slow.sendall(request[1:])
        status, _, problem = answer(slow)
    assert (status, problem["code"]) == (504, "deadline_exceeded")


def test_a_call_that_waits_for_the_device_ends_at_the_operators_limit(narrow: RunningServer):
    with connect(narrow) as patient, device_stopped(narrow):
        patient.sendall(call(narrow, 1, X_Request_Timeout_Ms=600_000))
        status, _, problem = answer(patient)
    assert (status, problem["code"]) == (504, "deadline_exceeded")


async def _one(server: RunningServer, request: bytes, *, leaves: bool) -> int:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    except OSError:
        return 0
    try:
        writer.write(request)
        await writer.drain()
        if leaves:
            return 0
        line = await reader.readline()
        return int(line.split()[1]) if line else 0
    except OSError:
        return 0
    finally:
        writer.close()


async def wave(server: RunningServer, count: int) -> set[int]:
    """Send so many calls at once; every third client leaves without its answer."""
    request = call(server, 16, items=20)
    async with asyncio.timeout(120):
        statuses = await asyncio.gather(
            *(_one(server, request, leaves=number % 3 == 0) for number in range(count))
        )
    return set(statuses)


def sizes(server: RunningServer) -> dict[str, int]:
    names = ("worker", "device")
    return {name: server.child(name).memory_info().rss for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("count", [512, 4096])
async def test_thousands_of_connections_end_in_no_fault_and_leave_no_memory(
    server: RunningServer, count: int
):
    statuses = await wave(server, count)
    before = sizes(server)
    for _ in range(3):
        statuses |= await wave(server, count)
    assert statuses <= {0, 200, 429, 503, 504}
    eventually(lambda: server.metrics()["peterrec_queue_depth"] == 0, 30)
    after = sizes(server)
    assert {name: after[name] - before[name] < GROWTH_BYTES for name in after} == dict.fromkeys(
        after, True
    )
    with server.client() as client:
        assert client.post(PATH, json={"history": [1]}).status_code == 200
    assert "Traceback" not in server.log


FEW = 512


@pytest.fixture(scope="module")
def poor(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose processes may have few descriptors, and cannot raise that."""
    limited = ("sh", "-c", f'ulimit -n {FEW}; exec "$@"', "sh")
    start = Start((*limited, sys.executable, "-P", "-m", "peterrec"))
    folder: Path = tmp_path_factory.mktemp("poor")
    with running_server(workshop.folder, folder, start=start, workers=1) as server:
        yield server


@pytest.mark.slow
def test_two_thousand_idle_sockets_of_one_client_keep_nobody_out(
    poor: RunningServer, workshop: Workshop
):
    idle = []
    try:
        for _ in range(2000):
            idle.append(connect(poor))
        other = httpx.HTTPTransport(local_address="127.0.0.2")
        headers = {"X-API-Key": poor.key}
        with httpx.Client(
            base_url=poor.url, headers=headers, transport=other, timeout=30
        ) as client:
            push(client, "tags", workshop.bundle("tags", seed=1))
            for _ in range(20):
                assert client.get("/readyz").status_code == 200
                assert client.post(PATH, json={"history": [1]}).status_code == 200
        with poor.client() as neighbour:
            assert neighbour.post(PATH, json={"history": [1]}).status_code == 200
        eventually(lambda: refused(poor, "idle_connection_closed") > 0)
        assert "accept_failed" not in poor.log
    finally:
        for each in idle:
            each.close()


def spooled(server: RunningServer) -> list[Path]:
    return [*(server.folder / "data" / "spool").iterdir()]


@pytest.mark.parametrize(
    ("process", "code"), [("worker", "disk_full"), ("device", "cache_unwritable")]
)
def test_a_full_disk_at_a_push_is_507_and_nothing_is_left(
    narrow: RunningServer, workshop: Workshop, process: str, code: str
):
    full = narrow.child(process)
    before = full.rlimit(psutil.RLIMIT_FSIZE)
    cached = [*(narrow.folder / "data" / "cache").rglob("*")]
    bundle = workshop.bundle("value", 7)
    assert len(narrow.log) < len(bundle) / 2
    full.rlimit(psutil.RLIMIT_FSIZE, (len(bundle) // 2, before[1]))  # no file may be larger
    try:
        with narrow.client() as client:
            refusal = client.post("/tasks/fresh/versions", content=bundle)
    finally:
        full.rlimit(psutil.RLIMIT_FSIZE, before)
    assert refusal.status_code == 507, refusal.text
    assert refusal.json()["code"] == code
    assert refusal.json()["hint"]
    assert spooled(narrow) == []
    assert [*(narrow.folder / "data" / "cache").rglob("*")] == cached
    with narrow.client() as client:
        assert client.get("/tasks/fresh").status_code == 404
        push(client, "fresh", bundle)
        client.delete("/tasks/fresh")
