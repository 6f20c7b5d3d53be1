"""The file of ``peterrec finetune-many``: one TOML table per task."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from peterrec.model.disk import read_bytes
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.options import STRICT, Option, options_of
from peterrec.service.errors import TaskFileInvalid
from peterrec.service.jobs.options import AnswerOptions

Table = Mapping[str, Any]  # Any: TOML values


def _belongs_to_a_task(option: Option) -> bool:
    """True unless the option is about the patch's place, which all tasks of a run share."""
    return option.is_public and (option.panel != "Model" or option.field == "kind")


TASK_OPTIONS = tuple(filter(_belongs_to_a_task, options_of(FinetuneSettings)))
"""Options of fine-tuning that each task of a file has."""

TASK_SETTINGS = (
    *(option.name for option in TASK_OPTIONS),
    *(field.name for field in fields(AnswerOptions)),
    *("out", "name", "delimiter"),
)
"""Names of all settings that a task of a file may have."""

_SETTINGS_NAMES = frozenset(option.name for option in TASK_OPTIONS)
_ANSWER_NAMES = frozenset(field.name for field in fields(AnswerOptions))


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """One task: where its answers are, its bundle, and how it is trained.

    In the file, the fields of ``answers`` and ``settings`` are keys of the task's own table, under
    the names of ``peterrec finetune``'s options. ``settings`` has no patch yet: its place is common
    to all tasks and is given on the command line. Paths are relative to the file's folder.
    """

    __pydantic_config__ = STRICT

    out: Path
    answers: AnswerOptions
    settings: FinetuneSettings
    name: str | None = None
    delimiter: str | None = None

    @property
    def bundle_name(self) -> str:
        """The name in the bundle's manifest; by default that of the file."""
        return self.name or self.out.name.removesuffix(".bundle")


_read_entries = TypeAdapter(tuple[TaskEntry, ...]).validate_python


def read_task_file(path: Path) -> tuple[TaskEntry, ...]:
    """The tasks of a file; TaskFileInvalid names the task and the field that are wrong."""
    try:
        document = tomllib.loads(read_bytes(path).decode())
        defaults = document.pop("defaults", {})
        tables = [{**defaults, **table} for table in document.pop("tasks", [])]
        unknown = ", ".join(document)
        entries = _read_entries([_nested(table) for table in tables])
    except ValidationError as error:
        reasons = "; ".join(f"{_place(e['loc'])}: {e['msg']}" for e in error.errors())
        raise TaskFileInvalid(f"{path}: {reasons}.", hint="See docs/training.md.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise TaskFileInvalid(f"{path} is not a readable TOML file of tasks: {error}.") from error
    if unknown or not entries:
        reason = f"unknown field {unknown}" if unknown else "there are no [[tasks]]"
        raise TaskFileInvalid(f"{path}: {reason}.", hint="See docs/training.md.")
    _require_different_outs(path, [entry.out for entry in entries])
    return entries


def _nested(table: Table) -> dict[str, object]:
    """A task's table with the options of its answers and settings in tables of their own."""
    own = {k: v for k, v in table.items() if k not in _ANSWER_NAMES | _SETTINGS_NAMES}
    answers = {k: v for k, v in table.items() if k in _ANSWER_NAMES}
    settings = {k: v for k, v in table.items() if k in _SETTINGS_NAMES}
    return {**own, "answers": answers, "settings": settings}


def _place(loc: tuple[int | str, ...]) -> str:
    """``task 2, field epochs`` for a place such as ``(1, "settings", "epochs")``."""
    task, *names = loc
    inner = [str(name) for name in names if name not in ("answers", "settings")]
    return f"task {int(task) + 1}, field {'.'.join(inner)}"


def _require_different_outs(path: Path, outs: list[Path]) -> None:
    if len(set(outs)) < len(outs):
        twice = max(outs, key=outs.count)
        raise TaskFileInvalid(
            f"{path}: two tasks write {twice}.", hint="Give each task another `out`."
        )
