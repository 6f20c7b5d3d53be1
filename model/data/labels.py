"""A task's answers from tables: one label, one number, or any number of tags per user.

What a column's values are as texts, and what is no value, is the same as for ids (``values.py``).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from peterrec.model.data.histories import UserLabels
from peterrec.model.data.lists import refuse_written_lists, unfolded_answers
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.tables import TablePart, TableSource, one_array, read_parts
from peterrec.model.data.values import CodedColumn, doubtful_texts, missing_text, read_codes
from peterrec.model.errors import DataFileEmpty, LabelDuplicate, NumberUnreadable

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

PLAIN_DIGITS = 20
"""Powers of ten up to which a number is written without an exponent."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Where a task's answers are read from: one column of a table of users."""

    table: TableSource
    column: str
    user_column: str = "user_id"

    @property
    def name(self) -> str:
        """The column in messages."""
        return f"{self.table.name}, column {self.column!r}"


def read_labels(source: LabelSource, observer: ReadingObserver = SILENT) -> UserLabels:
    """One label per user; a missing label means none.

    Further rows of a user may repeat the label, as tables of events do; another one is refused.
    """
    return _one_each(_read(source, read_parts(*_columns(source), observer), observer), observer)


def read_values(source: LabelSource, observer: ReadingObserver = SILENT) -> UserLabels:
    """One finite number per user, as text; equal numbers have equal texts.

    Further rows of a user may repeat the number; another one is refused.
    """
    parts = [_as_texts(part, source.column) for part in read_parts(*_columns(source), observer)]
    answers = _read(source, parts, observer)
    numbers = {text: number_text(text) for text in answers.labels.texts if is_number(text)}
    _require_numbers(answers, numbers)
    index = {number: code for code, number in enumerate(dict.fromkeys(numbers.values()))}
    own = np.array([*(index[numbers[text]] for text in answers.labels.texts), -1], dtype=np.int64)
    labels = CodedColumn(tuple(index), [own[codes] for codes in answers.labels.codes])
    return _one_each(replace(answers, labels=labels), observer)


def read_tags(
    source: LabelSource, separator: str | None = None, observer: ReadingObserver = SILENT
) -> UserLabels:
    """Any number of tags per user, from several rows, lists, or fields split at ``separator``.

    A user whose field is empty has no tags, which is an answer too. A repeated tag counts once.
    """
    parts = read_parts(*_columns(source), observer)
    for part in parts:
        refuse_written_lists(part, source.column)
    answers = _read(source, [unfolded_answers(part, source.column) for part in parts], observer)
    for notice in _doubts_of_fields(answers, separator):
        observer.notice(notice)
    tags_of = _split(answers, separator)
    by_user: dict[str, dict[str, None]] = {user: {} for user in answers.users.texts}
    given = 0
    user, label = answers.rows()
    first, times = answers.different_rows()
    for row, count in zip(first.tolist(), times.tolist(), strict=True):
        tags = tags_of[label[row]]
        by_user[answers.users.texts[user[row]]].update(dict.fromkeys(tags))
        given += count * len(tags)
    repeated = given - sum(map(len, by_user.values()))
    if repeated:
        observer.notice(f"{source.name}: {repeated:,} tags repeat one of the same user.")
    return _labels({name: tuple(tags) for name, tags in by_user.items()}, source)


def is_number(text: str) -> bool:
    """True for a finite decimal number, such as ``-1.5e3``; not for ``1_000``, as in Python."""
    return bool(NUMBER.fullmatch(text)) and bool(np.isfinite(float(text)))


def number_text(text: str) -> str:
    """The number as it is shortest, so that ``5``, ``5.00`` and ``+5`` are one text."""
    number = Decimal(text)
    if not number:
        return "0"
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    plain = "".join(map(str, digits)).rstrip("0")
    exponent += len(digits) - len(plain)
    number = Decimal(f"{'-' if number < 0 else ''}{plain}e{exponent}")
    is_short = -PLAIN_DIGITS <= exponent <= PLAIN_DIGITS
    return format(number, "f") if is_short else str(number).replace("E", "e")


@dataclass(frozen=True, slots=True)
class _Answers:
    """The users and labels of all rows of a table, in parts."""

    source: LabelSource
    parts: list[TablePart]
    users: CodedColumn
    labels: CodedColumn

    def rows(self) -> tuple[Rows, Rows]:
        """User and label of every row as indices of their texts; -1 is no label."""
        return np.concatenate(self.users.codes), np.concatenate(self.labels.codes)

    def different_rows(self) -> tuple[Rows, Rows]:
        """The first row of each pair of user and label, ascending, and how many rows have it."""
        user, label = self.rows()
        given = np.flatnonzero(label >= 0)
        pairs = user[given] * max(1, len(self.labels.texts)) + label[given]
        _, first, counts = np.unique(pairs, return_index=True, return_counts=True)
        order = np.argsort(first)
        return given[first[order]], counts[order]

    def place(self, row: int) -> str:
        """The place of one of all rows, for messages."""
        for part in self.parts:
            if row < len(part.rows):
                return part.place(row, self.source.column)
            row -= len(part.rows)
        raise IndexError(row)


def _columns(source: LabelSource) -> tuple[TableSource, list[str]]:
    return source.table, list(dict.fromkeys([source.user_column, source.column]))


def _read(source: LabelSource, parts: list[TablePart], observer: ReadingObserver) -> _Answers:
    users = read_codes(parts, source.user_column, observer)
    labels = read_codes(parts, source.column, observer, allows_missing=True, has_fractions=True)
    return _Answers(source, parts, users, labels)


def _one_each(answers: _Answers, observer: ReadingObserver) -> UserLabels:
    """The label of each user, in the order of the first rows that have one."""
    user, label = answers.rows()
    first, _ = answers.different_rows()
    users, places = np.unique(user[first], return_index=True)
    if len(users) < len(first):
        _refuse_second(answers, first, user, label)
    without = len(answers.users.texts) - len(users)
    if without and len(users):
        observer.notice(
            f"{answers.source.name}: {without:,} of {len(answers.users.texts):,} users have no "
            "value and are left out."
        )
    rows = first[np.sort(places)]
    names, texts = answers.users.texts, answers.labels.texts
    by_user: dict[str, tuple[str, ...]] = {
        names[user[row]]: (texts[label[row]],) for row in rows.tolist()
    }
    return _labels(by_user, answers.source)


def _refuse_second(answers: _Answers, rows: Rows, user: Rows, label: Rows) -> None:
    """Name the first row whose user had another label before, and that label's place."""
    before: dict[int, int] = {}
    for row in rows.tolist():
        earlier = before.setdefault(user[row].item(), row)
        if earlier != row:
            texts = answers.labels.texts
            raise LabelDuplicate(
                f"{answers.place(row)}: user {answers.users.texts[user[row]]!r} has the label "
                f"{texts[label[row]]!r}, but {texts[label[earlier]]!r} at "
                f"{answers.place(earlier)}.",
                hint="Keep one of them, or train a tags task.",
            )


def _labels(by_user: dict[str, tuple[str, ...]], source: LabelSource) -> UserLabels:
    if not any(by_user.values()):
        raise DataFileEmpty(f"{source.name}: no user has a value.", hint="Check the column.")
    return UserLabels(by_user, source.name)


def _as_texts(part: TablePart, column: str) -> TablePart:
    """The part with floats as texts: as numbers, all floats can be written exactly."""
    values = part.table[column]
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not pa.types.is_floating(kind):
        return part
    numbers = one_array(values)
    if pa.types.is_float16(kind):
        numbers = numbers.cast(pa.float32())
    texts = pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.string()), numbers.cast(pa.string()))
    at = part.table.column_names.index(column)
    return replace(part, table=part.table.set_column(at, column, texts))


def _require_numbers(answers: _Answers, numbers: dict[str, str]) -> None:
    texts = answers.labels.texts
    others = [code for code, text in enumerate(texts) if text not in numbers]
    if not others:
        return
    _, label = answers.rows()
    row = int(np.flatnonzero(np.isin(label, others))[0])
    text = texts[label[row]]
    is_comma = "," in text and is_number(text.replace(",", ".", 1))
    raise NumberUnreadable(
        f"{answers.place(row)}: {text!r} is not a finite number.",
        hint="Write a point in place of the comma."
        if is_comma
        else "Correct or empty the field. Texts are labels of a classification task.",
    )


SEPARATORS = ("|", ";", ",")
"""Between several tags in one field, in most tables."""


def _doubts_of_fields(answers: _Answers, separator: str | None) -> Iterator[str]:
    """A sentence if fields seem to have several tags that are not split, or not there.

    Words that are split are fewer than the fields; parts of names such as ``food, drinks`` are not.
    """
    texts = answers.labels.texts
    if separator and any(separator in text for text in texts):
        return
    if separator and texts:
        yield f"{answers.source.name}: no field has the separator {separator!r}."
    for other in SEPARATORS:
        several = [text for text in texts if len([*_tags(text, other, ())]) > 1]
        words = {tag for text in texts for tag in _tags(text, other, ())}
        if len(several) > 1 and len(words) <= len(texts):
            yield (
                f"{answers.source.name}: fields such as {several[0]!r} look like several tags, but "
                f"each is taken as one; the separator would be {other!r}."
            )
            return


def _split(answers: _Answers, separator: str | None) -> list[list[str]]:
    """The tags of each different field; a tag that may mean no value is refused."""
    if not separator:
        return [[text] for text in answers.labels.texts]
    missing = answers.parts[0].missing if answers.parts else ()
    doubtful = set(doubtful_texts(missing)) - set(missing)
    found = [list(_tags(text, separator, missing)) for text in answers.labels.texts]
    bad = [code for code, tags in enumerate(found) if not doubtful.isdisjoint(tags)]
    if bad:
        _, label = answers.rows()
        row = int(np.flatnonzero(np.isin(label, bad))[0])
        text = next(tag for tag in found[label[row]] if tag in doubtful)
        raise missing_text(answers.place(row), text)
    return found


def _tags(text: str, separator: str, missing: tuple[str, ...]) -> Iterator[str]:
    for part in text.split(separator):
        tag = part.strip()
        if tag and tag not in missing:
            yield tag
