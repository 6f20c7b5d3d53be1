"""``peterrec pretrain --ray``: the losses of one process, also if one of several is lost."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from peterrec.model.data.sample_data import write_sample_data
from peterrec.service.system.program import peterrec
from tests.service.cli.command_line import run
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(540)]

EPOCHS = 12
LIMIT_S = 240.0


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write_sample_data(tmp_path / "shop", users=400)
    return tmp_path / "shop"


def losses(folder: Path) -> list[float]:
    record = json.loads((folder / "training.json").read_text())
    return [epoch["train_loss"] for epoch in record["epochs"]]


def beginning(out: Path) -> tuple[int, int]:
    """How many processes the newest start has, and the epochs that it had from a checkpoint."""
    path = out / "training.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines:
        return 0, 0
    started = json.loads(lines[0])
    return started["machine"]["processes"], started["epochs_done"]


def test_neither_a_killed_process_nor_a_killed_node_changes_a_loss(shop, cluster, tmp_path):
    options = (
        *("--interactions", str(shop / "histories.parquet"), "--channels", "16"),
        *("--dilations", "1,2,4", "--max-len", "20", "--epochs", str(EPOCHS), "--batch-size", "16"),
        *("--patience", str(EPOCHS)),
    )
    run("pretrain", *options, "--out", tmp_path / "alone", "-q")
    out = tmp_path / "on_ray"
    command = peterrec("pretrain", *options, "--out", str(out), "--ray", cluster.address)
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ})
    try:
        eventually((out / "checkpoint.safetensors").exists, LIMIT_S)
        assert len(cluster.workers("RayTrainWorker")) == 2
        cluster.workers("RayTrainWorker")[1].kill()
        eventually(lambda: beginning(out)[1] > 0, LIMIT_S)
        epochs = beginning(out)[1]
        cluster.kill_node("RayTrainWorker")
        assert running.wait(LIMIT_S) == 0, (tmp_path / "log").read_text()
    finally:
        running.kill()
        running.wait()
        cluster.restore()
    assert beginning(out)[0] == 1
    assert epochs <= beginning(out)[1] < EPOCHS
    assert losses(out) == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)
