"""``training.jsonl`` has every epoch once, in whole lines, whatever happens to the training."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from peterrec.model.errors import PathUnusable, TrainingFileInvalid
from peterrec.model.progress import Progress
from peterrec.model.training.events import PartMeasured, TrainingStarted
from peterrec.model.training.finetune.finetune import finetune
from peterrec.model.training.finetune.many_tasks import TaskToTrain, finetune_many
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.pretrain.pretrain import pretrain
from peterrec.model.training.training_file import (
    SCHEMA,
    TrainingFile,
    line_of,
    read_training_file,
    training_file_of,
    write_training_file,
)
from tests.model.small_shop import TINY, groups, shop_histories

SETTINGS = FinetuneSettings(
    kind="classification", bottleneck=4, blocks=(1,), epochs=2, batch_size=16, seed=1
)

STARTED = TrainingStarted("pretrain", settings={"epochs": 2}, data={}, machine={})


class Interrupted(Exception):
    """What a test raises in the middle of an epoch."""


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def epochs_and_parts(path: Path) -> list[tuple[int, str]]:
    return [(line["epoch"], line["part"]) for line in lines_of(path) if line["event"] == "measured"]


def test_pretraining_writes_what_is_trained_then_each_epoch_and_part_then_the_end(tmp_path):
    path = tmp_path / "training.jsonl"
    file = TrainingFile(path, warnings=["a doubtful column"])
    trained = pretrain(shop_histories(), TINY, listener=file.hear)
    file.close()
    first, *between, last = lines_of(path)
    assert (first["schema"], first["event"], first["training"]) == (SCHEMA, "started", "pretrain")
    assert first["warnings"] == ["a doubtful column"]
    assert first["settings"]["channels"] == 8
    assert first["data"]["data_digest"] == shop_histories().digest()
    assert first["machine"].keys() >= {"device", "threads", "python", "torch", "peterrec"}
    assert [(line["epoch"], line["part"]) for line in between] == [
        (epoch, part) for epoch in (1, 2) for part in ("train", "validation")
    ]
    assert [line["loss"] for line in between[::2]] == [
        epoch["train_loss"] for epoch in trained.record["epochs"]
    ]
    assert [line["metrics"] for line in between[1::2]] == [
        epoch["validation_metrics"] for epoch in trained.record["epochs"]
    ]
    assert between[0].keys() >= {
        "time",
        "loss",
        "rows",
        "rows_per_second",
        "seconds",
        "learning_rate",
        "peak_rss_bytes",
    }
    assert (last["event"], last["epochs"]) == ("ended", 2)
    assert last["best_epoch"] == trained.record["best_epoch"] + 1


def test_a_task_writes_its_test_and_its_temperature(loaded, tmp_path):
    path = training_file_of(tmp_path / "gender.bundle")
    file = TrainingFile(path)
    task = finetune(loaded, shop_histories(), groups(), SETTINGS, listener=file.hear)
    file.close()
    assert path.name == "gender.training.jsonl"
    log = read_training_file(path)
    assert log is not None
    (test,) = log.of_part("test")
    assert test["metrics"] == task.metrics
    assert test["rows"] == len(task.split.test)
    assert log.started["backbone"] == loaded.fingerprint
    assert log.ended is not None
    assert log.ended["temperature"] == task.temperature
    assert log.of_part("train")[0]["head_learning_rate"] == SETTINGS.head_learning_rate
    assert log.of_part("validation")[0]["metrics"].keys() >= {"accuracy", "macro_f1"}


def test_the_lines_can_be_written_from_the_record_of_a_run_that_nobody_followed(loaded, tmp_path):
    live, later = tmp_path / "live.jsonl", tmp_path / "later.jsonl"
    file = TrainingFile(live)
    task = finetune(loaded, shop_histories(), groups(), SETTINGS, listener=file.hear)
    file.close()
    write_training_file(later, json.loads(json.dumps(task.record)))
    differing = [
        (before["event"], name)
        for before, after in zip(lines_of(live), lines_of(later), strict=True)
        for name in before
        if after[name] != before[name]
    ]
    the_end = {("measured", "time"), ("chosen", "time")}  # of the test and the choice
    assert set(differing) <= the_end
    assert read_training_file(later) is not None


def test_the_lines_of_a_backbone_can_be_written_from_its_record(tmp_path):
    live, later = tmp_path / "live.jsonl", tmp_path / "later.jsonl"
    file = TrainingFile(live)
    trained = pretrain(shop_histories(), replace(TINY, epochs=1), listener=file.hear)
    file.close()
    write_training_file(later, trained.record)
    whole = lines_of(live)[-1].pop("seconds"), lines_of(later)[-1].pop("seconds")
    assert whole[0] >= whole[1]  # the record counts the epochs alone
    assert lines_of(live)[:-1] == lines_of(later)[:-1]


def test_listening_changes_no_weight(loaded, tmp_path):
    file = TrainingFile(tmp_path / "training.jsonl")
    heard = finetune(loaded, shop_histories(), groups(), SETTINGS, listener=file.hear)
    file.close()
    unheard = finetune(loaded, shop_histories(), groups(), SETTINGS)
    assert all(heard.patch[name].equal(tensor) for name, tensor in unheard.patch.items())
    assert heard.head.weight.equal(unheard.head.weight)
    assert heard.metrics == unheard.metrics


def test_each_of_many_tasks_is_heard_of_by_its_own_listener(loaded, tmp_path):
    files = [TrainingFile(tmp_path / f"{name}.training.jsonl") for name in ("one", "two")]
    settings = [replace(SETTINGS, epochs=epochs) for epochs in (1, 3)]
    tasks = [
        TaskToTrain(groups(), own, listener=file.hear)
        for own, file in zip(settings, files, strict=True)
    ]
    trained = finetune_many(loaded, shop_histories(), tasks)
    logs = [read_training_file(tmp_path / f"{name}.training.jsonl") for name in ("one", "two")]
    for file in files:
        file.close()
    for log, task, own in zip(logs, trained, settings, strict=True):
        assert log is not None
        losses = [epoch["validation_loss"] for epoch in task.record["epochs"]]
        assert [line["loss"] for line in log.of_part("validation")] == losses
        assert len(losses) == own.epochs
        assert log.of_part("validation")[0]["metrics"]
        assert log.of_part("test")[0]["metrics"] == task.metrics


def test_a_resumed_run_has_every_epoch_once(tmp_path):
    def interrupt(progress: Progress) -> None:
        if progress.note.startswith("epoch 3/4, loss"):
            raise Interrupted

    path, settings = tmp_path / "training.jsonl", replace(TINY, epochs=4)
    file = TrainingFile(path)
    with pytest.raises(Interrupted):
        pretrain(
            shop_histories(),
            settings,
            checkpoints=tmp_path,
            on_progress=interrupt,
            listener=file.hear,
        )
    file.close()
    before = lines_of(path)
    assert epochs_and_parts(path)[-1] == (2, "validation")
    file = TrainingFile(path)
    pretrain(shop_histories(), settings, checkpoints=tmp_path, resume=True, listener=file.hear)
    file.close()
    after = lines_of(path)
    assert epochs_and_parts(path) == [
        (epoch, part) for epoch in (1, 2, 3, 4) for part in ("train", "validation")
    ]
    assert after[1:5] == before[1:5]
    assert after[0]["epochs_done"] == 2
    assert after[-1]["event"] == "ended"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_whole_lines_and_is_told_once_and_later_lines_catch_up(tmp_path):
    told: list[str] = []
    path = tmp_path / "training.jsonl"
    file = TrainingFile(path, on_notice=told.append)
    file.hear(STARTED)
    with largest_file(path.stat().st_size + 20):
        file.hear(PartMeasured(1, "train", loss=2.0))
        file.hear(PartMeasured(1, "validation", loss=2.1))
        assert [line["event"] for line in lines_of(path)] == ["started"]
    file.hear(PartMeasured(2, "train", loss=1.0))
    file.close()
    assert epochs_and_parts(path) == [(1, "train"), (1, "validation"), (2, "train")]
    (notice,) = told
    assert str(path) in notice
    assert "goes on" in notice


def test_an_earlier_runs_lines_stay_until_another_run_starts(tmp_path):
    path = tmp_path / "training.jsonl"
    path.write_text("an earlier run's\n")
    file = TrainingFile(path)
    file.close()
    assert path.read_text() == "an earlier run's\n"
    file = TrainingFile(path)
    file.hear(STARTED)
    file.close()
    assert [line["event"] for line in lines_of(path)] == ["started"]


def test_a_run_that_never_starts_leaves_no_file(tmp_path):
    TrainingFile(tmp_path / "new" / "training.jsonl").close()
    assert not (tmp_path / "new" / "training.jsonl").exists()


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_heard(tmp_path):
    (tmp_path / "training.jsonl").mkdir()
    with pytest.raises(PathUnusable, match=r"training\.jsonl"):
        TrainingFile(tmp_path / "training.jsonl")


def test_numbers_that_are_not_finite_are_left_out_of_a_line():
    event = PartMeasured(1, "validation", float("nan"), {"auc": float("nan"), "accuracy": 0.5})
    line = line_of(event)
    assert "loss" not in line
    assert line["metrics"] == {"accuracy": 0.5}


def test_an_unfinished_last_line_is_not_read(tmp_path):
    path = tmp_path / "training.jsonl"
    file = TrainingFile(path)
    file.hear(STARTED)
    file.hear(PartMeasured(1, "train", loss=2.0))
    file.close()
    path.write_bytes(path.read_bytes() + b'{"event": "meas')
    log = read_training_file(path)
    assert log is not None
    assert len(log.measured) == 1
    assert log.ended is None


def test_a_file_that_is_absent_or_empty_is_no_log(tmp_path):
    assert read_training_file(tmp_path / "training.jsonl") is None
    (tmp_path / "training.jsonl").touch()
    assert read_training_file(tmp_path / "training.jsonl") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": "peterrec.training/9"}\n', r"line 1: the schema is 'peterrec\.training/9'"),
        ("[1]\n", "line 1: '\\[1\\]' is no object"),
        ('{"schema": "peterrec.training/1"}\nnope\n', "line 2: no JSON"),
    ],
)
def test_lines_of_another_form_are_refused_with_their_number(text, message, tmp_path):
    (tmp_path / "training.jsonl").write_text(text)
    with pytest.raises(TrainingFileInvalid, match=message):
        read_training_file(tmp_path / "training.jsonl")
