"""The application of Ray Serve passes the tests of the service itself, and scales by its queue."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import yaml

from peterrec.service.errors import SettingsInvalid
from tests.e2e.conftest import BUNDLE_LIMIT, first_key, push
from tests.e2e.running import LOOKS_BEHIND, ServerElsewhere, free_port
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
SERVE_FILE = ROOT / "deploy" / "ray" / "serve.yaml"
LIMIT_S = 500.0
ROWS_PER_REPLICA = 20
"""Few, since a tiny network leaves no long queue. The end-to-end tests send nothing that waits for
longer than a look at the queue, so there is one replica when they push and ask at once."""

END_SERVE = "import sys, ray, ray.serve as s; ray.init(sys.argv[1]); s.shutdown()"
"""The application and its replicas outlive the command that has started them."""

RUN_HERE = (
    *("predictions", "administration", "availability", "filters", "item_tables", "commands"),
    *("user_vectors", "other_outputs", "first_guesses", "msgpack", "open_inference", "rollout"),
    *("predict_batch", "pushing", "console_calls"),
)
"""The service's own end-to-end tests that call a server; those that look behind it skip themselves,
and of the others all but `NOT_HERE` must pass."""

NOT_HERE = {
    "predictions.py::test_a_request_id_that_is_not_sane_is_replaced": "it is refused: see below",
}
"""Tests of what Serve does otherwise, with the reason."""


@pytest.fixture(scope="module")
def on_ray(workshop, redis_url, cluster, tmp_path_factory) -> Iterator[ServerElsewhere]:
    """The application of ``deploy/ray/serve.yaml``, with small numbers and other addresses."""
    folder, port, prefix = tmp_path_factory.mktemp("serve"), free_port(), f"test-{uuid4().hex}"
    document = yaml.safe_load(SERVE_FILE.read_text())
    document["proxy_location"], document["http_options"]["port"] = "HeadOnly", port
    application = document["applications"][0]
    application["args"] |= {
        "backbone_dir": str(workshop.folder),
        "redis_url": redis_url,
        "redis_prefix": prefix,
        "data_dir": str(folder / "data"),
        "threads": "1",
        "workers": "1",
        "metrics_port": "0",
        "bundle_size_limit_bytes": str(BUNDLE_LIMIT),
    }
    deployment = application["deployments"][0]
    deployment["ray_actor_options"]["num_cpus"] = 1
    scaling = deployment["autoscaling_config"]
    scaling |= {"max_replicas": 2, "upscale_delay_s": 0, "look_back_period_s": 10}
    scaling["policy"]["policy_kwargs"]["rows_per_replica"] = ROWS_PER_REPLICA
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(document))
    key = asyncio.run(first_key(redis_url, prefix))
    server = ServerElsewhere(f"http://127.0.0.1:{port}", key)
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", cluster.address, path]
    environment = {**os.environ, "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5"}
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            eventually(lambda: server.is_ready() or running.poll() is not None, LIMIT_S)
            assert running.poll() is None, (folder / "log").read_text()
            yield server
        finally:
            running.terminate()
            running.wait()
            subprocess.run([sys.executable, "-c", END_SERVE, cluster.address], check=True)


def test_the_service_passes_its_own_end_to_end_tests(on_ray):
    files = [f"tests/e2e/test_{name}.py" for name in RUN_HERE]
    left_out = [f"--deselect=tests/e2e/test_{name}" for name in NOT_HERE]
    options = ("-q", "-rs", "-p", "no:cacheprovider", "-m", "not gpu and not slow")
    environment = {**os.environ, "TEST_SERVER": on_ray.url, "TEST_SERVER_KEY": on_ray.key}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *left_out, *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all(line.endswith(LOOKS_BEHIND) for line in skipped)


def test_a_request_id_that_serve_would_repeat_is_refused(on_ray):
    with on_ray.client() as api:
        answer = api.get("/backbone", headers={"X-Request-Id": "no spaces please"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert answer.json()["request_id"] != "no spaces please"


def test_a_second_replica_comes_while_rows_wait(on_ray, workshop, cluster):
    body: dict[str, list[dict[str, list[int]]]] = {"instances": [{"history": []}] * 100}
    is_over = False

    def ask() -> None:
        with on_ray.client() as api:
            while not is_over:
                with suppress(httpx.TransportError):
                    api.post("/tasks/classification/predict", json=body)

    with on_ray.client() as api:
        push(api, "classification", workshop.bundle("classification", seed=1))
    with ThreadPoolExecutor(8) as callers:
        for _ in range(8):
            callers.submit(ask)
        try:
            eventually(lambda: len(cluster.workers("ServeReplica")) == 2, 120)
        finally:
            is_over = True


@pytest.mark.parametrize(
    ("given", "problem"), [({}, "no Redis is set"), ({"auth": "off"}, "auth is off")]
)
def test_what_replicas_cannot_share_is_refused(given, problem, workshop, cluster):
    from peterrec.service.processes.ray_serve import replica_settings

    redis = {"redis_url": "redis://nowhere"} if given else {}
    with pytest.raises(SettingsInvalid, match=problem):
        replica_settings({"backbone_dir": str(workshop.folder), **redis, **given})
