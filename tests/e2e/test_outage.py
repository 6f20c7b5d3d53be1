"""Redis is away: answers go on, changes are refused, a restart comes up from the copy on disk."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from peterrec.model.spec import HeadKind
from peterrec.patches.identity import parse_digest
from tests.e2e.conftest import push
from tests.e2e.running import RunningServer, running_server
from tests.patches.breakable_proxy import BreakableProxy
from tests.patches.redis_servers import HOST, RedisServer, running
from tests.service.random_bundles import Workshop
from tests.waiting import eventually

TASKS: dict[HeadKind, int] = {"classification": 1, "ranking": 2, "value": 3}
PATIENCE_S = 12.0
"""A change is refused within this time even if Redis is silent instead of gone."""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BreakableProxy]:
    redis = RedisServer(tmp_path_factory.mktemp("redis"))
    with running(redis):
        network = BreakableProxy(redis.port)
        yield network
        network.close()


def serving(
    workshop: Workshop, folder: Path, network: BreakableProxy
) -> AbstractContextManager[RunningServer]:
    return running_server(
        workshop.folder,
        folder,
        redis_url=f"redis://{HOST}:{network.port}",
        auth="off",
        workers=1,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def server(
    workshop: Workshop, folder: Path, network: BreakableProxy, digests: dict[str, str]
) -> Iterator[RunningServer]:
    with serving(workshop, folder, network) as server:
        with server.client() as client:
            for kind, seed in TASKS.items():
                digests[kind] = push(client, kind, workshop.bundle(kind, seed)).json()["digest"]
        eventually(lambda: (folder / "data" / "cache" / "snapshot.json").exists())
        yield server


@pytest.fixture(params=["cut", "silence"])
def away(request: pytest.FixtureRequest, network: BreakableProxy) -> Iterator[str]:
    getattr(network, request.param)()
    yield request.param
    network.mend()


def answered(client: httpx.Client) -> dict[str, str | None]:
    """The digest that each task answers with."""
    answers = {task: client.post(f"/tasks/{task}/predict", json={"history": [1]}) for task in TASKS}
    return {
        task: answer.json()["digest"] if answer.status_code == 200 else None
        for task, answer in answers.items()
    }


CHANGES = {
    "cut": ["POST /tasks/value/versions", "DELETE /tasks/value", "POST /tasks/value:rollback"],
    "silence": ["POST /tasks/value:rollback"],  # each one waits for a timeout
}


@pytest.mark.slow
def test_answers_go_on_and_every_change_is_refused_with_a_time_to_try_again(
    server: RunningServer, away: str, digests: dict[str, str], workshop: Workshop
) -> None:
    bundle = workshop.bundle("value", 9)
    with server.client() as client:
        for method, path in map(str.split, CHANGES[away]):
            started = time.monotonic()
            content = bundle if path.endswith("versions") else None
            refused = client.request(method, path, content=content)
            assert time.monotonic() - started < PATIENCE_S
            assert (refused.status_code, refused.json()["code"]) == (503, "registry_unavailable")
            assert refused.json()["retryable"]
            assert int(refused.headers["retry-after"]) >= 1
        assert answered(client) == digests


def test_how_old_the_state_is_can_be_read_and_readiness_does_not_depend_on_it(
    server: RunningServer, away: str
) -> None:
    synced_at = "peterrec_registry_last_sync_timestamp_seconds"
    before = server.metrics()[synced_at]
    with server.client() as client:
        eventually(lambda: (client.get("/readyz").json()["registry_stale_s"] or 0) > 2.5)
        ready = client.get("/readyz")
    assert before <= server.metrics()[synced_at] < time.time() - 2
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert server.metrics()["peterrec_registry_up"] == 0


def test_what_changed_meanwhile_is_served_within_two_seconds_of_the_mending(
    server: RunningServer, network: BreakableProxy, digests: dict[str, str], workshop: Workshop
) -> None:
    with server.client() as client:
        eventually(lambda: client.get("/readyz").json()["registry_stale_s"] < 1.5)
        assert answered(client) == digests
        digests["value"] = push(client, "value", workshop.bundle("value", 10)).json()["digest"]
        assert answered(client) == digests


@pytest.mark.slow
def test_a_server_that_restarts_meanwhile_serves_its_copy_but_for_a_damaged_file(
    server: RunningServer,
    folder: Path,
    network: BreakableProxy,
    digests: dict[str, str],
    workshop: Workshop,
) -> None:
    """Runs last of this module's: it ends the first server."""
    server.terminate()
    assert server.wait() == 0
    damaged = folder / "data" / "cache" / f"{parse_digest(digests['ranking'])}.bundle"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    network.cut()
    try:
        with serving(workshop, folder, network) as again, again.client() as client:
            assert answered(client) == {**digests, "ranking": None}
            assert "blob_corrupt" in again.log
            network.mend()
            eventually(lambda: answered(client) == digests)
            assert damaged.read_bytes() != bytes(data)
    finally:
        network.mend()
