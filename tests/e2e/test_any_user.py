"""The server as a hardened container runs it: any user, no home, a root that can't be written."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import confined
from tests.docker.queries import ROOT
from tests.e2e.conftest import push
from tests.e2e.running import RunningServer, Start, running_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),  # it compiles all kernels
    pytest.mark.skipif(bool(confined.why_not()), reason=confined.why_not()),
]


@pytest.fixture(scope="module")
def server(workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server as user 54321 without a name, whose data folder is all that it may write."""
    folder = tmp_path_factory.mktemp("stranger")
    root, data = folder / "root", folder / "data"
    root.mkdir()
    data.mkdir()
    workshop.folder.chmod(0o755)
    seen = [Path(sys.prefix), Path(sys.base_prefix), ROOT, workshop.folder]
    program = [*confined.stranger(root, seen, data), *Start().program]
    start = Start(program, within_s=300)
    with running_server(workshop.folder, folder, start=start, data_dir=data) as server:
        yield server


def test_a_stranger_on_a_read_only_root_serves_predictions(server, workshop):
    with server.client() as client:
        push(client, "gender", workshop.bundle("classification", seed=1))
        answer = client.post("/tasks/gender/predict", json={"history": ["item-1", "item-2"]})
    assert answer.status_code == 200, answer.text
    assert server.child("device").uids().real == confined.STRANGER


def test_its_compiled_kernels_are_kept_in_the_data_folder(server):
    kept = [*(server.folder / "data" / "kernels").rglob("*.nbc")]
    assert kept
    assert {path.stat().st_uid for path in kept} == {confined.STRANGER}
    assert server.log.count("event=kernels_loading") == 1
    assert "Traceback" not in server.log
