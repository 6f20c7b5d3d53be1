"""Users to score, some at a time: each user's id and items, and the rows that cannot be read.

A source is read row after row and never held in memory as a whole. A row that is wrong is kept with
its reason and costs no other row anything; a source that is wrong as a whole is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from peterrec.model.data.forms import is_list_type
from peterrec.model.data.lists import split_texts
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.tables import TablePart, TableSource, one_array, read_batches
from peterrec.model.data.values import EXACT_BELOW, doubtful_texts, texts_of
from peterrec.model.errors import PeterRecError, ValueTypeInvalid
from peterrec.model.spec import MAX_HISTORY_ITEMS

ROWS_AT_ONCE = 1 << 14
"""Users that are read at a time: with fifty items each, some megabytes."""

SHOWN_USER = 64
"""Characters of a user's id that are kept of a bad row."""

Offsets = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be scored: where it is, whose it is if that is known, and why.

    ``at`` is its place among the rows that were read together.
    """

    at: int
    place: str
    user: str | None
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class UserRows:
    """Some rows of a source, in its order: the users that were read, and the rows that were not.

    ``users`` are int64 or texts, without nulls. The items of user ``i`` are
    ``items[offsets[i]:offsets[i + 1]]``, int64 or texts, oldest first. ``bad`` rows are in order.
    """

    users: pa.Array
    items: pa.Array
    offsets: Offsets
    bad: tuple[BadRow, ...] = ()

    def __len__(self) -> int:
        """Rows of the source, the bad ones too."""
        return len(self.users) + len(self.bad)

    def split(self, at: int) -> tuple["UserRows", "UserRows"]:
        """The first ``at`` rows, and the others."""
        before = tuple(row for row in self.bad if row.at < at)
        after = tuple(replace(row, at=row.at - at) for row in self.bad if row.at >= at)
        users = at - len(before)
        return self._part(0, users, before), self._part(users, len(self.users), after)

    def cut(self, most: int) -> Iterator["UserRows"]:
        """All rows, ``most`` at a time."""
        rest = self
        while len(rest) > most:
            block, rest = rest.split(most)
            yield block
        yield rest

    def _part(self, start: int, stop: int, bad: tuple[BadRow, ...]) -> "UserRows":
        offsets = self.offsets[start : stop + 1]
        items = self.items.slice(offsets[0], offsets[-1] - offsets[0])
        return UserRows(self.users.slice(start, stop - start), items, offsets - offsets[0], bad)


@dataclass(frozen=True, slots=True)
class Lists:
    """Rows as a reader finds them: ids and lists of items, some of which may be wrong.

    ``items`` are those of all lists one after the other; ``lengths`` is -1 where there is no list.
    ``places`` are the rows' numbers for people, and ``name`` is the file.
    """

    name: str
    unit: Literal["row", "line", "user"]
    places: Sequence[object] | npt.NDArray[np.int64]
    users: pa.Array
    items: pa.Array
    lengths: Offsets


def read_user_lists(
    table: TableSource,
    user_column: str,
    history_column: str,
    observer: ReadingObserver = SILENT,
) -> Iterator[UserRows]:
    """Rows of a table that has one row per user, with a list of items in one column.

    In a text table, the items of a field stand between blanks, or as in ``[1, 2]``.
    """
    source = replace(table, batch_rows=ROWS_AT_ONCE)
    told = False
    for part in read_batches(source, [user_column, history_column], observer):
        if not part.table.num_rows:
            continue
        written = part.file is not None and part.file.form is not None
        lists = _lists_of(part, history_column)
        if written and not told:
            told = True
            observer.notice(
                f"{part.source}, column {history_column!r}: the items of a field stand between "
                "blanks or commas, in brackets or without."
            )
        lengths = pc.list_value_length(lists).fill_null(0 if written else -1)
        found = Lists(
            part.name,
            "row",
            part.rows + 1,
            one_array(part.table[user_column]),
            pc.list_flatten(lists),
            lengths.cast(pa.int64()).to_numpy(zero_copy_only=False),
        )
        yield checked(found, table.missing)


def _lists_of(part: TablePart, column: str) -> pa.Array:
    """A column as lists; a text becomes the list of its words."""
    values = part.table[column].combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if is_list_type(values.type):
        return values
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        plain = pc.replace_substring_regex(values, r"[\[\](),;|\"']+", " ")
        return split_texts(plain)
    raise ValueTypeInvalid(
        f"{part.place(0, column)}: values of type {values.type} are no lists of items.",
        hint="Name the column of the users' items with `history_column`; a table with one row per "
        "event has an `item_column`.",
    )


def checked(found: Lists, missing: tuple[str, ...] = ()) -> UserRows:
    """The rows that can be scored, and the others with their reasons."""
    users, odd_users = ids_of(found.users)
    items, odd_items = ids_of(found.items)
    lengths = np.maximum(found.lengths, 0)
    reasons: list[tuple[Flags, str, str]] = [
        (odd_users, "value_type_invalid", "the user's id is neither a text nor an integer."),
        (without_id(users, missing), "value_missing", "the user has no id."),
        (found.lengths < 0, "value_missing", "there is no list of items."),
        (_any_of(lengths, odd_items), *ODD_ITEM),
        (_any_of(lengths, _nulls(items)), "value_missing", "an item of the list is missing."),
        (lengths > MAX_HISTORY_ITEMS, *TOO_LONG),
    ]
    is_bad = np.logical_or.reduce([flags for flags, _, _ in reasons])
    if not is_bad.any():
        return UserRows(users, items, _offsets(lengths))
    bad = tuple(_bad_rows(found, reasons, np.flatnonzero(is_bad)))
    items = items.filter(pa.array(np.repeat(~is_bad, lengths)))
    return UserRows(users.filter(pa.array(~is_bad)), items, _offsets(lengths[~is_bad]), bad)


ODD_ITEM = ("value_type_invalid", "an item is neither a text nor an integer.")
TOO_LONG = (
    "history_too_long",
    f"the history has more than {MAX_HISTORY_ITEMS} items. Send the newest ones.",
)


def ids_of(values: pa.Array) -> tuple[pa.Array, Flags]:
    """Ids as int64 or texts, and which of them are neither; those are null.

    Floats that are whole are the integers that they write. Blanks around texts are removed.
    """
    kind = values.type
    none = np.zeros(len(values), np.bool_)
    if pa.types.is_dictionary(kind):
        return ids_of(values.dictionary_decode())
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return values.cast(pa.int64()), none
    if kind in EXACT_BELOW:
        return _ids_of_floats(values)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return pc.utf8_trim_whitespace(values.cast(pa.string())), none
    if pa.types.is_null(kind):
        return values.cast(pa.string()), none
    try:
        part = TablePart("ids", None, pa.table({"id": values}), np.arange(len(values)))
        return texts_of(part, "id").cast(pa.string()), none
    except PeterRecError as error:
        raise ValueTypeInvalid(
            f"values of type {kind} are neither texts nor integers, as ids are.",
            hint="Write users and items as texts or integers.",
        ) from error


def _ids_of_floats(values: pa.Array) -> tuple[pa.Array, Flags]:
    kind = values.type
    values = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
    is_exact = pc.less(pc.abs(values), pa.scalar(EXACT_BELOW[kind], kind))
    is_whole = pc.and_(pc.equal(values, pc.floor(values)), is_exact)
    numbers = pc.if_else(is_whole, values, pa.scalar(None, kind)).cast(pa.int64())
    return numbers, _nulls(numbers) & ~_nulls(values)


def _nulls(values: pa.Array) -> Flags:
    if not values.null_count:
        return np.zeros(len(values), np.bool_)
    flags: Flags = values.is_null().to_numpy(zero_copy_only=False)
    return flags


def _any_of(lengths: Offsets, flags: Flags) -> Flags:
    """The users of whose items one is flagged; user i has the next ``lengths[i]`` items."""
    found = np.zeros(len(lengths), np.bool_)
    if flags.any():
        found[np.repeat(np.arange(len(lengths)), lengths)[flags]] = True
    return found


def without_id(users: pa.Array, missing: tuple[str, ...]) -> Flags:
    """Which ids are missing, or are texts that may mean so."""
    if not pa.types.is_string(users.type):
        return _nulls(users)
    none = pa.array(["", *doubtful_texts(missing), *missing], pa.string())
    flags: Flags = pc.is_in(users, none).to_numpy(zero_copy_only=False)
    return flags | _nulls(users)


def _offsets(lengths: Offsets) -> Offsets:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _bad_rows(
    found: Lists, reasons: list[tuple[Flags, str, str]], rows: npt.NDArray[np.int64]
) -> Iterator[BadRow]:
    for row in rows.tolist():
        code, reason = next((code, text) for flags, code, text in reasons if flags[row])
        user = found.users[row].as_py()
        shown = None if user is None else str(user)[:SHOWN_USER]
        yield BadRow(row, f"{found.name}, {found.unit} {found.places[row]}", shown, code, reason)
