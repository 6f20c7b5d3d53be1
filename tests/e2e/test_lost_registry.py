"""The registry's Redis is emptied under load: answers go on, and the registry is put back."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from peterrec.model.spec import HeadKind
from peterrec.patches.backup.copies import Copies, RegistryCopy
from tests.e2e.conftest import push
from tests.e2e.running import RunningServer, running_server
from tests.patches.redis_servers import RedisServer, running
from tests.service.random_bundles import Workshop
from tests.waiting import eventually

TASKS: dict[HeadKind, int] = {"classification": 1, "ranking": 2}
LOST = "peterrec_registry_lost"


def peterrec(*arguments: object) -> str:
    """Run a command to its end and return what it printed."""
    command = [sys.executable, "-P", "-m", "peterrec", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def key_in(text: str) -> str:
    """Return the API key that a command has printed."""
    found = re.search(r"prk_\w+", text)
    assert found is not None, text
    return found.group()


class Clients:
    """Clients that ask for predictions, one after another, from several servers."""

    def __init__(self, servers: dict[str, httpx.Client]) -> None:
        self._servers = servers
        self._is_over = threading.Event()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.refused: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(name,)) for name in servers]

    def _ask(self, name: str) -> None:
        while not self._is_over.is_set():
            for task in TASKS:
                answer = self._servers[name].post(f"/tasks/{task}/predict", json={"history": [1]})
                self.answers[name, answer.status_code] += 1
                if answer.status_code != 200:
                    self.refused.append(answer.text)

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, number: int = 10) -> None:
        """Wait until every server has answered this many calls from now on."""
        before = self.answers.copy()
        eventually(
            lambda: all(
                self.answers[name, 200] >= before[name, 200] + number for name in self._servers
            ),
            60,
        )


class Shop:
    """A Redis, and a folder for each replica that follows it."""

    def __init__(self, redis: RedisServer, workshop: Workshop, folder: Path) -> None:
        self.redis = redis
        self.workshop = workshop
        self.folder = folder
        self.key = ""

    @contextmanager
    def replica(self, name: str) -> Iterator[RunningServer]:
        folder, url = self.folder / name, self.redis.url
        with running_server(
            self.workshop.folder, folder, redis_url=url, workers=1, drain_delay_s=0
        ) as server:
            server.key = self.key
            yield server

    def cache(self, name: str) -> Path:
        return self.folder / name / "data" / "cache"

    def has_copy(self, name: str, revision: int) -> bool:
        """Whether a replica's copy is of this revision."""
        return revision_of(Copies(self.cache(name)).newest) == revision

    def contents(self) -> set[str]:
        """The keys in Redis, but those that replicas write for each other while they run."""
        with self.redis.client() as redis:
            found = set(map(str, redis.scan_iter("*", 1000)))
        shared = ("replicas", "presences", "feedback_secret", "webhook_lease")
        return found - {f"{{peterrec}}:{name}" for name in shared}

    def restore(self, name: str, *options: str) -> str:
        address = ("--redis-url", self.redis.url, "--cache", self.cache(name))
        return peterrec("registry", "restore", *address, *options)


@pytest.fixture
def shop(workshop: Workshop, tmp_path: Path) -> Iterator[Shop]:
    redis = RedisServer(tmp_path)
    with running(redis):
        shop = Shop(redis, workshop, tmp_path)
        scopes = [part for each in ("predict", "admin", "operator") for part in ("--scope", each)]
        made = peterrec("keys", "create", "--redis-url", redis.url, "--name", "ops", *scopes)
        shop.key = key_in(made)
        yield shop


def revision_of(copy: RegistryCopy) -> int:
    state = copy.state()
    return state.position.revision if state else 0


def reasons(client: httpx.Client) -> tuple[str, list[str]]:
    answer = client.get("/readyz").json()
    return answer["status"], answer["reasons"]


def has_reasons(client: httpx.Client, *expected: str) -> bool:
    """Whether the server is ready, with these reasons."""
    return reasons(client) == ("ready", [*expected])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_flushall_under_load_fails_no_prediction_and_the_registry_comes_back(shop: Shop) -> None:
    with ExitStack() as stack:
        servers = {name: stack.enter_context(shop.replica(name)) for name in ("one", "two")}
        clients = {name: stack.enter_context(each.client()) for name, each in servers.items()}
        one, two = clients.values()
        for task, seed in TASKS.items():
            push(one, task, shop.workshop.bundle(task, seed))
        one.put("/tenants/acme", json={"quotas": {"tasks": 3}}).raise_for_status()
        revision = one.get("/readyz").json()["registry_revision"]
        for name in servers:
            eventually(partial(shop.has_copy, name, revision), 30)
        listed = one.get("/tasks").json()
        with Clients(clients) as asking:
            asking.wait_for_more()
            with shop.redis.client() as redis:
                redis.flushall()
            lost = one.put("/tasks/new", json={"description": "written at once"})
            assert (lost.status_code, lost.json()["code"]) == (503, "registry_lost")
            for client in clients.values():
                eventually(partial(has_reasons, client, "registry_lost"), 30)
            asking.wait_for_more()
            for server in servers.values():
                assert server.metrics()[LOST] == 1
                assert "level=error" in server.log
                assert "event=registry_lost" in server.log
            assert_refuses_changes_and_reading(two, shop.workshop.bundle("classification", 5))
            assert shop.contents() == set(), "no replica has changed anything"
            shown = json.loads(shop.restore("two", "--json"))
            assert (shown["tasks"], shown["bundles"], shown["left_out"]) == (2, 2, [])
            assert shop.contents() == set(), "a dry run writes nothing"
            shop.restore("two", "--write")
            for client in clients.values():
                eventually(partial(has_reasons, client), 30)
            asking.wait_for_more()
            assert one.get("/tenants/acme").json()["quotas"]["tasks"] == 3
            assert [(t["task"], t["aliases"]) for t in two.get("/tasks").json()] == [
                (t["task"], t["aliases"]) for t in listed
            ]
            push(two, "value", shop.workshop.bundle("value", 3))
            asking.wait_for_more()
        assert asking.refused == []
        assert {status for _, status in asking.answers} == {200}
        assert all(server.metrics()[LOST] == 0 for server in servers.values())
        trail = [event["action"] for event in one.get("/registry/audit").json()["events"]]
        assert trail == [
            "create_key",
            *["add_version"] * 2,
            "put_tenant",
            "restore",
            "add_version",
        ]


def assert_refuses_changes_and_reading(client: httpx.Client, bundle: bytes) -> None:
    for method, path, body in (
        ("POST", "/tasks/classification/versions", {"content": bundle}),
        ("PUT", "/tasks/other", {"json": {}}),
        ("DELETE", "/tasks/ranking", {}),
        ("POST", "/keys", {"json": {"name": "x", "scopes": ["predict"]}}),
        ("PUT", "/tenants/other", {"json": {}}),
        ("GET", "/tasks", {}),
        ("GET", "/registry/audit", {}),
    ):
        refused = client.request(method, path, **body)
        assert (refused.status_code, refused.json()["code"]) == (503, "registry_lost"), path
        assert "registry restore" in refused.json()["hint"]
        assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_replica_that_restarts_in_the_loss_serves_its_copy_until_the_state_is_accepted(
    shop: Shop,
) -> None:
    with shop.replica("one") as server, server.client() as client:
        push(client, "classification", shop.workshop.bundle("classification", 1))
        revision = client.get("/readyz").json()["registry_revision"]
        eventually(lambda: shop.has_copy("one", revision), 30)
    with shop.redis.client() as redis:
        redis.flushall()
    made = peterrec(
        *("keys", "create", "--redis-url", shop.redis.url, "--name", "another registry's"),
        *("--scope", "predict"),
    )
    with shop.replica("one") as server, server.client() as client:
        answered = client.post("/tasks/classification/predict", json={"history": [1]})
        assert answered.status_code == 200, answered.text
        eventually(lambda: reasons(client) == ("ready", ["registry_lost"]), 30)
        other = key_in(made)
        with server.client(other) as stranger:
            assert stranger.post("/tasks/classification/predict", json={}).status_code == 401
        address = ("--redis-url", shop.redis.url, "--cache", shop.cache("one"))
        shown = json.loads(peterrec("registry", "accept", *address, "--json"))
        assert shown == {
            "lost_revision": revision,
            "found_revision": 1,
            "tasks_given_up": 1,
            "keys_given_up": 1,
            "is_lost": True,
        }
        assert reasons(client) == ("ready", ["registry_lost"])
        accepted = client.post("/registry:accept")
        assert accepted.json() == {
            "registry_revision": revision + 1,
            "lost_revision": revision,
        }
        eventually(lambda: reasons(client) == ("ready", []), 30)
        with server.client(other) as stranger:
            unknown = stranger.post("/tasks/classification/predict", json={"history": [1]})
            assert unknown.json()["code"] == "task_not_found"
        assert client.get("/tasks").status_code == 401


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_embedded_registry_that_was_removed_is_not_replaced_by_a_new_one(
    workshop: Workshop, tmp_path: Path
) -> None:
    folder = ("--data-dir", tmp_path / "data")
    with running_server(workshop.folder, tmp_path, workers=1) as server, server.client() as client:
        key = server.key
        push(client, "value", workshop.bundle("value", 1))
        newest = Copies(tmp_path / "data" / "cache").newest
        eventually(lambda: revision_of(newest) == 2, 30)
    shutil.rmtree(tmp_path / "data" / "redis")
    with running_server(workshop.folder, tmp_path, workers=1) as server:
        assert server.key == "", "no new first key"
        with server.client(key) as client:
            answered = client.post("/tasks/value/predict", json={"history": [1]})
            assert answered.status_code == 200, answered.text
            eventually(lambda: reasons(client) == ("ready", ["registry_lost"]), 30)
            assert "Nothing was written" in peterrec("registry", "restore", *folder)
            assert "Restored" in peterrec("registry", "restore", *folder, "--write")
            eventually(lambda: reasons(client) == ("ready", []), 30)
            assert [task["task"] for task in client.get("/tasks").json()] == ["value"]


def test_nothing_is_accepted_while_nothing_is_lost_and_never_by_an_admin(
    api: httpx.Client, server: RunningServer
) -> None:
    refused = api.post("/registry:accept")
    assert (refused.status_code, refused.json()["code"]) == (409, "registry_not_lost")
    made = api.post("/keys", json={"name": "an admin", "scopes": ["admin", "predict"]})
    with server.client(made.json()["api_key"]) as admin:
        assert admin.post("/registry:accept").status_code == 403
    assert api.delete(f"/keys/{made.json()['key_id']}").status_code == 200
