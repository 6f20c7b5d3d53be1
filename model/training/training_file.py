"""``training.jsonl``: what a training reported, a line of JSON for each event, as it happens.

The first line says what is trained, and has the version of this form (``schema``). Then there is a
line for each epoch and part, and a last one for the end; a run that was killed has no such line.
``docs/training.md`` lists the fields.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peterrec.model.disk import (
    make_folder,
    read_bytes,
    refusal,
    refusals,
    require_writable_file,
    write_text,
)
from peterrec.model.documents import Document
from peterrec.model.errors import TrainingFileInvalid
from peterrec.model.training.events import (
    PartMeasured,
    PartsChosen,
    TrainingEvent,
    TrainingStarted,
    events_of,
)

TRAINING_FILE = "training.jsonl"

SCHEMA = "peterrec.training/1"
"""Version of the lines. New fields may be added to it; a change of a field makes a new one."""

SUFFIX = ".bundle"


def training_file_of(bundle: Path) -> Path:
    """The file of a bundle's training: ``gender.training.jsonl`` beside ``gender.bundle``."""
    return bundle.with_name(f"{bundle.name.removesuffix(SUFFIX)}.{TRAINING_FILE}")


def line_of(event: TrainingEvent, warnings: Sequence[str] = ()) -> Document:
    """The fields of an event's line; a value that is not known or not finite is left out."""
    if isinstance(event, TrainingStarted):
        fields = {"schema": SCHEMA, "event": "started", "time": event.time, **asdict(event)}
        fields["warnings"] = list(warnings)
    elif isinstance(event, PartMeasured):
        fields = _measured(event)
    elif isinstance(event, PartsChosen):
        fields = {"event": "chosen", "time": event.time, **asdict(event)}
    else:
        fields = {"event": "ended", "time": event.time, **asdict(event)}
    return {name: value for name, value in fields.items() if _is_known(value)}


def _measured(event: PartMeasured) -> Document:
    fields = asdict(event)
    rates = fields.pop("learning_rates")
    names = ("learning_rate", "head_learning_rate")
    speed = event.rows / event.seconds if event.rows is not None and event.seconds else None
    return {
        "event": "measured",
        "time": event.time,
        **fields,
        "metrics": {name: value for name, value in event.metrics.items() if _is_known(value)},
        "rows_per_second": None if speed is None else round(speed, 1),
        **dict(zip(names, rates, strict=False)),
    }


def _text_of(event: TrainingEvent, warnings: Sequence[str] = ()) -> str:
    return json.dumps(line_of(event, warnings), ensure_ascii=False, allow_nan=False)


def _is_known(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


class TrainingFile:
    """Writes a run's events to its ``training.jsonl``; ``hear`` is a listener.

    The file is opened before the data are read, so that a place that can't be written is refused
    then, and keeps its content until the run starts. Each line is written whole and at once. If a
    write fails later, the training goes on: ``on_notice`` is told once, what was half written is
    cut off, and the lines are written as soon as there is room again. ``warnings`` is read when the
    run starts.
    """

    def __init__(
        self,
        path: Path,
        warnings: Sequence[str] = (),
        on_notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._path = path
        self._warnings = warnings
        self._on_notice = on_notice
        self._waiting: list[bytes] = []
        self._has_failed = False
        self._end = 0
        require_writable_file(path)
        make_folder(path.parent)
        self._is_new = not path.exists()
        with refusals(path, doing="written"):
            self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)

    def hear(self, event: TrainingEvent) -> None:
        """Write an event's line; the start of a run replaces the lines of an earlier one."""
        if self._file is None:
            return
        if isinstance(event, TrainingStarted):
            os.ftruncate(self._file, 0)
            self._is_new = False
        text = _text_of(event, self._warnings)
        self._waiting.append(text.encode("utf-8", "replace") + b"\n")
        self._write()

    def close(self) -> None:
        """Close the file; one in which nothing was written is removed again."""
        if self._file is None:
            return
        os.close(self._file)
        self._file = None
        if self._is_new:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        assert self._file is not None
        data = b"".join(self._waiting)
        try:
            done = 0
            while done < len(data):  # a disk that becomes full takes a part before it refuses
                done += os.pwrite(self._file, data[done:], self._end + done)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            if not self._has_failed:
                self._has_failed = True
                reason = refusal(error, self._path, doing="written", wanted_bytes=len(data))
                self._on_notice(f"{reason.message} The training goes on without its latest lines.")
            return
        self._end += len(data)
        self._waiting.clear()


def write_training_file(path: Path, record: Document) -> None:
    """Write the lines of a run that has ended, from its record; FileSystemRefusal if it can't."""
    write_text(path, "".join(_text_of(event) + "\n" for event in events_of(record)))


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The lines of a ``training.jsonl``: the first, those of epochs and parts, and the last.

    ``chosen`` says which parts a task got. ``ended`` is None if the run was killed or goes on.
    """

    started: Document
    measured: tuple[Document, ...]
    chosen: Document | None
    ended: Document | None

    def of_part(self, part: str) -> list[Document]:
        """The lines of one part of the users, in the order of the epochs.

        If several networks were trained in turn, they are those of the one that was kept, or of
        the last one while none is chosen.
        """
        own = [line for line in self.measured if line.get("part") == part]
        named = [line["network"] for line in own if "network" in line]
        kept = self.chosen["network"] if self.chosen else (named or [None])[-1]
        return [line for line in own if line.get("network", kept) == kept]


def read_training_file(path: Path) -> TrainingLog | None:
    """Read the lines of a run; None if there is no file, or none of its lines is complete.

    An unfinished last line is left out. Lines that are no events are refused with their number.
    """
    if not path.exists():
        return None
    text = read_bytes(path).decode("utf-8", "replace")
    lines = text.split("\n")[:-1]  # what follows the last end of line is unfinished
    documents = [_parse(path, number, line) for number, line in enumerate(lines, 1)]
    if not documents:
        return None
    started = documents[0]
    if started.get("schema") != SCHEMA:
        raise TrainingFileInvalid(
            f"{path}, line 1: the schema is {started.get('schema')!r}, not {SCHEMA!r}.",
            hint="Use the version of peterrec that wrote it.",
        )
    return _log(documents)


def log_of(record: Document) -> TrainingLog | None:
    """The lines of a run from the record that it left; None if the record tells of no epochs."""
    return _log([line_of(event) for event in events_of(record)]) if record.get("epochs") else None


def _log(documents: list[Document]) -> TrainingLog:
    started, *rest = documents
    measured = tuple(line for line in rest if line.get("event") == "measured")
    chosen, ended = (
        next((line for line in rest if line.get("event") == event), None)
        for event in ("chosen", "ended")
    )
    return TrainingLog(started, measured, chosen, ended)


def _parse(path: Path, number: int, line: str) -> Document:
    try:
        document: Any = json.loads(line)  # Any: JSON
    except ValueError as error:
        raise TrainingFileInvalid(f"{path}, line {number}: no JSON: {error}.") from error
    if not isinstance(document, Mapping):
        raise TrainingFileInvalid(f"{path}, line {number}: {line[:40]!r} is no object.")
    return dict(document)
