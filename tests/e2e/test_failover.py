"""Redis' primary dies: with acknowledged changes, whatever was answered is there afterwards."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import push
from tests.e2e.running import RunningServer, running_server
from tests.patches.redis_servers import (
    HOST,
    RedisServer,
    SentinelServer,
    in_step,
    running,
)
from tests.service.random_bundles import Workshop
from tests.waiting import eventually


@pytest.fixture
def redises(tmp_path: Path) -> Iterator[tuple[RedisServer, list[RedisServer], SentinelServer]]:
    """A primary with two replicas, and the Sentinel that watches them."""
    primary = RedisServer(tmp_path, "--repl-diskless-sync-delay", "0")
    follow = ("--replicaof", HOST, str(primary.port), "--repl-diskless-sync-delay", "0")
    replicas = [RedisServer(tmp_path, *follow) for _ in range(2)]
    with ExitStack() as stack:
        stack.enter_context(running(primary, *replicas))
        for replica in replicas:
            in_step(replica)
        sentinel = SentinelServer(tmp_path, primary, down_after_ms=3000)
        stack.enter_context(running(sentinel))
        sentinel.wait_for(lambda client: len(client.sentinel_slaves("registry")) == 2)
        yield primary, replicas, sentinel


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_registration_that_was_answered_survives_a_failover(
    redises: tuple[RedisServer, list[RedisServer], SentinelServer],
    workshop: Workshop,
    tmp_path: Path,
) -> None:
    primary, replicas, sentinel = redises
    url = f"sentinel://{HOST}:{sentinel.port}/registry"
    with acknowledging(workshop, tmp_path / "server", url) as server:
        with server.client() as client:
            pushed = push(client, "value", workshop.bundle("value", 1)).json()
            primary.kill()
            assert serves(server, "value", pushed["digest"])
            eventually(lambda: is_pushed(server, workshop.bundle("ranking", 2)), 90)
            assert client.get("/readyz").json()["reasons"] == []
            tasks = {task["task"]: task["aliases"] for task in client.get("/tasks").json()}
            assert tasks["value"]["prod"]["digest"] == pushed["digest"]
            assert tasks.keys() == {"value", "ranking"}
        with ExitStack() as stack:
            clients = [stack.enter_context(replica.client()) for replica in replicas]
            assert {each.info("replication")["role"] for each in clients} == {"master", "slave"}
            assert {each.get("{peterrec}:revision") for each in clients} == {"2"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_registration_that_no_replica_confirms_is_refused_and_may_be_repeated(
    workshop: Workshop, tmp_path: Path
) -> None:
    lone = RedisServer(tmp_path)
    with (
        running(lone),
        acknowledging(workshop, tmp_path / "server", lone.url) as server,
        server.client() as client,
    ):
        bundle = workshop.bundle("value", 1)
        refused = client.post("/tasks/value/versions", content=bundle)
        assert (refused.status_code, refused.json()["code"]) == (503, "registry_unacknowledged")
        assert int(refused.headers["retry-after"]) >= 1
        replica = RedisServer(tmp_path, "--replicaof", HOST, str(lone.port))
        with running(replica):
            in_step(replica)
            again = client.post("/tasks/value/versions", content=bundle)
            assert again.status_code in {200, 201}, again.text
            assert again.json()["registry_revision"] == 1


def acknowledging(
    workshop: Workshop, folder: Path, url: str
) -> AbstractContextManager[RunningServer]:
    """A server whose changes a replica of Redis must have before they are answered."""
    return running_server(
        workshop.folder, folder, redis_url=url, auth="off", workers=1, ack_replicas=1
    )


def serves(server: RunningServer, task: str, digest: str) -> bool:
    with server.client() as client:
        answer = client.post(f"/tasks/{task}/predict", json={"history": [1]})
        return bool(answer.json().get("digest") == digest)


def is_pushed(server: RunningServer, bundle: bytes) -> bool:
    with server.client() as client:
        answer = client.post("/tasks/ranking/versions", content=bundle)
        return answer.status_code in {200, 201}
