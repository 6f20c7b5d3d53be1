"""Children killed under load: answers resume, nothing registered is lost, nobody is orphaned."""

import asyncio
import signal
from collections.abc import Iterator

import httpx
import psutil
import pytest

from peterrec.model.spec import HeadKind
from tests.e2e.conftest import push
from tests.e2e.load import Clients
from tests.e2e.running import RunningServer, running_server
from tests.waiting import eventually

KINDS: tuple[HeadKind, ...] = ("classification", "ranking")
CLIENTS = 16
MANY = 200


@pytest.fixture(scope="module")
def fragile(workshop, tmp_path_factory) -> Iterator[RunningServer]:
    """A server of its own, two workers, to break."""
    with running_server(
        workshop.folder, tmp_path_factory.mktemp("fragile"), workers=2, drain_delay_s=1.0
    ) as server:
        with server.client() as client:
            for kind in KINDS:
                push(client, kind, workshop.bundle(kind, seed=1))
        yield server


def restarts(server: RunningServer, child: str) -> float:
    return server.restarts(child)


@pytest.mark.slow
async def test_rows_that_wait_when_the_device_process_dies_are_answered_by_the_next(fragile):
    clients = Clients(fragile, "/tasks/classification/predict", [{"history": [1, 2]}])
    running = asyncio.create_task(clients.run(CLIENTS))
    await clients.answered(MANY)
    before = restarts(fragile, "device")
    fragile.child("device").send_signal(signal.SIGKILL)
    await clients.answered(MANY)
    clients.stop()
    await running
    load = clients.load
    assert (load.broken, load.refused) == ([], 0)
    # 429: the rows that wait would take too long; 504: they did
    assert load.statuses <= {200, 429, 503, 504}
    retry = [reply.body["code"] for reply in load.replies if reply.status == 503]
    assert set(retry) <= {"device_unavailable", "bundle_gone"}
    assert len({tuple(r.body["predictions"][0]["scores"].values()) for r in good(load)}) == 1
    eventually(lambda: restarts(fragile, "device") == before + 1)


async def test_a_worker_that_dies_breaks_only_what_it_had_under_way(fragile):
    clients = Clients(fragile, "/tasks/classification/predict", [{"history": [1, 2]}])
    running = asyncio.create_task(clients.run(CLIENTS))
    await clients.answered(MANY)
    before = restarts(fragile, "worker")
    fragile.child("worker").send_signal(signal.SIGKILL)
    await clients.answered(MANY)
    clients.stop()
    await running
    load = clients.load
    assert len(load.broken) <= CLIENTS
    assert load.refused == 0
    assert load.statuses == {200}
    eventually(lambda: restarts(fragile, "worker") == before + 1)


async def test_predictions_go_on_while_redis_is_gone_and_changes_after_it_is_back(
    fragile, workshop
):
    clients = Clients(fragile, "/tasks/ranking/predict", [{"history": [1, 2]}])
    running = asyncio.create_task(clients.run(CLIENTS))
    await clients.answered(MANY)
    before = restarts(fragile, "redis")
    fragile.child("redis").send_signal(signal.SIGKILL)
    await clients.answered(MANY)
    eventually(lambda: restarts(fragile, "redis") == before + 1)
    with fragile.client() as client:
        eventually(lambda: client.get("/tasks").status_code == 200)
        assert {task["task"] for task in client.get("/tasks").json()} >= set(KINDS)
        pushed = push(client, "later", workshop.bundle("value", seed=2)).json()
        later = client.post("/tasks/later/predict", json={"history": []}).json()
    assert later["digest"] == pushed["digest"]
    clients.stop()
    await running
    load = clients.load
    assert (load.broken, load.refused, load.statuses) == ([], 0, {200})


def test_a_device_process_that_hangs_times_out_then_refuses_then_resumes(fragile):
    body = {"history": [1, 2]}
    device = fragile.child("device")
    with fragile.client() as client:
        device.suspend()
        try:
            late = client.post(
                "/tasks/classification/predict", json=body, headers={"X-Request-Timeout-Ms": "100"}
            )
            eventually(lambda: client.get("/readyz").status_code == 503)
            refused = client.post("/tasks/classification/predict", json=body)
            unready = client.get("/readyz").json()
            alive = client.get("/livez").status_code
        finally:
            device.resume()
        eventually(fragile.is_ready)
        eventually(lambda: client.post("/tasks/ranking/predict", json=body).status_code == 200)
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert (refused.status_code, refused.json()["code"]) == (503, "device_unavailable")
    assert refused.headers["retry-after"] == "1"
    assert (unready["status"], unready["reasons"]) == ("not_ready", ["device_unavailable"])
    assert alive == 200


def test_a_worker_that_slept_through_a_change_serves_it_when_it_wakes(fragile, workshop):
    """A push waits for it only until it counts as dead; the next one is not even sent to it."""
    worker = fragile.child("worker")
    worker.suspend()
    try:
        with fragile.client() as client:
            push(client, "slept", workshop.bundle("classification", seed=2))
            pushed = push(client, "slept", workshop.bundle("classification", seed=3)).json()
    finally:
        worker.resume()
    eventually(lambda: all(digest(fragile, "slept") == pushed["digest"] for _ in range(20)))


async def test_the_rows_of_a_client_that_left_are_dropped_before_they_run(fragile):
    clients = Clients(fragile, "/tasks/classification/predict", [{"history": [1, 2]}])
    left = 'peterrec_requests_total{outcome="client_left",task="classification"}'
    dropped = 'peterrec_rejected_total{code="client_left"}'
    before = fragile.metrics().get(dropped, 0)
    device = fragile.child("device")
    device.suspend()
    try:
        await clients.ask_and_leave(3)
        eventually(lambda: fragile.metrics().get(left, 0) == 3)
    finally:
        device.resume()
    eventually(lambda: fragile.metrics().get(dropped, 0) == before + 3)


async def test_a_drain_answers_everything_in_flight_and_ends_with_status_zero(fragile):
    """Runs last of this module's: it ends the server."""
    clients = Clients(fragile, "/tasks/classification/predict", [{"history": [1, 2]}])
    running = asyncio.create_task(clients.run(CLIENTS))
    await clients.answered(MANY)
    children = fragile.children()
    fragile.terminate()
    # in a thread: clients that hold connections and can't ask would be closed
    await asyncio.to_thread(eventually, lambda: readiness(fragile) == (503, ["draining"]))
    code = await asyncio.to_thread(fragile.wait)
    clients.stop()
    await running
    load = clients.load
    assert code == 0
    assert load.broken == []
    assert load.statuses == {200}
    assert "Traceback" not in fragile.log
    assert [child for child in children if is_alive(child)] == []


def test_what_was_registered_and_the_key_survive_and_a_killed_supervisor_leaves_no_orphans(
    fragile, workshop
):
    """Starts the ended server again, on the same data."""
    with running_server(workshop.folder, fragile.folder) as server:
        assert server.key == ""
        with server.client(fragile.key) as client:
            for kind in KINDS:
                answer = client.post(f"/tasks/{kind}/predict", json={"history": []})
                assert answer.status_code == 200
        children = server.children()
        assert len(children) >= 3
        server.terminate(signal.SIGKILL)
        server.wait()
        eventually(lambda: not any(is_alive(child) for child in children))


def digest(server: RunningServer, task: str) -> str | None:
    """Asked over a fresh connection, which any worker may accept."""
    with server.client() as client:
        answer = client.post(f"/tasks/{task}/predict", json={"history": []})
    return answer.json().get("digest")


def readiness(server: RunningServer) -> tuple[int, list[str]]:
    answer = httpx.get(f"{server.url}/readyz", trust_env=False)
    return answer.status_code, answer.json()["reasons"]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def good(load):
    return [reply for reply in load.replies if reply.status == 200]
