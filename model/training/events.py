"""What a training run reports while it runs: what it trains, every epoch and part, and its end.

Whoever wants to follow a run gives a listener. The runs know nothing of files or of trackers, and
report between epochs only, so that listening changes neither a result nor the speed of a step.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib.metadata import version
from typing import Literal

import torch

from peterrec.model.documents import Document
from peterrec.model.training.loop import EpochRecord, now

Training = Literal["pretrain", "finetune"]
Part = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class TrainingStarted:
    """What is trained, told after the data were read and before the first step.

    ``settings`` and ``data`` are those of the run's record; ``backbone`` is the fingerprint of the
    backbone that a task is trained on. ``epochs_done`` is the number of epochs that a resumed run
    has from its checkpoint: they are reported again, with their own times, before new ones.
    """

    training: Training
    settings: Document
    data: Document
    machine: Document
    backbone: str | None = None
    epochs_done: int = 0
    time: str | None = field(default_factory=lambda: now())


@dataclass(frozen=True, slots=True)
class PartMeasured:
    """One pass over a part of the users. Epochs count from 1; those of a test are the best one's.

    ``rows`` are the sequences or users of the part, ``seconds`` the time that the pass took. What
    was not measured is None or empty. ``learning_rates`` are those of the epoch's first step: of
    the backbone, or of patch and head. Peaks of memory are the process's since it began, in bytes.
    ``network`` names the parts that are trained if a run trains several networks in turn.
    """

    epoch: int
    part: Part
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    rows: int | None = None
    seconds: float | None = None
    learning_rates: Sequence[float] = ()
    peak_rss_bytes: int | None = None
    cuda_peak_bytes: int | None = None
    network: str | None = None
    time: str | None = field(default_factory=lambda: now())


@dataclass(frozen=True, slots=True)
class PartsChosen:
    """The parts that a task got, the network that was kept, and every combination that was tried.

    A trial has ``parts``, the mean ``loss`` per held-out user, how far it is ``behind`` the best
    one with its standard ``error`` over users, how many ``users`` judged it, and the ``size_bytes``
    of patch, head and table.
    """

    parts: Sequence[str]
    network: str
    trials: Sequence[Document]
    time: str | None = field(default_factory=lambda: now())


@dataclass(frozen=True, slots=True)
class TrainingEnded:
    """The end of a run: its best epoch, counted from 1, and the whole time in seconds.

    ``temperature`` is a task's, None for a backbone.
    """

    best_epoch: int
    epochs: int
    seconds: float
    temperature: float | None = None
    time: str | None = field(default_factory=lambda: now())


TrainingEvent = TrainingStarted | PartMeasured | PartsChosen | TrainingEnded

TrainingListener = Callable[[TrainingEvent], None]
"""Called with every event of one run, in their order, by the thread that trains."""


def unheard(event: TrainingEvent) -> None:
    """Ignore an event."""


def parts_of(record: EpochRecord, network: str | None = None) -> tuple[PartMeasured, PartMeasured]:
    """An epoch's passes over the training part and over the validation part."""
    measured = partial(
        PartMeasured,
        record.epoch + 1,
        peak_rss_bytes=record.peak_rss_bytes,
        cuda_peak_bytes=record.cuda_peak_bytes,
        network=network,
        time=record.ended_at,
    )
    train = measured(
        "train",
        loss=record.train_loss,
        rows=record.sequences,
        seconds=record.seconds,
        learning_rates=record.learning_rates,
    )
    validation = measured(
        "validation",
        loss=record.validation_loss,
        metrics=record.validation_metrics,
        rows=record.validation_sequences,
        seconds=record.validation_seconds,
    )
    return train, validation


def report_epochs(listener: TrainingListener, records: Sequence[EpochRecord]) -> None:
    """Tell a listener of some epochs."""
    for record in records:
        for part in parts_of(record):
            listener(part)


def naming(network: str | None, listener: TrainingListener) -> TrainingListener:
    """A listener to one network of a run, which tells the run's own listener of its name."""

    def hear(event: TrainingEvent) -> None:
        listener(replace(event, network=network) if isinstance(event, PartMeasured) else event)

    return hear


def events_of(record: Document) -> list[TrainingEvent]:
    """What a listener has heard of a run, from the record that the run left.

    Records of earlier versions lack times, rows and memory.
    """
    records = _epochs(record)
    data = dict(record["data"]) | {name: record[name] for name in ("loss",) if name in record}
    started = TrainingStarted(
        "finetune" if "metrics" in record else "pretrain",
        settings=record["settings"],
        data=data,
        machine=record["machine"] if "machine" in record else record.get("software") or {},
        backbone=record.get("backbone"),
        time=record.get("started_at"),
    )
    parts: list[TrainingEvent] = [
        part
        for network in record.get("networks") or [record]
        for each in _epochs(network)
        for part in parts_of(each, network.get("network"))
    ]
    best, time = record["best_epoch"] + 1, record.get("ended_at")
    if "trials" in record:
        network = record["network"]
        parts.append(PartsChosen(record["parts"], network, record["trials"], time=time))
    if "metrics" in record:
        rows, seconds = data["test_users"], record.get("test_seconds")
        metrics = record["metrics"]
        test = PartMeasured(best, "test", None, metrics, rows, seconds, time=time)
        parts.append(test)
    ended = TrainingEnded(best, len(records), record["seconds"], record.get("temperature"), time)
    return [started, *parts, ended]


def _epochs(record: Document) -> list[EpochRecord]:
    known = {each.name for each in fields(EpochRecord)}
    return [
        EpochRecord(**{name: value for name, value in epoch.items() if name in known})
        for epoch in record["epochs"]
    ]


def machine_of(device: torch.device, processes: int = 1) -> Document:
    """The device, threads and processes that train, and the versions of the software."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peterrec": version("peterrec-serving"),
    }
