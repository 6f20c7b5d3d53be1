"""What a table says of items: a display name for each, and columns that answers are filtered by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from peterrec.model.data.forms import find_data_files, is_list_type
from peterrec.model.data.labels import SEPARATORS, is_number
from peterrec.model.data.lists import list_columns, refuse_written_lists, unfolded_answers
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.scalars import instant_of, number_of
from peterrec.model.data.tables import TablePart, TableSource, read_parts
from peterrec.model.data.values import CodedColumn, read_codes
from peterrec.model.errors import ColumnMissing, ItemRepeated, NumberUnreadable, TimeUnreadable

ColumnType = Literal["text", "number", "time", "list"]

NS_PER_US = 1000


@dataclass(frozen=True, slots=True)
class ItemColumn:
    """A column of a table of items: one value for each, or in a list any number of texts.

    ``values`` are texts, floats, microseconds since 1970, or tuples of texts; None is no value.
    """

    type: ColumnType
    values: Mapping[str, str | float | int | tuple[str, ...] | None]


def read_titles(
    source: TableSource, id_column: str, title_column: str, observer: ReadingObserver = SILENT
) -> dict[str, str]:
    """A display name for each id that has one. Another one for the same id is refused."""
    parts = read_parts(source, [id_column, title_column], observer)
    ids = read_codes(parts, id_column, observer)
    titles = read_codes(parts, title_column, observer, allows_missing=True, has_fractions=True)
    found = _by_id(parts, title_column, ids, titles)
    return {item: title for item, title in found.items() if title is not None}


def read_item_columns(
    source: TableSource,
    id_column: str,
    types: Mapping[str, ColumnType | None],
    separator: str,
    observer: ReadingObserver = SILENT,
) -> dict[str, ItemColumn]:
    """Columns of a table of items, by name; without ``types``, all but that of the ids.

    Where no type is given, a column of lists has lists, one of nothing but numbers has numbers, one
    of nothing but ISO dates or times has times, and any other has texts. ``separator`` stands
    between several texts in a field of a ``list``.
    """
    names = list(types) or [each for each in column_names(source) if each != id_column]
    if not names:
        raise ColumnMissing(
            f"{source.name} has no column but {id_column!r}.", hint="Add some, or name the id's."
        )
    parts = read_parts(source, list(dict.fromkeys([id_column, *names])), observer)
    return {
        name: _read_column(parts, id_column, name, types.get(name), separator, observer)
        for name in names
    }


def column_names(source: TableSource) -> list[str]:
    """The names of a table's columns, in its order."""
    if not hasattr(source.data, "__arrow_c_stream__"):
        found = find_data_files(source.data, source.delimiter, source.columns)
        return list(dict.fromkeys(name for file in found.files for name in file.columns))
    return list(pa.RecordBatchReader.from_stream(source.data).schema.names)


def _read_column(
    parts: Sequence[TablePart],
    id_column: str,
    name: str,
    wanted: ColumnType | None,
    separator: str,
    observer: ReadingObserver,
) -> ItemColumn:
    if wanted == "list" or (wanted is None and list_columns(parts[0], [name])):
        return ItemColumn("list", _lists(parts, id_column, name, separator, observer))
    ids = read_codes(parts, id_column)
    found = read_codes(parts, name, observer, allows_missing=True, has_fractions=True)
    texts = _by_id(parts, name, ids, found)
    kind = wanted or _type_of(found.texts)
    if kind == "text":
        if wanted is None:
            _note_lists(parts, name, found.texts, observer)
        return ItemColumn("text", texts)
    values = {text: _converted(parts, name, kind, text, found) for text in found.texts}
    return ItemColumn(kind, {i: None if t is None else values[t] for i, t in texts.items()})


def _lists(
    parts: Sequence[TablePart], id_column: str, name: str, separator: str, observer: ReadingObserver
) -> dict[str, tuple[str, ...]]:
    """The texts of each id. Several rows of an id add up, each text once."""
    are_lists = all(is_list_type(part.table[name].type) for part in parts)
    for part in parts:
        refuse_written_lists(part, name)
    unfolded = [unfolded_answers(part, name) for part in parts]
    ids = read_codes(unfolded, id_column)
    found = read_codes(unfolded, name, observer, allows_missing=True, has_fractions=True)
    split = [(text,) if are_lists else _split(text, separator) for text in found.texts]
    by_id: dict[str, dict[str, None]] = {item: {} for item in ids.texts}
    rows = np.concatenate(ids.codes), np.concatenate(found.codes)
    for item, code in zip(*(each.tolist() for each in rows), strict=True):
        if code >= 0:
            by_id[ids.texts[item]].update(dict.fromkeys(split[code]))
    return {item: tuple(texts) for item, texts in by_id.items()}


def _split(text: str, separator: str) -> tuple[str, ...]:
    return tuple(word for each in text.split(separator) if (word := each.strip()))


def _by_id(
    parts: Sequence[TablePart], name: str, ids: CodedColumn, values: CodedColumn
) -> dict[str, str | None]:
    """The value of each id. Further rows may repeat it; another one is refused."""
    found: dict[str, str | None] = {}
    items, codes = (np.concatenate(each.codes).tolist() for each in (ids, values))
    for row, (item, code) in enumerate(zip(items, codes, strict=True)):
        text = None if code < 0 else values.texts[code]
        known = found.setdefault(ids.texts[item], text)
        if known is None and text is not None:
            found[ids.texts[item]] = text
        elif text is not None and known != text:
            raise ItemRepeated(
                f"{_place(parts, row, name)}: item {ids.texts[item]!r} has {text!r}, but before it "
                f"had {known!r}.",
                hint="Keep one row for each item. Or read the column as a list.",
            )
    return found


def _place(parts: Sequence[TablePart], row: int, name: str) -> str:
    for part in parts:
        if row < len(part.rows):
            return part.place(row, name)
        row -= len(part.rows)
    raise IndexError(row)


def _type_of(texts: Sequence[str]) -> ColumnType:
    """What the different texts of a column are; none at all are texts."""
    if texts and all(number_of(text) is not None and is_number(text) for text in texts):
        return "text" if any(_has_leading_zero(text) for text in texts) else "number"
    if texts and all(instant_of(text) is not None for text in texts):
        return "time"
    return "text"


def _has_leading_zero(text: str) -> bool:
    """True for 007 and 01234, which are names of something."""
    digits = text.lstrip("+-")
    return len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()


def _converted(
    parts: Sequence[TablePart], name: str, kind: ColumnType, text: str, found: CodedColumn
) -> float | int:
    if kind == "number" and is_number(text):
        return float(text)
    if kind == "time":
        at = instant_of(text)
        if at is not None:
            return at // NS_PER_US
        seconds = number_of(text)
        if seconds is not None and abs(seconds) < LATEST_S:
            return int(seconds * 1_000_000)
    row = int(np.flatnonzero(np.concatenate(found.codes) == found.texts.index(text))[0])
    place = _place(parts, row, name)
    if kind == "number":
        raise NumberUnreadable(
            f"{place}: {text!r} is not a finite number.", hint="Correct or empty the field."
        )
    raise TimeUnreadable(
        f"{place}: {text!r} is not a time.",
        hint="Write times in ISO's form, such as 2026-01-31T12:00:00Z, or as Unix seconds.",
    )


LATEST_S = 253_402_300_800
"""Unix seconds of the year 10000."""


def _note_lists(
    parts: Sequence[TablePart], name: str, texts: Sequence[str], observer: ReadingObserver
) -> None:
    """Say if fields seem to have several texts: words that are split are fewer than the fields."""
    for separator in SEPARATORS:
        several = [text for text in texts if len(_split(text, separator)) > 1]
        words = {word for text in texts for word in _split(text, separator)}
        if len(several) > 1 and len(words) <= len(texts):
            observer.notice(
                f"{parts[0].source}, column {name!r}: fields such as {several[0]!r} look like "
                f"several texts, but each is taken as one. As a list they would be split at "
                f"{separator!r}."
            )
            return
