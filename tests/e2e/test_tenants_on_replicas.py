"""Several real servers over one Redis: what is revoked or deleted at one is gone at all, soon."""

import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest

from tests.e2e.conftest import REPLICAS, push
from tests.e2e.neighbours import make_key, make_tenant
from tests.e2e.running import RunningServer
from tests.waiting import eventually

WITHIN_S = 2.0
"""Seconds within which every replica refuses a key that was revoked at one of them."""

pytestmark = pytest.mark.timeout(300)


def answers(servers: list[RunningServer], key: str, task: str = "films") -> list[int]:
    found = []
    for server in servers:
        with server.client(key) as client:
            found.append(client.post(f"/tasks/{task}/predict", json={"history": [1]}).status_code)
    return found


def seconds_until_all_say(servers: list[RunningServer], key: str, status: int) -> float:
    """Ask every replica in turn until each has said this status once; return the seconds."""
    started = time.monotonic()
    eventually(lambda: answers(servers, key) == [status] * len(servers), 20)
    return time.monotonic() - started


@pytest.mark.parametrize("what", ["key", "secret", "tenant"])
def test_what_is_revoked_at_one_replica_is_refused_by_all_within_two_seconds(
    replicas, operator, workshop, what
):
    name = f"acme-{uuid4().hex[:8]}"
    tenant = make_tenant(operator, name)
    with replicas[0].client(tenant.secret("admin")) as client:
        push(client, "films", workshop.bundle("value", seed=71))
    key = make_key(operator, name, "predict")
    seconds_until_all_say(replicas, key["api_key"], 200)
    path = f"/tenants/{name}/keys/{key['key_id']}"
    if what == "secret":
        operator.post(f"{path}:rotate", json={"overlap_s": 600})
        time.sleep(0.1)
        assert answers(replicas, key["api_key"]) == [200] * REPLICAS
        path = f"{path}/secrets/1"
    if what == "tenant":
        path = f"/tenants/{name}"
    started = time.monotonic()
    assert operator.delete(path).status_code == 200
    seconds_until_all_say(replicas, key["api_key"], 401)
    assert time.monotonic() - started < WITHIN_S
    operator.delete(f"/tenants/{name}")


def test_a_deleted_tenant_leaves_no_copy_on_any_replica(replicas, operator, workshop):
    name = f"acme-{uuid4().hex[:8]}"
    tenant = make_tenant(operator, name)
    kept = make_tenant(operator, f"kept-{uuid4().hex[:8]}")
    with replicas[1].client(tenant.secret("admin")) as client:
        eventually(lambda: client.get("/tasks").status_code == 200)
        own = [
            push(client, "films", workshop.bundle("ranking", seed=seed), alias=alias).json()
            for seed, alias in ((72, "prod"), (73, "prod"), (74, ""))
        ]
        shared = push(client, "shared", workshop.bundle("value", seed=75)).json()
    with replicas[2].client(kept.secret("admin")) as client:
        eventually(lambda: client.get("/tasks").status_code == 200)
        push(client, "shared", workshop.bundle("value", seed=75))
    seconds_until_all_say(replicas, tenant.secret("predict"), 200)
    eventually(lambda: all(_copy(server, shared).exists() for server in replicas), 20)
    assert operator.delete(f"/tenants/{name}").json()["erased"]["bundles"] == 3
    eventually(lambda: not [c for s in replicas for o in own if (c := _copy(s, o)).exists()], 20)
    digest = own[1]["digest"][7:]
    eventually(lambda: not [s for s in replicas if digest in _snapshot(s)], 20)
    assert all(_copy(server, shared).exists() for server in replicas)
    assert answers(replicas, kept.secret("predict"), "shared") == [200] * REPLICAS
    operator.delete(f"/tenants/{kept.name}")


def test_a_rotation_under_load_costs_no_request(replicas, operator, workshop):
    name = f"acme-{uuid4().hex[:8]}"
    tenant = make_tenant(operator, name)
    with replicas[0].client(tenant.secret("admin")) as client:
        push(client, "films", workshop.bundle("value", seed=76))
    key = make_key(operator, name, "predict")
    seconds_until_all_say(replicas, key["api_key"], 200)
    secrets, done = [str(key["api_key"])], threading.Event()
    refused: list[int] = []

    def call() -> None:
        while not done.is_set():
            found = answers(replicas, secrets[0])
            refused.extend(status for status in found if status != 200)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    path = f"/tenants/{name}/keys/{key['key_id']}"
    for number in (1, 2, 3):
        new = operator.post(f"{path}:rotate", json={"overlap_s": 600}).json()["api_key"]
        seconds_until_all_say(replicas, new, 200)
        old, secrets[0] = secrets[0], new
        time.sleep(0.5)  # calls that have begun with the old secret
        assert operator.delete(f"{path}/secrets/{number}").status_code == 200
        seconds_until_all_say(replicas, old, 401)
    done.set()
    for thread in threads:
        thread.join()
    assert refused == []
    operator.delete(f"/tenants/{name}")


def _copy(server: RunningServer, pushed: dict) -> Path:
    return server.folder / "data" / "cache" / f"{pushed['digest'][7:]}.bundle"


def _snapshot(server: RunningServer) -> str:
    path = server.folder / "data" / "cache" / "snapshot.json"
    return path.read_text() if path.exists() else ""
