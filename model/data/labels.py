"""A task's answers from tables: one label, one number, or any number of tags per user."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from peterrec.model.data.histories import UserLabels
from peterrec.model.data.tables import TablePart, TableSource, read_parts
from peterrec.model.data.values import read_texts
from peterrec.model.errors import DataFileEmpty, LabelDuplicate, NumberUnreadable


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Where a task's answers are read from: one column of a table of users."""

    table: TableSource
    column: str
    user_column: str = "user_id"


def read_labels(source: LabelSource) -> UserLabels:
    """One label per user. An empty label means none; a second row of a user is refused."""
    by_user: dict[str, tuple[str, ...]] = {}
    for row in _label_rows(source):
        if row.user in by_user:
            raise LabelDuplicate(
                f"{row.place}: user {row.user!r} has a second label {row.text!r} after "
                f"{by_user[row.user][0]!r}.",
                hint="Keep one row per user, or train a tags task.",
            )
        if row.text:
            by_user[row.user] = (row.text,)
    return _labels(by_user, source)


def read_values(source: LabelSource) -> UserLabels:
    """One finite number per user, as text."""
    for row in _label_rows(source):
        if row.text and not _is_finite_number(row.text):
            raise NumberUnreadable(
                f"{row.place}: {row.text!r} is not a finite number.",
                hint="Correct or empty the field.",
            )
    return read_labels(source)


def read_tags(source: LabelSource, separator: str | None = None) -> UserLabels:
    """Any number of tags per user, from several rows or from one field split at ``separator``.

    A user whose field is empty has no tags, which is an answer too. A repeated tag counts once.
    """
    by_user: dict[str, dict[str, None]] = {}
    for row in _label_rows(source):
        tags = row.text.split(separator) if separator else [row.text]
        own = by_user.setdefault(row.user, {})
        own.update(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
    return _labels({user: tuple(tags) for user, tags in by_user.items()}, source)


def _labels(by_user: dict[str, tuple[str, ...]], source: LabelSource) -> UserLabels:
    if not any(by_user.values()):
        raise DataFileEmpty(
            f"{source.table.name}, column {source.column!r}: no user has a value.",
            hint="Check the column.",
        )
    return UserLabels(by_user, source.table.name)


@dataclass(frozen=True, slots=True)
class _LabelRow:
    user: str
    text: str
    part: TablePart
    row: int
    column: str

    @property
    def place(self) -> str:
        return self.part.place(self.row, self.column)


def _label_rows(source: LabelSource) -> Iterator[_LabelRow]:
    """Every row of a label table; an empty field is an empty text."""
    parts = read_parts(source.table, [source.user_column, source.column])
    users = read_texts(parts, source.user_column)
    texts = read_texts(parts, source.column, allows_missing=True, has_fractions=True)
    for part, part_users, part_texts in zip(parts, users, texts, strict=True):
        for row, (user, text) in enumerate(zip(part_users, part_texts, strict=True)):
            assert user is not None
            yield _LabelRow(user, text or "", part, row, source.column)


def _is_finite_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
