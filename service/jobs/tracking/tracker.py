"""What a tracker is, and how a training is kept safe from one that is slow or fails."""

import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Protocol

from peterrec.model.documents import Document
from peterrec.model.training.events import PartMeasured, TrainingEvent
from peterrec.service.errors import TrackerMissing
from peterrec.service.jobs.tracking.options import TrackerName

DEFAULT_TARGETS: Mapping[TrackerName, str] = {"tensorboard": "runs", "mlflow": ""}
"""Where a tracker writes unless it is told; MLflow has settings and a default of its own."""

LAST_WAIT_S = 60.0
"""Longest wait for what a tracker has not yet taken when the training has ended."""


class Tracker(Protocol):
    """One run that a tracker keeps. Its methods may block and may raise anything."""

    def hear(self, event: TrainingEvent) -> None:
        """Keep an event."""

    def keep_files(self, files: list[Path]) -> None:
        """Keep copies of files of the finished run, if the tracker keeps files."""

    def close(self, failed: bool) -> None:
        """End the run."""


def open_tracker(kind: TrackerName, target: str | None, name: str) -> Tracker:
    """A new run of a tracker; refused if its library is missing or it can't be reached."""
    chosen = DEFAULT_TARGETS[kind] if target is None else target
    module = import_module(f"peterrec.service.jobs.tracking.{kind}")
    tracker: Tracker = module.open_tracker(chosen, name)
    return tracker


def missing(kind: TrackerName, error: ImportError) -> TrackerMissing:
    """The error of a tracker whose library is not installed."""
    return TrackerMissing(
        f"--track {kind} needs a library that is not installed: {error}.",
        hint=f"pip install 'peterrec-serving[{kind}]', or leave `track` out.",
    )


class SafeTracker:
    """Passes events to a tracker on a thread of its own; the training never waits for it.

    What the tracker raises is told once, and the following events are tried all the same. At the
    end the training waits for it, at most ``LAST_WAIT_S``.
    """

    def __init__(self, tracker: Tracker, kind: str, on_notice: Callable[[str], None]) -> None:
        self._tracker = tracker
        self._kind = kind
        self._on_notice = on_notice
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tracker")
        self._calls: list[Future[None]] = []
        self._lost = 0

    def hear(self, event: TrainingEvent) -> None:
        """Hand an event to the tracker's thread."""
        self._call(partial(self._tracker.hear, event))

    def close(self, files: list[Path], failed: bool) -> None:
        """Give the tracker the run's files, unless the run has failed, and end the run."""
        if not failed:
            self._call(partial(self._tracker.keep_files, files))
        self._call(partial(self._tracker.close, failed))
        waiting = wait(self._calls, LAST_WAIT_S).not_done
        self._thread.shutdown(wait=False, cancel_futures=True)
        lost = self._lost + len(waiting)
        if lost:
            self._on_notice(f"{self._kind} has not kept {lost} of {len(self._calls)} reports.")

    def _call(self, call: Callable[[], None]) -> None:
        self._calls.append(self._thread.submit(self._safely, call))

    def _safely(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # a foreign library's, which must not end the training
            self._lost += 1
            if self._lost == 1:
                self._on_notice(f"{self._kind} failed: {in_short(error)}; the training goes on.")


def in_short(error: Exception) -> str:
    """The first line of an error's text, without the passwords of addresses in it."""
    text = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return without_passwords(text)


def without_passwords(text: str) -> str:
    """A text in which the password of ``http://ann:secret@host`` is not shown."""
    return re.sub(r"(://[^/\s:@]*:)[^/\s@]+@", r"\1…@", text)


def flat_settings(settings: Document, prefix: str = "") -> dict[str, str]:
    """Settings as texts by name; nested ones get names with a dot."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat_settings(dict(value), f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            found[prefix + name] = ",".join(map(str, value))
        else:
            found[prefix + name] = str(value)
    return found


def place_of(event: PartMeasured) -> str:
    """In front of the names of an event's numbers: the part, of which network if there are more."""
    return f"{event.network}/{event.part}" if event.network else event.part


def scalars_of(event: PartMeasured) -> dict[str, float]:
    """The numbers of an event by name."""
    found: dict[str, float | None] = {
        "loss": event.loss,
        **event.metrics,
        **dict(zip(("learning_rate", "head_learning_rate"), event.learning_rates, strict=False)),
        "seconds": event.seconds,
        "peak_rss_bytes": event.peak_rss_bytes if event.part == "train" else None,
        "cuda_peak_bytes": event.cuda_peak_bytes if event.part == "train" else None,
    }
    if event.rows is not None and event.seconds:
        found["rows_per_second"] = event.rows / event.seconds
    return {name: value for name, value in found.items() if value is not None}
