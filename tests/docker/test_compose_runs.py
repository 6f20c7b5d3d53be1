"""The compose file, run: service, registry, metrics and demo, by `tests/docker/compose_runner.py`.

Grafana is not among Debian's packages, so its container is not started; the compose file's tests
read what it says about it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import confined
from tests.docker.compose_runner import Stack, missing_programs, stack
from tests.waiting import eventually

WHY_NOT = confined.why_not() or (
    f"not installed: {', '.join(missing_programs())}" if missing_programs() else ""
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),  # the demo is trained, and all kernels are compiled
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
START_S = 600
USER = 10001


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`docker compose --profile demo up`, but for Grafana."""
    folder: Path = tmp_path_factory.mktemp("compose")
    with stack(folder, "demo") as services:
        services.up("redis", "prometheus", "peterrec", "demo", within_s=START_S)
        yield services


def value(running: Stack, query: str) -> float:
    """The value of a query that Prometheus answers; 0 if it has none."""
    answer = running.get(f"http://prometheus:9090/api/v1/query?query={query}")
    found = answer["data"]["result"]
    return float(found[0]["value"][1]) if found else 0.0


def test_the_demo_is_trained_registered_and_asked(running):
    log = running.containers["demo"]
    eventually(lambda: "Served on http://peterrec:8000" in log.text, START_S)
    assert log.process.poll() is None, log.text
    assert "$ peterrec pretrain" in running.containers["demo-backbone"].text


def test_prometheus_finds_the_service_by_its_name_and_sees_the_demos_traffic(running):
    eventually(lambda: value(running, 'up{job="peterrec"}') == 1, 60)
    asked = 'count(peterrec_requests_total{outcome="ok"}>0)'
    eventually(lambda: value(running, asked) >= 5, 90)


def test_the_service_is_ready_and_its_processes_are_the_images_user(running):
    assert running.get("http://peterrec:8000/readyz")["status"] == "ready"
    pid = running.containers["peterrec"].process.pid
    for child in (pid, *children(pid)):
        assert Path(f"/proc/{child}").stat().st_uid == USER


def test_the_root_of_the_service_cannot_be_written_and_its_data_can(running):
    assert running.exec("peterrec", "touch", "/opt/x").returncode != 0
    assert running.exec("peterrec", "touch", "/backbone/x").returncode != 0
    assert running.exec("peterrec", "touch", "/var/lib/peterrec/x").returncode == 0


def test_redis_keeps_every_write(running):
    asked = running.exec("redis", "redis-cli", "config", "get", "appendonly")
    assert asked.stdout.split() == ["appendonly", "yes"]
    policy = running.exec("redis", "redis-cli", "config", "get", "maxmemory-policy")
    assert policy.stdout.split()[-1] == "noeviction"


def test_a_second_start_makes_nothing_again(running):
    again = running.run("demo-backbone")
    assert again.process.wait(120) == 0
    assert "is there already: nothing to do" in again.text


def test_the_service_stops_within_its_grace_period(running):
    assert running.stop("peterrec") == 0


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in map(int, found) for each in (child, *children(child))]
