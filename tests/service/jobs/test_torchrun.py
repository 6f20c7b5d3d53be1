"""``torchrun`` starts several processes of one pretraining, of which the first writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from peterrec.model.data.sample_data import write_sample_data

LIMIT_S = 120


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write_sample_data(tmp_path / "shop", users=60)
    return tmp_path / "shop"


@pytest.mark.slow
def test_two_processes_of_torchrun_write_one_backbone(shop, tmp_path):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--no-python", str(Path(sys.executable).parent / "peterrec"), "pretrain"),
        *("--interactions", str(shop / "histories.parquet")),
        *("--out", str(tmp_path / "backbone"), "--channels", "8", "--dilations", "1,2"),
        *("--max-len", "10", "--epochs", "1", "--precision", "bfloat16"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "backbone" / "training.json").read_text())
    assert record["settings"]["precision"] == "bfloat16"
    assert len(record["epochs"]) == 1
    assert done.stdout.count("best epoch") == 1
