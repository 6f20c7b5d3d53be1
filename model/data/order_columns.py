"""Order columns: positions, dates or times as sortable numbers, and bounds for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from peterrec.model.data.tables import TablePart
from peterrec.model.errors import OrderUnreadable

OrderValues = npt.NDArray[np.int64 | np.float64]
Kind = Literal["number", "timestamp"]

ORDER_TYPES = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", tz="UTC"))
"""Types that texts are parsed as, in this order. A time without a zone is taken as UTC."""


@dataclass(slots=True)
class OrderColumn:
    """Reads one column part after part. All parts must have numbers, or all timestamps.

    ``kind`` is set by the first part with rows. Timestamps become microseconds since 1970 in UTC.
    """

    column: str
    kind: Kind | None = field(default=None, init=False)

    def values(self, part: TablePart) -> OrderValues:
        """One part's column as numbers. An error names the place of the first bad row."""
        if not part.table.num_rows:
            return np.empty(0, dtype=np.int64)
        parsed = _parsed(part, self.column)
        kind: Kind = "timestamp" if pa.types.is_timestamp(parsed.type) else "number"
        self.kind = self.kind or kind
        if kind != self.kind:
            raise OrderUnreadable(
                f"{part.place(0, self.column)}: {_value(part, self.column, 0)!r} is a {kind}, but "
                f"all rows before it have a {self.kind}.",
                hint="Convert the files to one form.",
            )
        plain = parsed.cast(pa.int64()) if kind == "timestamp" else parsed
        numbers: OrderValues = plain.to_numpy()
        return numbers

    def bound(self, text: str) -> float:
        """A bound that is written like the column's values, as one of the column's numbers."""
        types = ORDER_TYPES[2:] if self.kind == "timestamp" else ORDER_TYPES[:2]
        for arrow_type in types:
            if _casts(text, arrow_type):
                value = pa.scalar(text).cast(arrow_type)
                as_number = value.cast(pa.int64()) if self.kind == "timestamp" else value
                number: float = as_number.as_py()
                return number
        raise OrderUnreadable(
            f"the cut-off {text!r} is not a {self.kind}, "
            f"but column {self.column!r} has {self.kind}s.",
            hint="Write it like the column's values, for example 2024-01-31 or 978300760.",
        )


def _parsed(part: TablePart, column: str) -> pa.ChunkedArray:
    values = part.table[column]
    _refuse(part, column, values.is_null(nan_is_null=True))
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = _parse(part, column)
    if pa.types.is_temporal(values.type):
        values = values.cast(pa.timestamp("us"), safe=False)
    _refuse(part, column, values.is_null(nan_is_null=True))
    return values


def _parse(part: TablePart, column: str) -> pa.ChunkedArray:
    values = part.table[column]
    for arrow_type in ORDER_TYPES:
        try:
            return values.cast(arrow_type)
        except pa.ArrowInvalid:
            continue
    raise _unreadable(part, column, _first_unparsable(values.to_pylist()))


def _first_unparsable(texts: Sequence[str]) -> int:
    """The first row that does not have the type of the first row."""
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


def _refuse(part: TablePart, column: str, bad: pa.ChunkedArray) -> None:
    if pc.any(bad).as_py():
        raise _unreadable(part, column, pc.index(bad, True).as_py())


def _unreadable(part: TablePart, column: str, row: int) -> OrderUnreadable:
    return OrderUnreadable(
        f"{part.place(row, column)}: {_value(part, column, row)!r} is neither a number nor a "
        "timestamp.",
        hint="Correct the row, or name another column with --order-column.",
    )


def _value(part: TablePart, column: str, row: int) -> object:
    value: object = part.table[column][row].as_py()
    return value
