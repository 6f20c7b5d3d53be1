"""A server under a path of a proxy, and two behind the nginx of `deploy/` that are restarted."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from peterrec_client import Client
from tests.docker.queries import ROOT
from tests.e2e.conftest import first_key, push
from tests.e2e.load import Clients
from tests.e2e.running import RunningServer, free_port, running_server
from tests.waiting import eventually, soon

PREFIX = "/peterrec"
TOKEN = "a-token-of-the-metrics"
CLIENTS = 8
MANY = 200


@pytest.fixture(scope="module")
def prefixed(workshop, tmp_path_factory) -> Iterator[RunningServer]:
    """A server under a prefix, whose metrics have an address and a token of their own."""
    folder = tmp_path_factory.mktemp("prefixed")
    with running_server(
        workshop.folder,
        folder,
        workers=1,
        root_path=PREFIX,
        metrics_host="127.0.0.2",
        metrics_token=TOKEN,
    ) as server:
        with server.client() as client:
            push(client, "gender", workshop.bundle("classification", seed=1))
        yield server


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready"])
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_health_answers_head_as_get_with_the_prefix_and_without(prefixed, path, prefix):
    for method in ("GET", "HEAD"):
        answer = httpx.request(method, f"{prefixed.url}{prefix}{path}", trust_env=False)
        assert answer.status_code == 200
        assert (answer.content == b"") == (method == "HEAD")


def test_a_client_predicts_under_the_prefix(prefixed):
    with Client(prefixed.url + PREFIX, prefixed.key) as client:
        assert [task.task for task in client.tasks()] == ["gender"]
        assert client.predict("gender", ["item-1"])


def test_the_documentation_names_the_api_as_the_proxy_does(prefixed):
    page = httpx.get(f"{prefixed.url}{PREFIX}/docs", trust_env=False).text
    document = httpx.get(f"{prefixed.url}{PREFIX}/openapi.json", trust_env=False).json()
    assert '"./docs/files/docs.js"' in page
    script = httpx.get(f"{prefixed.url}{PREFIX}/docs/files/docs.js", trust_env=False)
    assert (script.status_code, "openapi.json" in script.text) == (200, True)
    assert document["servers"] == [{"url": PREFIX}]


def test_a_path_that_only_begins_like_the_prefix_is_none(prefixed):
    answer = httpx.get(f"{prefixed.url}{PREFIX}x/livez", trust_env=False)
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("given", "status"),
    [("", 401), ("Bearer another", 401), ("é", 401), (f"Bearer {TOKEN}", 200)],
)
def test_metrics_are_read_at_their_own_address_with_the_token_only(prefixed, given, status):
    url = f"http://127.0.0.2:{prefixed.metrics_port}/metrics"
    answer = httpx.get(url, headers={"Authorization": given.encode()}, trust_env=False)
    assert answer.status_code == status
    assert ("peterrec_registry_up" in answer.text) == (status == 200)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url.replace("127.0.0.2", "127.0.0.1"), trust_env=False)


def test_the_console_shows_traffic_although_the_metrics_need_a_token(prefixed):
    with prefixed.client() as client:
        answer = client.get("/activity")
    assert answer.status_code == 200, answer.text


def test_top_reads_metrics_that_need_a_token(prefixed):
    url = f"http://127.0.0.2:{prefixed.metrics_port}/metrics"
    command = [sys.executable, "-P", "-m", "peterrec", "top", "--once", "--interval", "0.2"]
    command += ["--url", prefixed.url, "--metrics-url", url]
    without = subprocess.run(command, capture_output=True, text=True)
    assert without.returncode != 0
    assert "401" in without.stderr
    environment = os.environ | {"PETERREC_METRICS_TOKEN": TOKEN}
    shown = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0, shown.stderr


def test_no_child_process_knows_the_metrics_token(prefixed):
    for child in prefixed.children():
        assert TOKEN not in str(child.environ())


@pytest.mark.slow
def test_a_prefix_that_begins_like_a_route_is_refused(workshop, tmp_path):
    with (
        pytest.raises(AssertionError, match=r"PETERREC_ROOT_PATH: '/tasks' begins like a route"),
        running_server(workshop.folder, tmp_path, root_path="/tasks"),
    ):
        pass


@dataclass(frozen=True)
class Proxy:
    """What `Clients` need to ask the proxy."""

    port: int
    key: str


@contextmanager
def nginx(folder: Path, ports: list[int]) -> Iterator[int]:
    """Run nginx with the configuration of `deploy/`, before these ports; yields its own."""
    port = free_port()
    server = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    for written, real in zip((8000, 8001), ports, strict=True):
        assert f"127.0.0.1:{written}" in server
        server = server.replace(f"127.0.0.1:{written}", f"127.0.0.1:{real}")
    server = server.replace("listen 8080", f"listen 127.0.0.1:{port}")
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "\n".join(f"{name}_temp_path {folder}/{name};" for name in temporary)
    whole = f"events {{}}\nhttp {{\naccess_log off;\n{paths}\n{server}\n}}\n"
    whole = f"daemon off;\nworker_processes 1;\npid {folder}/pid;\n{whole}"
    (folder / "nginx.conf").write_text(whole, encoding="utf-8")
    command = ["nginx", "-p", str(folder), "-e", f"{folder}/error.log", "-c", "nginx.conf"]
    process = subprocess.Popen(command)
    try:
        eventually(lambda: answers(port))
        yield port
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{PREFIX}/readyz", trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
async def test_a_rolling_restart_of_two_replicas_behind_nginx_loses_nothing(
    workshop, redis_url, tmp_path
):
    ports = [free_port(), free_port()]
    shared = {"redis_url": redis_url, "redis_prefix": f"test-{uuid4().hex}"}
    key = await first_key(redis_url, shared["redis_prefix"])

    def replica(number: int, life: int):
        return running_server(
            workshop.folder,
            tmp_path / f"replica{number}-{life}",
            workers=1,
            port=ports[number],
            root_path=PREFIX,
            drain_delay_s=1.0,
            data_dir=tmp_path / f"data{number}",
            **shared,
        )

    running = [replica(number, 0) for number in range(2)]
    servers = [await asyncio.to_thread(each.__enter__) for each in running]
    servers[0].key = key
    with servers[0].client() as client:
        await soon(lambda: client.get("/tasks").status_code == 200)
        push(client, "gender", workshop.bundle("classification", seed=1))
    servers[1].key = key
    with servers[1].client() as client:
        ask = {"json": {"history": [1, 2]}}
        await soon(lambda: client.post("/tasks/gender/predict", **ask).is_success)
    with nginx(tmp_path, ports) as port:
        clients = Clients(Proxy(port, key), f"{PREFIX}/tasks/gender/predict", [{"history": [1, 2]}])
        asking = asyncio.create_task(clients.run(CLIENTS))
        await clients.answered(MANY)
        for number in range(2):
            await asyncio.to_thread(running[number].__exit__, None, None, None)
            assert servers[number].process.returncode == 0
            await clients.answered(MANY)
            running[number] = replica(number, 1)
            servers[number] = await asyncio.to_thread(running[number].__enter__)
            await clients.answered(MANY)
        clients.stop()
        await asking
    for each in running:
        each.__exit__(None, None, None)
    load = clients.load
    assert (load.broken, load.refused, load.statuses) == ([], 0, {200})
    assert len({str(reply.body["predictions"][0]["scores"]) for reply in load.replies}) == 1
