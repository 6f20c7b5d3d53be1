"""Processes that are stopped, wait for ever or loop for ever are replaced, slow ones are not."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from peterrec.model.spec import HeadKind
from tests.e2e.conftest import push
from tests.e2e.load import Clients
from tests.e2e.running import RunningServer, running_server
from tests.waiting import eventually, soon

KINDS: tuple[HeadKind, ...] = ("classification", "ranking")
CLIENTS = 4
MANY = 100
PATIENCE_S, START_S = 60.0, 200.0
TIMEOUT_MS = 60_000
"""Deadline of a request, so that it waits for a device process that starts on a busy machine."""

LOOP, WAIT, BE_SLOW = signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM
"""What ``hanging/sitecustomize.py`` makes of these signals."""

REFUSALS = {
    (429, "queue_full"),
    (503, "device_unavailable"),
    (503, "bundle_gone"),
    (503, "bundle_not_ready"),
    (504, "deadline_exceeded"),  # it passed during a slow start
}

HANGS = {signal.SIGSTOP: "stopped", WAIT: "stuck", LOOP: "stuck"}


@pytest.fixture(scope="module")
def fragile(workshop, tmp_path_factory) -> Iterator[RunningServer]:
    """A server of its own, two workers, whose processes hang at a signal."""
    ours, theirs = Path(__file__).parent / "hanging", os.environ.get("PYTHONPATH", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ours}{os.pathsep}{theirs}")
        with running_server(
            workshop.folder,
            tmp_path_factory.mktemp("fragile"),
            workers=2,
            request_timeout_limit_ms=TIMEOUT_MS,
        ) as server:
            with server.client() as client:
                for kind in KINDS:
                    push(client, kind, workshop.bundle(kind, seed=1))
            yield server


@pytest.fixture(autouse=True)
def _every_test_begins_with_a_server_that_is_ready(fragile):
    eventually(fragile.is_ready, START_S)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", HANGS, ids=lambda number: number.name)
async def test_a_device_process_that_hangs_under_load_is_replaced_and_no_answer_is_wrong(
    fragile, number
):
    clients = Clients(fragile, "/tasks/classification/predict", [{"history": [1, 2]}], TIMEOUT_MS)
    running = asyncio.create_task(clients.run(CLIENTS))
    await clients.answered(MANY)
    hung, before = fragile.child("device"), fragile.restarts("device", HANGS[number])
    hung.send_signal(number)
    await soon(lambda: fragile.restarts("device", HANGS[number]) == before + 1, PATIENCE_S)
    await soon(lambda: asyncio.to_thread(fragile.is_ready), START_S)
    await clients.answered(MANY)
    clients.stop()
    await running
    load = clients.load
    assert (load.broken, load.refused) == ([], 0)
    refused = {(reply.status, reply.body["code"]) for reply in load.replies if reply.status != 200}
    assert refused <= REFUSALS
    assert not hung.is_running()
    assert len({tuple(r.body["predictions"][0]["scores"].values()) for r in good(load)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", HANGS, ids=lambda number: number.name)
async def test_a_worker_that_hangs_breaks_only_what_it_had_under_way(fragile, number):
    clients = Clients(fragile, "/tasks/classification/predict", [{"history": [1, 2]}], TIMEOUT_MS)
    running = asyncio.create_task(clients.run(CLIENTS))
    await clients.answered(MANY)
    hung, before = fragile.child("worker"), fragile.restarts("worker", HANGS[number])
    hung.send_signal(number)
    await soon(lambda: fragile.restarts("worker", HANGS[number]) == before + 1, PATIENCE_S)
    await clients.answered(MANY)
    clients.stop()
    await running
    load = clients.load
    assert len(load.broken) <= CLIENTS
    assert (load.refused, load.statuses) == (0, {200})
    assert not hung.is_running()


@pytest.mark.slow
async def test_a_redis_that_is_stopped_is_replaced_with_its_data_while_predictions_go_on(
    fragile, workshop
):
    clients = Clients(fragile, "/tasks/ranking/predict", [{"history": [1, 2]}])
    running = asyncio.create_task(clients.run(CLIENTS))
    await clients.answered(MANY)
    before = fragile.restarts("redis", "stopped")
    fragile.child("redis").send_signal(signal.SIGSTOP)
    await soon(lambda: fragile.restarts("redis", "stopped") == before + 1, PATIENCE_S)
    await asyncio.to_thread(a_push_is_served, fragile, workshop)
    clients.stop()
    await running
    load = clients.load
    assert (load.broken, load.refused, load.statuses) == ([], 0, {200})


@pytest.mark.slow
def test_a_slow_device_process_is_waited_for_and_the_readiness_says_that_it_is_stuck(fragile):
    device, before = fragile.child("device"), fragile.restarts("device")
    with fragile.client() as client:
        client.post("/tasks/ranking/predict", json={"history": []}).raise_for_status()
        device.send_signal(BE_SLOW)
        eventually(lambda: reasons(fragile) == ["device_stuck"])
        slow = client.post("/tasks/ranking/predict", json={"history": [1]})
    assert slow.status_code == 200
    assert fragile.restarts("device") == before
    assert device.is_running()
    eventually(fragile.is_ready)


@pytest.mark.slow
def test_the_log_shows_where_a_process_hung(fragile):
    """Runs after those that let processes hang."""
    assert "child_hangs" in fragile.log
    assert "sitecustomize.py" in fragile.log
    assert "Current thread" in fragile.log


@pytest.mark.slow
def test_no_process_that_hangs_outlives_a_killed_supervisor(fragile):
    """Runs last of this module's: it ends the server."""
    children = fragile.children()
    fragile.child("worker").send_signal(LOOP)
    fragile.child("device").send_signal(signal.SIGSTOP)
    fragile.terminate(signal.SIGKILL)
    fragile.wait()
    eventually(lambda: not any(is_alive(child) for child in children), PATIENCE_S)


def a_push_is_served(server: RunningServer, workshop) -> None:
    with server.client() as client:
        eventually(lambda: client.get("/tasks").status_code == 200, PATIENCE_S)
        assert {task["task"] for task in client.get("/tasks").json()} >= set(KINDS)
        pushed = push(client, "later", workshop.bundle("value", seed=2)).json()
        later = client.post("/tasks/later/predict", json={"history": []}).json()
    assert later["digest"] == pushed["digest"]


def reasons(server: RunningServer) -> list[str]:
    found: list[str] = httpx.get(f"{server.url}/readyz", trust_env=False).json()["reasons"]
    return found


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def good(load):
    return [reply for reply in load.replies if reply.status == 200]
