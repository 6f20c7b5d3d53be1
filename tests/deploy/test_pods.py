"""A pod of the manifests, run by `tests/deploy/pods.py`: the server with its registry's Redis."""

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import confined
from tests.deploy.manifests import kustomize, one, render
from tests.deploy.pods import Node, Pod, missing_programs
from tests.docker.images import write_programs
from tests.docker.network import Network
from tests.service.random_bundles import Workshop

WHY_NOT = confined.why_not() or (
    f"not installed: {', '.join(missing_programs())}" if missing_programs() else ""
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # it compiles all kernels
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.skipif(not kustomize(), reason="needs kustomize or kubectl"),
]


class Cluster(NamedTuple):
    """What runs."""

    server: Pod
    redis: Pod


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder: Path = tmp_path_factory.mktemp("node")
    folder.chmod(0o755)
    workshop = Workshop(tmp_path_factory.mktemp("backbone"))
    workshop.folder.chmod(0o755)
    (secret,) = [each for each in render("overlays/dev") if each["kind"] == "Secret"]
    name = secret["metadata"]["name"]
    services = [e["metadata"]["name"] for e in render("overlays/dev") if e["kind"] == "Service"]
    write_programs(folder / "bin")
    with Network(folder, tuple(services)) as network:
        yield Node(folder, network, {name: decoded(secret)}, workshop.folder)


def decoded(secret: dict) -> dict[str, str]:
    return {key: b64decode(value).decode() for key, value in secret["data"].items()}


@pytest.fixture(scope="module")
def cluster(node: Node) -> Iterator[Cluster]:
    """The overlay `dev`."""
    pods = [one("overlays/dev", "Deployment", n) for n in ("peterrec-redis", "peterrec")]
    redis_spec, server_spec = (each["spec"]["template"]["spec"] for each in pods)
    redis = node.run("redis", redis_spec, is_service=False)
    redis.start_up()
    server = node.run("server", server_spec)
    server.start_up()
    yield Cluster(server, redis)
    for pod in (server, redis):
        if pod.process.poll() is None:
            pod.stop()


def test_the_server_gets_ready_and_uses_the_redis_that_its_secret_names(cluster, node):
    assert '"status":"ready"' in node.network.get("http://peterrec:8000/readyz").replace(" ", "")
    keys = node.network.inside("redis-cli", "-h", "127.0.0.1", "dbsize").stdout
    assert int(keys) > 0


def test_every_probe_passes_and_metrics_are_at_their_port(cluster, node):
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert cluster.server.passes(kind), kind
    assert "peterrec_queue_depth" in node.network.get("http://peterrec:9100/metrics")


def test_the_log_has_a_json_object_a_line(cluster):
    events = [json.loads(line)["event"] for line in cluster.server.text.splitlines()]
    assert "serving" in events


def test_a_server_that_goes_answers_while_its_hook_sleeps_and_ends_in_time(cluster):
    assert cluster.server.stop() == 0


def test_kserves_container_finds_its_backbone_and_answers_kserves_probes(node, cluster):
    assert cluster.redis.passes("readinessProbe")
    pod = node.run("kserve", one("kserve", "ServingRuntime")["spec"])
    try:
        pod.start_up()
        assert pod.passes("livenessProbe")
    finally:
        assert pod.stop() == 0
