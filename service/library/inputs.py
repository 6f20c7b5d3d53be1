"""Data as callers of the library have them, brought into the forms that the jobs read.

A path and a table in memory are read as they are, by the readers of the commands. Lists and dicts
of histories or answers become a small Arrow table first, so that they go the same way.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import pyarrow as pa

from peterrec.service.errors import ArgumentInvalid

UserId = str | int
ItemId = str | int


class ArrowTable(Protocol):
    """A table that gives its columns through the Arrow PyCapsule interface.

    Frames of pandas and polars, Arrow tables and DuckDB relations do.
    """

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The columns, batch by batch."""


Table = str | os.PathLike[str] | ArrowTable
"""A file or folder, or a table in memory."""

Histories = Table | Collection[Collection[ItemId]] | Mapping[UserId, Collection[ItemId]]
"""Users' events: a table with a row per event, or each user's items, oldest first.

The users of a list are called 0, 1, 2 …, in its order.
"""

Answers = Table | Collection[Any] | Mapping[UserId, Any]  # Any: a label, a number or tags
"""Users' labels, numbers or tags: a table, a list in the order of the histories, or by user."""

POSITION = "position"
"""Column of the order of events in tables that are made of lists."""

LABEL = "label"
"""Column of the answers in tables that are made of lists, unless the caller names it."""

_SHAPES = ("columns", "column_names", "schema")
"""Attributes of which a table has one, and a single column of pandas, polars or Arrow none."""


@dataclass(frozen=True, slots=True)
class NamedTable:
    """A table that was made of lists, with what it is called in messages."""

    name: str
    table: pa.Table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The table's rows."""
        return self.table.__arrow_c_stream__(requested_schema)


@dataclass(frozen=True, slots=True)
class Listed:
    """Histories that were given as lists: the users, and each user's items, oldest first."""

    users: tuple[UserId, ...]
    rows: tuple[Sequence[ItemId], ...]

    def table(self, user_column: str, item_column: str, name: str) -> NamedTable:
        """A table with one row per event; the column ``position`` has the order."""
        lengths = np.array([len(row) for row in self.rows], dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        owners = pa.array(np.repeat(np.arange(len(lengths)), lengths))
        users = ids_column(self.users, "user").take(owners)
        items = ids_column([item for row in self.rows for item in row], "item")
        columns = {user_column: users, item_column: items, POSITION: positions}
        return NamedTable(name, pa.table(columns))


def is_table(data: object) -> TypeGuard[Table]:
    """True for a path and for a table in memory, which the readers take as they are."""
    if isinstance(data, str | os.PathLike):
        return True
    return hasattr(data, "__arrow_c_stream__") and any(hasattr(data, name) for name in _SHAPES)


def as_path(path: object, name: str) -> Path:
    """The path that an argument of this name is; ArgumentInvalid if it is none."""
    if not isinstance(path, str | os.PathLike):
        raise ArgumentInvalid(f"{name}={path!r:.60} is no path.", hint="Give a text or a Path.")
    return Path(path)


def as_source(data: Table) -> Any:  # Any: a path, or a table of any library
    """A table as the readers take it."""
    return Path(data) if isinstance(data, str | os.PathLike) else data


def listed(data: object, what: str = "history") -> Listed:
    """Histories in a list, an array, a Series or a dict by user; ArgumentInvalid otherwise."""
    if isinstance(data, Listed):
        return data
    if isinstance(data, Mapping):
        if any("user" in str(key).lower() for key in data) and all(map(_names_column, data)):
            raise ArgumentInvalid(
                f"the dict's keys, {', '.join(map(repr, data))}, look like names of columns, but a "
                "dict has a list of items for each user.",
                hint="Make a table of it, for example pandas.DataFrame(…) or pyarrow.table(…).",
            )
        return Listed(tuple(data), _rows(data.values(), what))
    rows = _rows(sequence(data, f"a list of {what} lists"), what)
    return Listed(tuple(range(len(rows))), rows)


def _names_column(key: object) -> bool:
    """True for what columns of events are usually called."""
    return isinstance(key, str) and bool(_COLUMN.fullmatch(key.lower()))


_COLUMN = re.compile(r"(user|item|product|session|movie)s?(_?id)?|.*time.*|position|date|rating")


def sequence(data: object, expected: str) -> Sequence[Any]:  # Any: the elements, not yet checked
    """The elements of a list, an array or a column of any library."""
    if isinstance(data, list | tuple):
        return data
    if hasattr(data, "__array__") and not hasattr(data, "tolist"):
        data = np.asarray(data)
    for name in ("to_pylist", "tolist", "to_list"):  # Arrow; NumPy and pandas; polars
        convert = getattr(data, name, None)
        if convert is not None and not isinstance(data, type):
            values = convert()
            if isinstance(values, list):
                return values
    if hasattr(data, "collect"):  # a lazy frame of polars
        raise ArgumentInvalid(
            f"{type(data).__name__} has no rows yet.", hint="Give the result of its collect()."
        )
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise ArgumentInvalid(
            f"{expected} is expected, not {type(data).__name__} {str(data)[:40]!r}.",
            hint="Give a path, a table, lists, or a dict by user.",
        )
    return list(data)


def ids_column(values: Sequence[object], what: str) -> pa.Array:
    """Ids as an Arrow column; integers and texts may be mixed, as an int means its decimal text."""
    if not len(values):
        return pa.array([], pa.string())
    try:
        array = pa.array(values)
        if not pa.types.is_nested(array.type):
            return array
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError):
        pass
    texts = []
    for place, value in enumerate(values):
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(plain, str | int) or isinstance(plain, bool):
            raise ArgumentInvalid(
                f"{what} {value!r:.80} at place {place} is neither a text nor an integer.",
                hint="Ids are texts or integers.",
            )
        texts.append(str(plain))
    return pa.array(texts, pa.string())


def answers_table(
    answers: object, histories: Listed | None, columns: tuple[str, str], is_many: bool
) -> NamedTable:
    """Labels, numbers or tags by user as a table with these columns of users and answers.

    ``is_many``: a user may have any number of them, one row each, or one row without a value.
    """
    users, values = _by_user(answers, histories)
    if is_many:
        lists = [sequence(value, "a list of each user's tags") for value in values]
        users = [user for user, own in zip(users, lists, strict=True) for _ in own or (None,)]
        values = [value for own in lists for value in own or (None,)]
    user_column, answer_column = columns
    table = pa.table({user_column: ids_column(users, "user"), answer_column: _answers(values)})
    return NamedTable("labels", table)


def _answers(values: Sequence[object]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError):
        pass
    texts = [None if value is None else str(value) for value in values]
    return pa.array(texts, pa.string())


def targets_listed(targets: object, histories: Listed | None) -> Listed:
    """Each user's target items, given as a list in the order of the histories or by user."""
    users, values = _by_user(targets, histories)
    return Listed(tuple(users), _rows(values, "target"))


def _by_user(answers: object, histories: Listed | None) -> tuple[list[UserId], list[object]]:
    if isinstance(answers, Mapping):
        return list(answers), list(answers.values())
    values = list(sequence(answers, "a list of answers"))
    if histories is None:
        raise ArgumentInvalid(
            "answers in a list need histories in a list, in the same order.",
            hint="Give the answers as a dict by user, or as a table.",
        )
    if len(values) != len(histories.users):
        raise ArgumentInvalid(
            f"{len(values)} answers do not fit {len(histories.users)} histories.",
            hint="Give one answer per history, in the same order.",
        )
    return list(histories.users), values


def _rows(rows: Iterable[object], what: str) -> tuple[Sequence[ItemId], ...]:
    """The items of each row; a set is refused, because it has no order."""
    rows = list(rows)
    for at, row in enumerate(rows):
        if isinstance(row, set | frozenset):
            raise ArgumentInvalid(
                f"{what} {at} is a set, which has no order.", hint="Give a list, oldest first."
            )
    return tuple(sequence(row, f"a list of item ids as {what} {at}") for at, row in enumerate(rows))
