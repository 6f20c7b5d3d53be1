"""Where a task's data are and how they are read, as its bundle records it.

The names are those of the options of ``peterrec finetune``. A record has only what differs from the
defaults, and of paths only their ends: a bundle travels, and says nothing about the machine that
it was trained on.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from peterrec.model.data.interactions import InteractionSource
from peterrec.model.documents import Document
from peterrec.model.training.options import STRICT
from peterrec.service.errors import TrainingUnrepeatable
from peterrec.service.jobs.options import (
    AnswerOptions,
    Answers,
    EventOptions,
    TimeOptions,
    answers_of,
)

KEPT_PARTS = 2
"""Parts of an absolute path that are recorded: the file and its folder."""


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task's events and answers; ``answers_delimiter`` None is that of the events.

    In a record, the fields of the first three are keys of one table.
    """

    __pydantic_config__ = STRICT

    events: EventOptions
    answers: AnswerOptions
    time: TimeOptions
    answers_delimiter: str | None = None

    @property
    def histories_source(self) -> InteractionSource:
        """The events of the histories."""
        return self.events.source(self.time.end_of_histories)

    @property
    def answers_source(self) -> Answers:
        """The task's answers."""
        return answers_of(self.events, self.answers, self.time, self.answers_delimiter)


_PARTS = {"events": EventOptions, "answers": AnswerOptions, "time": TimeOptions}
_PATHS = ("interactions", "labels", "targets")
_DEFAULTS = {
    field.name: field.default
    for part in _PARTS.values()
    for field in fields(part)
    if field.default is not MISSING
}
_read = TypeAdapter(TaskData).validate_python


def record_of(histories: InteractionSource, answers: Answers) -> Document | None:
    """What a bundle records of where its data are; None if some are in memory, and nowhere else."""
    table, options = histories.table, answers.options
    found: Document = {
        "interactions": table.data,
        "user_column": histories.user_column,
        "item_column": histories.item_column,
        "order_column": histories.order_column,
        "delimiter": table.delimiter,
        "columns": None if table.columns is None else ",".join(table.columns),
        "missing": [*table.missing] or None,
        "where": [str(condition) for condition in table.where] or None,
        "cut_off": answers.since,
        "until": answers.before,
    }
    found |= {field.name: getattr(options, field.name) for field in fields(options)}
    if answers.delimiter != table.delimiter:
        found["answers_delimiter"] = answers.delimiter
    if any(found[name] is not None and not isinstance(found[name], Path) for name in _PATHS):
        return None
    return {
        name: _portable(value) if isinstance(value, Path) else value
        for name, value in found.items()
        if value != _DEFAULTS.get(name)
    }


def data_of(record: Mapping[str, Any]) -> TaskData:  # Any: JSON or TOML, written by anybody
    """Read what ``record_of`` wrote; TrainingUnrepeatable if it is something else."""
    nested: dict[str, Any] = {  # Any: as above
        part: {field.name: record[field.name] for field in fields(kind) if field.name in record}
        for part, kind in _PARTS.items()
    }
    known = {name for part in nested.values() for name in part}
    nested |= {name: value for name, value in record.items() if name not in known}
    try:
        return _read(nested)
    except ValidationError as error:
        first = error.errors()[0]
        raise TrainingUnrepeatable(
            f"how its data are read is not understood: {first['loc'][-1]}: {first['msg']}"
        ) from error


def _portable(path: Path) -> str:
    """The end of a path by which its file is found again, with / between its parts."""
    parts = path.parts
    if ".." in parts:
        parts = parts[len(parts) - parts[::-1].index("..") :]
    if path.is_absolute() or not parts:
        parts = path.resolve().parts[1:][-KEPT_PARTS:]
    return "/".join(parts)
