"""A file that says where the data of tasks are: for bundles that do not, or not any longer."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peterrec.model.disk import read_bytes
from peterrec.model.errors import PeterRecError
from peterrec.service.errors import TaskFileInvalid
from peterrec.service.jobs.task_data import TaskData, data_of

Table = Mapping[str, Any]  # Any: TOML values

HINT = "See docs/migration.md."


def read_sources(path: Path) -> dict[str, TaskData]:
    """Read the data of each task in the file; TaskFileInvalid names the task that is wrong.

    Paths are relative to the file's folder. What ``[defaults]`` has is taken for every task.
    """
    try:
        document = tomllib.loads(read_bytes(path).decode())
        defaults, tasks = document.pop("defaults", {}), document.pop("tasks", {})
        tables = {name: {**defaults, **table} for name, table in tasks.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise TaskFileInvalid(f"{path} is no readable TOML file: {error}.", hint=HINT) from error
    if document or not tables:
        reason = f"unknown field {', '.join(document)}" if document else "there is no [tasks.NAME]"
        raise TaskFileInvalid(f"{path}: {reason}.", hint=HINT)
    return {name: _data_of(path, name, table) for name, table in tables.items()}


def _data_of(path: Path, name: str, table: Table) -> TaskData:
    try:
        return data_of(table)
    except PeterRecError as error:
        raise TaskFileInvalid(f"{path}, task {name!r}: {error.message}", hint=HINT) from error
