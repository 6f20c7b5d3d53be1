"""Processes that pretrain together end where one process with the whole batch ends."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from peterrec.model.files.tensors import read_tensors, write_tensors
from peterrec.model.training.data_parallel import ALONE, Workers
from peterrec.model.training.events import TrainingEvent
from peterrec.model.training.pretrain.pretrain import pretrain
from tests.model.small_shop import TINY, shop_histories

CASES = {
    "full": TINY,
    "sampled": replace(TINY, loss="sampled", contrast_weight=0.0),
    "uneven": replace(TINY, batch_size=7, is_causal=False),
}


def train_as(rank, count, folder):
    """One of the processes: pretrain every case and write down what it ends with."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    for name, settings in CASES.items():
        write_result(folder, f"{name}-{rank}", settings, Workers(rank, count))
    agreed = Workers(rank, count).of_first(0.1 + rank, torch.device("cpu"))
    (Path(folder) / f"agreed-{rank}").write_text(repr(agreed))
    dist.destroy_process_group()


def write_result(folder, name, settings, workers):
    heard: list[TrainingEvent] = []
    trained = pretrain(shop_histories(), settings, listener=heard.append, workers=workers)
    tensors = {**trained.backbone.state_dict(), **trained.output.state_dict()}
    write_tensors(Path(folder) / f"{name}.safetensors", tensors)
    losses = [epoch["train_loss"] for epoch in trained.record["epochs"]]
    (Path(folder) / f"{name}.json").write_text(json.dumps(losses))
    (Path(folder) / f"{name}.heard").write_text(str(len(heard)))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    spawn(train_as, args=(2, str(folder)), nprocs=2)
    for name, settings in CASES.items():
        write_result(folder, f"{name}-alone", settings, ALONE)
    return folder


@pytest.mark.slow
def test_all_processes_decide_by_the_number_of_the_first(results):
    assert [(results / f"agreed-{rank}").read_text() for rank in (0, 1)] == ["0.1", "0.1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_follow_the_losses_of_one(results, name):
    alone = json.loads((results / f"{name}-alone.json").read_text())
    for rank in (0, 1):
        together = json.loads((results / f"{name}-{rank}.json").read_text())
        assert together == pytest.approx(alone, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_processes_end_with_the_same_weights(results, name):
    first, second = (read_tensors(results / f"{name}-{rank}.safetensors") for rank in (0, 1))
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


@pytest.mark.slow
def test_of_several_processes_only_the_first_is_heard_of(results):
    heard = [(results / f"full-{rank}.heard").read_text() for rank in (0, 1)]
    assert heard == [(results / "full-alone.heard").read_text(), "0"]


def test_shares_cover_every_row_once():
    parts = [list(range(7))[Workers(rank, 3).share(7)] for rank in range(3)]
    assert parts == [[0, 1], [2, 3], [4, 5, 6]]


def test_a_process_may_have_no_row_of_a_small_batch():
    assert [len(range(1)[Workers(rank, 2).share(1)]) for rank in (0, 1)] == [0, 1]
