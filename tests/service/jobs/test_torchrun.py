"""``torchrun`` starts several processes of one pretraining, of which the first writes."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from peterrec.model.data.sample_data import write_sample_data
from tests.e2e.running import free_port
from tests.service.cli.command_line import run
from tests.waiting import eventually

LIMIT_S = 200
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--no-python")
PETERREC = str(Path(sys.executable).parent / "peterrec")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write_sample_data(tmp_path / "shop", users=200)
    return tmp_path / "shop" / "histories.parquet"


def options(shop: Path, out: Path, *more: str) -> list[str]:
    size = ("--channels", "16", "--dilations", "1,2", "--max-len", "20", "--batch-size", "16")
    return ["pretrain", "--interactions", str(shop), "--out", str(out), *size, *more]


def losses(out: Path) -> list[float]:
    record = json.loads((out / "training.json").read_text())
    return [epoch["train_loss"] for epoch in record["epochs"]]


def events(out: Path) -> list[dict]:
    """What the newest start of a training has told so far."""
    path = out / "training.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def beginning(out: Path) -> tuple[int, int]:
    """How many processes the newest start has, and the epochs that it had from a checkpoint."""
    started = events(out)[0]
    return started["machine"]["processes"], started["epochs_done"]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 1e-2)])
def test_two_processes_write_one_backbone_with_the_losses_of_one(
    precision, tolerance, shop, tmp_path
):
    alone, out = tmp_path / "alone", tmp_path / "together"
    more = ("--precision", precision, "--start", "random")
    run(*options(shop, alone, "--epochs", "2", *more))
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--", PETERREC]
    command += options(shop, out, "--epochs", "2", *more)
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == 1
    assert beginning(out) == (2, 0)
    assert losses(out) == pytest.approx(losses(alone), rel=tolerance)


@contextmanager
def node(port: int, log: Path, command: Sequence[str], *, is_host: bool) -> Iterator[psutil.Popen]:
    """A ``torchrun`` with one process, of a training by one or two such nodes."""
    meeting = (f"is_host={int(is_host)}", "last_call_timeout=5", "keep_alive_interval=1")
    agent = (
        *("--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "5", "--rdzv-id", "shop"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"),
        *("--rdzv-conf", ",".join(meeting)),
    )
    with log.open("wb") as file:
        running = psutil.Popen([*TORCHRUN, *agent, *command], stdout=file, stderr=file)
    try:
        yield running
    finally:
        kill_all(running)


def kill_all(running: psutil.Popen) -> None:
    if running.poll() is None:
        for process in (*running.children(recursive=True), running):
            process.kill()
    running.wait()


def have_finished_an_epoch(processes: int, out: Path) -> bool:
    is_saved = (out / "checkpoint.safetensors").exists()
    return is_saved and bool(events(out)) and beginning(out)[0] == processes


def test_a_lost_node_leaves_the_other_to_go_on_from_the_last_epoch(shop, tmp_path):
    alone, out, port = tmp_path / "alone", tmp_path / "together", free_port()
    run(*options(shop, alone, "--epochs", "6"))
    command = [PETERREC, *options(shop, out, "--epochs", "6", "--resume")]
    with (
        node(port, tmp_path / "first", command, is_host=True) as first,
        node(port, tmp_path / "second", command, is_host=False) as second,
    ):
        eventually(lambda: have_finished_an_epoch(2, out) or first.poll() is not None, LIMIT_S)
        assert first.poll() is None, "nothing was left to lose"
        kill_all(second)
        assert first.wait(LIMIT_S) == 0, (tmp_path / "first").read_text()
    processes, epochs = beginning(out)
    assert processes == 1
    assert 1 <= epochs < 6
    assert losses(out) == pytest.approx(losses(alone), rel=1e-3)
