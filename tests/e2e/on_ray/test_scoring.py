"""``peterrec score --ray``: actors and machines may be lost, and rows may not."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peterrec.service.system.program import peterrec
from tests.service.jobs.score.conftest import KINDS, Base, answers, base  # noqa: F401  # a fixture
from tests.service.random_bundles import ITEMS
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

USERS, PART_ROWS = 2000, 30
LIMIT_S = 800.0


@pytest.fixture(scope="module")
def users(tmp_path_factory) -> Path:
    random = np.random.default_rng(7)
    histories = [[ITEMS[i] for i in random.integers(0, len(ITEMS), 30)] for _ in range(USERS)]
    table = pa.table({"user_id": np.arange(USERS), "history": histories})
    path: Path = tmp_path_factory.mktemp("users") / "users.parquet"
    pq.write_table(table, path)
    return path


def finished_parts(out: Path) -> int:
    """How many parts have files; the journal gets them in order, so it waits for a lost one."""
    return len(list((out / "task=value").glob("*.parquet")))


def files(out: Path, task: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / f"task={task}").iterdir()}


def test_a_killed_actor_and_a_killed_node_lose_and_double_nothing(
    base: Base,  # noqa: F811  # the fixture
    users,
    cluster,
    tmp_path,
):
    options = ("--part-rows", str(PART_ROWS))
    base.score(tmp_path / "alone", *options, users=users)
    out = tmp_path / "on_ray"
    command = peterrec(
        *("score", "--users", str(users), "--backbone", str(base.backbone), "--out", str(out)),
        *("--bundles", str(base.bundles), "--tasks", "all", *options, "--json"),
        *("--ray", cluster.address, "--ray-actors", "2"),
    )
    with (tmp_path / "err").open("wb") as err:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, env={**os.environ})
    try:
        eventually(lambda: finished_parts(out) >= 3, LIMIT_S)
        cluster.workers("MapWorker")[0].kill()
        before = finished_parts(out)
        eventually(lambda: finished_parts(out) > before + 2, LIMIT_S)
        cluster.kill_node("MapWorker")
        assert finished_parts(out) < USERS / PART_ROWS, "nothing was left to lose"
        printed, _ = running.communicate(timeout=LIMIT_S)
    finally:
        running.kill()
        running.wait()
        cluster.restore()
    assert running.returncode == 0, (tmp_path / "err").read_text()
    assert json.loads(printed)["rows"] == USERS
    for task in (*KINDS, "listed"):
        scored = answers(out, task)["user_id"].to_pylist()
        assert sorted(scored) == list(range(USERS)), "a user is missing, or is there twice"
        assert files(out, task) == files(tmp_path / "alone", task), "bits differ"
