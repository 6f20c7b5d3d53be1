"""Tables with one row per user, whose columns hold lists: they become one row per value.

Lists are Parquet's and Arrow's, of any kind, and RecBole's ``token_seq`` and ``float_seq``, whose
values stand between spaces in one field. Rows keep the number of the row that they come from.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from peterrec.model.data.forms import is_list_type
from peterrec.model.data.tables import TablePart
from peterrec.model.errors import ListsInvalid

EVENTS_AT_ONCE = 1 << 21
"""Values of lists that are unfolded at a time, unless one row has more."""

COMPARED_ROWS = 1 << 12
"""Rows that are looked at to tell training samples, which repeat earlier events, from sequences."""


def list_columns(part: TablePart, columns: Sequence[str]) -> list[str]:
    """Those of the columns that have several values in a row."""
    in_text = () if part.file is None else part.file.lists
    return [c for c in columns if c in in_text or is_list_type(part.table[c].type)]


def unfolded(part: TablePart, user: str, columns: Sequence[str]) -> Iterator[TablePart]:
    """The part with one row per event, if its columns of items and times are lists.

    A row with an empty list, or none, has no events. Refused are a list beside a single value,
    lists of one row that differ in length, lists written as texts such as ``[1, 2]``, and rows that
    repeat the events of the row before.
    """
    lists = list_columns(part, columns)
    if not lists:
        refuse_written_lists(part, columns[0])
        yield part
        return
    if len(lists) < len(columns):
        other = next(column for column in columns if column not in lists)
        raise ListsInvalid(
            f"{part.place(0, lists[0])}: {lists[0]!r} has lists, but {other!r} has one value in "
            "each row.",
            hint="Name two columns of lists. Or leave `order_column` out: lists are in order.",
        )
    arrays = {column: _lists_of(part, column) for column in lists}
    lengths = _common_lengths(part, arrays)
    _refuse_samples(part, user, arrays[lists[0]])
    for rows in _slices(lengths):
        values = {column: pc.list_flatten(lists[rows]) for column, lists in arrays.items()}
        parents = np.repeat(np.arange(rows.start, rows.stop), lengths[rows])
        yield _part_of(part, parents, values)


def unfolded_answers(part: TablePart, column: str) -> TablePart:
    """The part with one row per value of a column of answers, if that has lists.

    An empty list, or none, is one row without a value.
    """
    if not list_columns(part, [column]):
        return part
    lists = _lists_of(part, column)
    lengths = _lengths(lists)
    kept = np.maximum(lengths, 1)
    parents = np.repeat(np.arange(len(lengths)), kept)
    places = np.full(len(parents), -1, dtype=np.int64)
    places[np.repeat(lengths, kept) > 0] = np.arange(int(lengths.sum()))
    values = pc.list_flatten(lists).take(pa.array(places, mask=places < 0))
    return _part_of(part, parents, {column: values})


def _part_of(
    part: TablePart, parents: npt.NDArray[np.int64], values: dict[str, pa.Array]
) -> TablePart:
    """A part with these rows of another one, and columns in the place of its lists."""
    columns = {
        name: values[name] if name in values else part.table[name].take(pa.array(parents))
        for name in part.table.column_names
    }
    return replace(part, table=pa.table(columns), rows=part.rows[parents])


def _lists_of(part: TablePart, column: str) -> pa.Array:
    """A column as one array of lists."""
    values = part.table[column].combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # no rows
        values = pa.concat_arrays(values.chunks) if values.chunks else pa.array([], values.type)
    if is_list_type(values.type):
        return values
    return split_texts(values)


def split_texts(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Lists of the words of texts; a text without words is null."""
    trimmed = pc.utf8_trim_whitespace(texts)
    split = pc.utf8_split_whitespace(trimmed)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, split.type), split)


def _lengths(lists: pa.Array) -> npt.NDArray[np.int64]:
    counts = pc.list_value_length(lists).fill_null(0)
    lengths: npt.NDArray[np.int64] = counts.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return lengths


def _common_lengths(part: TablePart, arrays: dict[str, pa.Array]) -> npt.NDArray[np.int64]:
    first, *others = arrays
    lengths = _lengths(arrays[first])
    for other in others:
        differing = np.flatnonzero(_lengths(arrays[other]) != lengths)
        if len(differing):
            row = int(differing[0])
            raise ListsInvalid(
                f"{part.place(row, other)}: a list of {_lengths(arrays[other])[row]} values, but "
                f"{first!r} has {lengths[row]}.",
                hint="Give each item its time, or leave the row out.",
            )
    return lengths


def _slices(lengths: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Rows in runs of about ``EVENTS_AT_ONCE`` events; one empty run if there are no rows."""
    groups = np.cumsum(lengths) // EVENTS_AT_ONCE
    starts = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist()]
    for start, stop in zip(starts, [*starts[1:], len(lengths)], strict=True):
        yield slice(start, stop)


def _refuse_samples(part: TablePart, user: str, lists: pa.Array) -> None:
    """Refuse rows of one user that repeat each other, as the training samples of RecBole do."""
    users = part.table[user].slice(0, COMPARED_ROWS).to_pylist()
    rows = lists.slice(0, COMPARED_ROWS).to_pylist()
    pairs = [i for i in range(1, len(rows)) if users[i] == users[i - 1] and rows[i] and rows[i - 1]]
    repeating = [i for i in pairs if _continues(rows[i - 1], rows[i])]
    if len(repeating) * 2 > len(pairs):
        row = repeating[0]
        raise ListsInvalid(
            f"{part.place(row, user)}: the list repeats that of the row before, as in files of "
            "training samples. Each event would count many times.",
            hint="Keep the last row of each user. RecBole's files: `peterrec convert recbole`.",
        )


def _continues(before: list[object], after: list[object]) -> bool:
    """Whether a list begins with the one before, or is the same window moved by one."""
    if len(after) > len(before):
        return after[: len(before)] == before
    return len(after) == len(before) > 1 and after[:-1] == before[1:] and after != before


def notice_of_padding(part: TablePart, item: str) -> str | None:
    """What to say if lists seem to be filled up to one length with an item that is none."""
    if item not in list_columns(part, [item]) or not part.table.num_rows:
        return None
    lists = [row for row in _lists_of(part, item).slice(0, COMPARED_ROWS).to_pylist() if row]
    if len(lists) < 2 or len({len(row) for row in lists}) > 1 or len(lists[0]) < 2:
        return None
    for end, next_to_it in ((-1, -2), (0, 1)):
        value, count = Counter(row[end] for row in lists).most_common(1)[0]
        repeats = any(row[end] == row[next_to_it] == value for row in lists)
        if repeats and 2 * count > len(lists):
            where = "end with" if end else "begin with"
            return (
                f"{part.source}, column {item!r}: all lists have {len(lists[0])} values, and most "
                f"{where} {value!r}, as if they were filled up with it. It is read as an item; "
                "write the lists without it if it is none."
            )
    return None


def notice_of_written_lists(items: pa.Array, column: str, source: str) -> str | None:
    """What to say if the only item of each user looks like several ones in one text."""
    texts = items.slice(0, COMPARED_ROWS)
    several = pc.match_substring_regex(texts, r"\S[ |;,]\S")
    if pc.sum(several).as_py() * 2 <= len(texts):
        return None
    return (
        f"{source}, column {column!r}: each user has one item, and items like {texts[0].as_py()!r} "
        "look like several ones in one text. Lists are read from Parquet's columns of lists."
    )


def refuse_unread_lists(part: TablePart, item: str) -> None:
    """Refuse to read only the items of RecBole's samples, whose lists hold the earlier events."""
    lists = f"{item}_list"
    if part.file is not None and lists in part.file.lists:
        raise ListsInvalid(
            f"{part.name} has the lists {lists!r} of the items before {item!r}: its rows are "
            "samples, not events.",
            hint="Put the events together with `peterrec convert recbole`. Or read the lists "
            f"alone: `item_column` {lists}.",
        )


def refuse_written_lists(part: TablePart, column: str) -> None:
    """Refuse items or tags that are all lists in one text, such as ``[1, 2]``."""
    values = part.table[column]
    if not pa.types.is_string(values.type) or not part.table.num_rows:
        return
    texts = pc.drop_null(values.slice(0, COMPARED_ROWS))
    if len(texts) and pc.all(pc.match_substring_regex(texts, r"^\s*(\[.*\]|\(.*\))\s*$")).as_py():
        raise ListsInvalid(
            f"{part.place(0, column)}: {texts[0].as_py()!r} is a list that is written as a text.",
            hint="Write one row per value, or a Parquet file with a column of lists.",
        )
