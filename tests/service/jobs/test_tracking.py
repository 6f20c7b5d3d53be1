"""Trackers keep a training's numbers, are refused when they can't, and never end a training."""

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from peterrec.model.training.events import (
    PartMeasured,
    TrainingEnded,
    TrainingEvent,
    TrainingListener,
    TrainingStarted,
)
from peterrec.model.training.training_file import read_training_file
from peterrec.service.errors import TrackerMissing, TrackerUnavailable
from peterrec.service.jobs.recording import Recording
from peterrec.service.jobs.tracking.options import TrackOptions
from peterrec.service.jobs.tracking.tracker import SafeTracker, flat_settings

EVENTS: list[TrainingEvent] = [
    TrainingStarted(
        "finetune",
        settings={"epochs": 2, "blocks": (0, 1)},
        data={"train_users": 8},
        machine={"device": "cpu"},
        backbone="3fa1",
    ),
    PartMeasured(1, "train", 0.9, rows=8, seconds=0.5, learning_rates=(0.1, 0.2)),
    PartMeasured(1, "validation", 0.8, {"mrr@5": 0.25}, rows=2, seconds=0.1),
    PartMeasured(2, "train", 0.7, rows=8, seconds=0.4, learning_rates=(0.05, 0.1)),
    PartMeasured(2, "validation", 0.6, {"mrr@5": 0.5}, rows=2, seconds=0.1),
    PartMeasured(2, "test", metrics={"mrr@5": 0.4, "baseline_mrr@5": 0.1}, rows=2, seconds=0.1),
    TrainingEnded(best_epoch=2, epochs=2, seconds=1.0, temperature=1.0),
]


old_calls_of_mlflow = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""MLflow's database store uses what SQLAlchemy 2.1 calls old."""


def record(folder: Path, options: TrackOptions, notices: list[str] | None = None) -> None:
    """Play the events of a training to everything that follows it."""
    told: list[str] = [] if notices is None else notices
    with Recording(options, told.append).of(folder / "task.training.jsonl", "task") as hear:
        for event in EVENTS:
            hear(event)


def test_tensorboard_reads_back_every_scalar(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record(tmp_path, TrackOptions("tensorboard", str(tmp_path / "runs")))
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("task-")
    found = EventAccumulator(str(folder))
    found.Reload()
    scalars = {
        name: [(event.step, round(event.value, 6)) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }
    assert scalars["train/loss"] == [(1, 0.9), (2, 0.7)]
    assert scalars["train/head_learning_rate"] == [(1, 0.2), (2, 0.1)]
    assert scalars["train/rows_per_second"] == [(1, 16.0), (2, 20.0)]
    assert scalars["validation/mrr@5"] == [(1, 0.25), (2, 0.5)]
    assert scalars["test/baseline_mrr@5"] == [(2, 0.1)]
    assert "training/text_summary" in found.Tags()["tensors"]


@old_calls_of_mlflow
def test_mlflow_reads_back_parameters_metrics_and_the_file(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/flow.db"
    record(tmp_path, TrackOptions("mlflow", uri))
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("peterrec")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("task", "FINISHED")
    parameters = run.data.params
    assert parameters["blocks"] == "0,1"
    assert parameters["data.train_users"] == "8"
    assert parameters["backbone"] == "3fa1"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 0.9), (2, 0.7)]
    (test,) = client.get_metric_history(run.info.run_id, "test/mrr_at_5")
    assert (test.step, test.value) == (2, 0.4)
    kept = client.download_artifacts(run.info.run_id, "task.training.jsonl", str(tmp_path))
    assert Path(kept).read_bytes() == (tmp_path / "task.training.jsonl").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} >= {"flow.db", "mlartifacts"}


class MlflowServer(BaseHTTPRequestHandler):
    """As much of MLflow's HTTP interface as a run needs; remembers what it was sent."""

    sent: list[tuple[str, dict]]

    def do_GET(self) -> None:
        name = self.path.split("?")[0].removeprefix("/api/2.0/mlflow/")
        if name == "experiments/get-by-name":
            self._answer({"experiment": {"experiment_id": "7", "name": "peterrec"}})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.path.removeprefix("/api/2.0/mlflow/")
        self.sent.append((name, body))
        info = {"run_id": "r1", "experiment_id": "7", "run_name": "task", "status": "RUNNING"}
        self._answer({"run": {"info": info}, "run_info": info})

    def _answer(self, document: dict) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Running:
    """A server of MLflow's interface that can be stopped."""

    def __init__(self) -> None:
        handler = type("Handler", (MlflowServer,), {"sent": []})
        self.sent: list[tuple[str, dict]] = handler.sent  # type: ignore[attr-defined]  # above
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


@pytest.fixture
def server() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


def test_an_mlflow_server_gets_the_run_by_http(server, tmp_path):
    told: list[str] = []
    record(tmp_path, TrackOptions("mlflow", server.url), told)
    metrics = {
        (metric["key"], metric["step"]): metric["value"]
        for name, body in server.sent
        if name == "runs/log-batch"
        for metric in body.get("metrics", [])
    }
    assert metrics["train/loss", 2] == 0.7
    assert metrics["test/mrr_at_5", 2] == 0.4
    assert server.sent[-1][0] == "runs/update"
    assert server.sent[-1][1]["status"] == "FINISHED"


@pytest.fixture
def impatient(monkeypatch) -> None:
    """MLflow does not repeat a call of a server that is away."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def test_a_server_that_goes_away_does_not_end_the_training(server, tmp_path, impatient):
    told: list[str] = []
    options = TrackOptions("mlflow", server.url)
    with Recording(options, told.append).of(tmp_path / "task.training.jsonl", "task") as hear:
        hear(EVENTS[0])
        server.stop()
        for event in EVENTS[1:]:
            hear(event)
    first, last = told
    assert first.startswith("mlflow failed: ")
    assert first.endswith("the training goes on.")
    assert last.startswith("mlflow has not kept ")
    log = read_training_file(tmp_path / "task.training.jsonl")
    assert log is not None
    assert len(log.measured) == 5


def test_a_server_that_cannot_be_reached_is_refused_before_the_training(tmp_path, impatient):
    running = Running()
    running.stop()
    url = running.url.replace("//", "//ann:secret@")
    with pytest.raises(TrackerUnavailable, match="can't be used") as refused:
        record(tmp_path, TrackOptions("mlflow", url))
    assert "secret" not in str(refused.value)
    assert not (tmp_path / "task.training.jsonl").exists()


def test_a_plain_folder_is_no_place_for_mlflow_and_the_hint_names_one(tmp_path):
    with pytest.raises(TrackerUnavailable) as refused:
        record(tmp_path, TrackOptions("mlflow", str(tmp_path / "mlruns")))
    assert "sqlite:///" in refused.value.hint


def test_a_folder_that_cannot_be_written_is_refused_for_tensorboard(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(TrackerUnavailable, match="runs"):
        record(tmp_path, TrackOptions("tensorboard", str(tmp_path / "runs")))


@pytest.mark.parametrize(
    ("kind", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")]
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    kind, module, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TrackerMissing) as refused:
        record(tmp_path, TrackOptions(kind, str(tmp_path / "runs")))
    assert f"pip install 'peterrec-serving[{kind}]'" in refused.value.hint
    assert not (tmp_path / "task.training.jsonl").exists()


class SlowTracker:
    """Takes an event when it is allowed to, and remembers how it was closed."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.heard: list[TrainingEvent] = []
        self.failed: list[bool] = []

    def hear(self, event: TrainingEvent) -> None:
        assert self.may_go_on.wait(60)
        self.heard.append(event)

    def keep_files(self, files: list[Path]) -> None:
        """Keep no files."""

    def close(self, failed: bool) -> None:
        self.failed.append(failed)


def test_a_training_does_not_wait_for_a_slow_tracker():
    slow = SlowTracker()
    safe = SafeTracker(slow, "slow", lambda text: None)
    for event in EVENTS:
        safe.hear(event)
    assert slow.heard == []
    slow.may_go_on.set()
    safe.close([], failed=False)
    assert slow.heard == EVENTS
    assert slow.failed == [False]


@old_calls_of_mlflow
def test_a_run_that_fails_is_closed_as_failed(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/flow.db"

    def fail() -> None:
        with Recording(TrackOptions("mlflow", uri)).of(tmp_path / "t.training.jsonl", "t") as hear:
            hear(EVENTS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("peterrec").experiment_id])
    assert run.info.status == "FAILED"


def test_settings_become_texts_by_name():
    nested = {"a": {"b": (1, 2)}, "c": None}
    assert flat_settings(nested) == {"a.b": "1,2", "c": "None"}


def test_without_a_tracker_the_file_alone_is_written(tmp_path):
    heard: list[TrainingListener] = []
    with Recording().of(tmp_path / "t.training.jsonl", "t") as hear:
        heard.append(hear)
        hear(replace(EVENTS[0], time="2024-03-01T00:00:00.000Z"))
    log = read_training_file(tmp_path / "t.training.jsonl")
    assert log is not None
    assert log.started["time"] == "2024-03-01T00:00:00.000Z"
