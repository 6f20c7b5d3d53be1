"""Interactions, labels and targets from CSV or Parquet. All ids are strings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from model.data_errors import (
    DataFileEmpty,
    LabelDuplicate,
    NumberUnreadable,
    OrderUnreadable,
)
from model.histories import Histories, UserLabels
from model.tables import TablePart, TableSource, read_parts, text_column


@dataclass(frozen=True, slots=True)
class InteractionSource:
    """Where interactions are: one row per event, ordered by ``order_column`` or as in the file."""

    table: TableSource
    user_column: str = "user_id"
    item_column: str = "item_id"
    order_column: str | None = None


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Where the answers of a task are: one column of a table with a row per user (or several)."""

    table: TableSource
    column: str
    user_column: str = "user_id"


def read_histories(source: InteractionSource) -> Histories:
    """Every user's items in order; events of equal order keep the order of the files."""
    ordering = [] if source.order_column is None else [source.order_column]
    parts = read_parts(source.table, [source.user_column, source.item_column, *ordering])
    users, user_of_event = encode(text_column(parts, source.user_column))
    items, code_of_event = encode(text_column(parts, source.item_column))
    order = [] if source.order_column is None else [order_values(parts, source.order_column)]
    by_user = np.lexsort((*order, user_of_event))  # stable; the last key is the first criterion
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user_of_event, minlength=len(users)))])
    return Histories(users, items, code_of_event[by_user], offsets)


def read_labels(source: LabelSource) -> UserLabels:
    """One label per user. Users whose label is empty have none; a second row is refused."""
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
    """One finite number per user, kept as text."""
    for row in _label_rows(source):
        if row.text and not _is_finite_number(row.text):
            raise NumberUnreadable(
                f"{row.place}: {row.text!r} is no finite number.",
                hint="Correct or empty the field.",
            )
    return read_labels(source)


def read_tags(source: LabelSource, separator: str | None = None) -> UserLabels:
    """Any number of tags per user: several rows, or one field split at ``separator``.

    A user whose field is empty has no tags, which is an answer too. Repeated tags count once.
    """
    by_user: dict[str, dict[str, None]] = {}
    for row in _label_rows(source):
        tags = row.text.split(separator) if separator else [row.text]
        own = by_user.setdefault(row.user, {})
        own.update(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
    return _labels({user: tuple(tags) for user, tags in by_user.items()}, source)


def read_targets(source: InteractionSource) -> UserLabels:
    """Each user's target items, oldest first; repeated targets count once."""
    histories = read_histories(source)
    by_user = {
        user: tuple(dict.fromkeys(histories.items_of(i))) for i, user in enumerate(histories.users)
    }
    return UserLabels(by_user, str(source.table.path))


def _labels(by_user: dict[str, tuple[str, ...]], source: LabelSource) -> UserLabels:
    if not any(by_user.values()):
        raise DataFileEmpty(
            f"{source.table.path}, column {source.column!r}: no user has a value.",
            hint="Check the column.",
        )
    return UserLabels(by_user, str(source.table.path))


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
    """Every row of a label table; an empty field has the empty text."""
    for part in read_parts(source.table, [source.user_column, source.column]):
        users = text_column([part], source.user_column).to_pylist()
        texts = text_column([part], source.column, allows_nulls=True).to_pylist()
        for row, (user, text) in enumerate(zip(users, texts, strict=True)):
            yield _LabelRow(user, text or "", part, row, source.column)


def _is_finite_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def encode(values: pa.ChunkedArray) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Distinct values by first appearance, and each row's index among them."""
    encoded = values.combine_chunks().dictionary_encode()
    return tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy().astype(np.int64)


def order_values(parts: Sequence[TablePart], column: str) -> npt.NDArray[np.int64 | np.float64]:
    """Sortable numbers of an order column; numbers and timestamps do not mix."""
    arrays = [_part_order(part, column) for part in parts if part.table.num_rows]
    kinds = {"time" if pa.types.is_timestamp(array.type) else "number" for array in arrays}
    if len(kinds) > 1:
        raise OrderUnreadable(
            f"column {column!r} holds numbers in one file and timestamps in another.",
            hint="Convert the files to one form.",
        )
    plain = [array.cast(pa.int64()) if "time" in kinds else array for array in arrays]
    return np.concatenate([array.to_numpy() for array in plain])


def _part_order(part: TablePart, column: str) -> pa.ChunkedArray:
    values = part.table[column]
    _refuse_order(part, column, values.is_null(nan_is_null=True))
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = _parse_order(part, column)
    if pa.types.is_temporal(values.type):
        values = values.cast(pa.timestamp("us"), safe=False)
    _refuse_order(part, column, values.is_null(nan_is_null=True))
    return values


ORDER_TYPES = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", tz="UTC"))


def _parse_order(part: TablePart, column: str) -> pa.ChunkedArray:
    values = part.table[column]
    for arrow_type in ORDER_TYPES:
        try:
            return values.cast(arrow_type)
        except pa.ArrowInvalid:
            continue
    raise _unreadable(part, column, _first_unparsable(values.to_pylist()))


def _first_unparsable(texts: Sequence[str]) -> int:
    """The row to blame: the first that is not what the first row is."""
    for arrow_type in ORDER_TYPES[1:]:
        if _casts(texts[0], arrow_type):
            return next(i for i, text in enumerate(texts) if not _casts(text, arrow_type))
    return 0


def _casts(text: str, arrow_type: pa.DataType) -> bool:
    try:
        pa.array([text], pa.string()).cast(arrow_type)
    except pa.ArrowInvalid:
        return False
    return True


def _refuse_order(part: TablePart, column: str, bad: pa.ChunkedArray) -> None:
    if pc.any(bad).as_py():
        raise _unreadable(part, column, pc.index(bad, True).as_py())


def _unreadable(part: TablePart, column: str, row: int) -> OrderUnreadable:
    value = part.table[column][row].as_py()
    return OrderUnreadable(
        f"{part.place(row, column)}: {value!r} is neither a number nor a timestamp.",
        hint="Correct the row, or name another column with --order-column.",
    )
