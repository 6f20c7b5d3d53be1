"""Requests that schemathesis makes of the OpenAPI document, right ones and wrong ones."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peterrec.model.kinds import KINDS
from tests.e2e.conftest import push
from tests.e2e.running import RunningServer, running_server
from tests.service.random_bundles import Workshop

CONFIG = Path(__file__).parent / "schemathesis.toml"
PATH = os.pathsep.join(map(str, (Path(__file__).parents[2], os.environ.get("PYTHONPATH", ""))))
HOOKS = "tests.e2e.schemathesis_hooks"
SECONDS = 90


@pytest.fixture
def own_server(workshop: Workshop, tmp_path: Path) -> Iterator[RunningServer]:
    """A server whose tasks, keys and tenants may be lost."""
    with running_server(workshop.folder, tmp_path / "server") as server:
        with server.client() as client:
            for kind in KINDS:
                push(client, kind, workshop.bundle(kind, seed=1))
        yield server


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_schemathesis_finds_nothing(own_server: RunningServer, tmp_path: Path):
    program = Path(sys.executable).parent / "schemathesis"
    document = f"{own_server.url}/openapi.json"
    key_id = own_server.key.split("_")[1]
    options = [f"--header=X-API-Key: {own_server.key}", "--checks=all", "--continue-on-failure"]
    bounds = ["--max-examples=10", f"--max-time={SECONDS}", "--suppress-health-check=all"]
    found = subprocess.run(
        [program, f"--config-file={CONFIG}", "run", *options, *bounds, "--seed=1", document],
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": HOOKS, "OWN_KEY_ID": key_id, "PYTHONPATH": PATH},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout
    print(found.stdout)
