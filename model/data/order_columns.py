"""Order columns: positions, dates or times that keep their exact order, and bounds for them.

Numbers are 64-bit integers where all are whole, decimals where they have fractions, and floats
where a table has floats. Times are microseconds since 1970, or nanoseconds if some need them. What
none of these can hold is refused: events that the column tells apart do not become ties in silence.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.scalars import NS_PER_SECOND, instant_of, number_of
from peterrec.model.data.tables import TablePart, one_array
from peterrec.model.errors import OrderUnreadable

OrderValues = npt.NDArray[np.int64 | np.uint64 | np.float64]
Kind = Literal["number", "timestamp"]

INTEGERS = (pa.int64(), pa.uint64())
"""Types that whole numbers are kept in, in the order in which they are tried."""

SCALES = (0, 1, 2, 3, 6, 9, 12, 15, 18)
"""Digits after the point of the decimals that fractions are kept in."""

WIDEST = pa.decimal128(38, SCALES[-1])

TIMES = (
    *(pa.timestamp("us"), pa.timestamp("us", tz="UTC")),
    *(pa.timestamp("ns"), pa.timestamp("ns", tz="UTC")),
)
"""Types that texts are parsed as, in this order. A time without a zone is taken as UTC."""

NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"
"""Texts that are numbers here, where 007 is one, too."""

BEYOND = Decimal(2 * 10**19)
"""A bound that no 64-bit integer reaches."""

EXACT_BELOW = {pa.float16(): 2.0**11, pa.float32(): 2.0**24, pa.float64(): 2.0**53}
"""Floats below this tell all integers apart; at and above it, some were rounded."""

EPOCHS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
"""Units of times since 1970 that are written as numbers, by how many there are in a second."""

FIRST_EPOCH_S = 10**8
"""Numbers that are at least this many seconds are times since 1970. The next unit begins at a
thousand times as much, so seconds end in the year 5138, and all others begin in 1973."""


def epoch_of(smallest: float | Decimal, largest: float | Decimal) -> str | None:
    """The unit of numbers between two that are times since 1970, by their size, or None."""
    for unit, per_second in EPOCHS.items():
        first = FIRST_EPOCH_S * per_second
        if first <= smallest and largest < first * 1000:
            return unit
    return None


def joint_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of two, or None if one has times and the other numbers."""
    types = pa.types
    if one == other:
        return one
    if types.is_timestamp(one) or types.is_timestamp(other):
        both = types.is_timestamp(one) and types.is_timestamp(other)
        return pa.timestamp("ns") if both else None
    if types.is_float64(one) or types.is_float64(other):
        return pa.float64()
    scales = [kind.scale if types.is_decimal(kind) else 0 for kind in (one, other)]
    return pa.decimal128(38, max(scales))


@dataclass(slots=True)
class OrderColumn:
    """Reads one column part after part. All parts must have numbers, or all times.

    ``type`` holds the values of all parts so far.
    """

    column: str
    observer: ReadingObserver = SILENT
    type: pa.DataType | None = field(default=None, init=False)
    _has_zone: bool | None = field(default=None, init=False)
    _told: set[str] = field(default_factory=set, init=False)

    @property
    def kind(self) -> Kind:
        """Whether the column has numbers or times."""
        return "timestamp" if self.type and pa.types.is_timestamp(self.type) else "number"

    def values(self, part: TablePart) -> pa.Array:
        """One part's column as int64, uint64, float64, decimals or times.

        An error names the place of the first bad row.
        """
        if not part.table.num_rows:
            return pa.nulls(0, self.type or pa.int64())
        values = _numbers(part, self.column)
        if pa.types.is_timestamp(values.type):
            self._note_zone(part, values.type.tz is not None)
            values = values.cast(pa.timestamp(values.type.unit))
        joint = values.type if self.type is None else joint_type(self.type, values.type)
        if joint is None:
            kind = "timestamp" if pa.types.is_timestamp(values.type) else "number"
            raise OrderUnreadable(
                f"{part.place(0, self.column)}: {_value(part, self.column, 0)!r} is a {kind}, but "
                f"all rows before it have a {self.kind}.",
                hint="Convert the files to one form.",
            )
        self.type = joint
        return values

    def _note_zone(self, part: TablePart, has_zone: bool) -> None:
        if self._has_zone is None:
            self._has_zone = has_zone
        if self._has_zone != has_zone:
            self._tell(
                f"{part.source}: some times in column {self.column!r} have a zone, and some have "
                "none; those without are taken as UTC."
            )

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.observer.notice(text)

    def at_or_after(self, values: pa.Array, text: str) -> npt.NDArray[np.bool_]:
        """Which values are at a bound or later; the bound is written like them, or as a date."""
        bound = max(-BEYOND, min(BEYOND, self._bound(values, text)))
        kind = values.type
        if pa.types.is_timestamp(kind):
            values = values.cast(pa.int64())
        if pa.types.is_floating(kind):
            lowest = pa.scalar(float(bound))
        elif pa.types.is_decimal(kind):
            unit = Decimal(1).scaleb(-kind.scale)
            lowest = pa.scalar(bound.quantize(unit, rounding=ROUND_CEILING))
        else:
            lowest = pa.scalar(bound.to_integral_value(rounding=ROUND_CEILING))
            values = values.cast(pa.decimal128(38, 0))
        found: npt.NDArray[np.bool_] = pc.greater_equal(values, lowest).to_numpy(
            zero_copy_only=False
        )
        return found

    def _bound(self, values: pa.Array, text: str) -> Decimal:
        """A bound in the unit of the values."""
        number, instant = number_of(text), instant_of(text)
        if pa.types.is_timestamp(values.type):
            if instant is not None:
                return Decimal(instant) / (1 if values.type.unit == "ns" else 1000)
        elif number is not None:
            return number
        elif instant is not None:
            return self._epoch_bound(values, text, instant)
        raise OrderUnreadable(
            f"the cut-off {text!r} is not a {self.kind}, "
            f"but column {self.column!r} has {self.kind}s.",
            hint="Write it like the column's values, for example 2024-01-31 or 978300760.",
        )

    def _epoch_bound(self, values: pa.Array, text: str, instant: int) -> Decimal:
        """A date among numbers that are times since 1970."""
        ends = pc.min_max(values).as_py()
        unit = epoch_of(ends["min"], ends["max"])
        if unit is None:
            raise OrderUnreadable(
                f"the cut-off {text!r} is a date, but the numbers in column {self.column!r}, from "
                f"{ends['min']} to {ends['max']}, are not all times since 1970 in one unit.",
                hint="Write the cut-off as a number like the column's, or mend the column's unit.",
            )
        bound = Decimal(instant * EPOCHS[unit]) / NS_PER_SECOND
        self._tell(
            f"column {self.column!r} has {unit} since 1970, by the size of its numbers: the "
            f"cut-off {text} is {bound.normalize():f} there, in UTC."
        )
        return bound


def _numbers(part: TablePart, column: str) -> pa.Array:
    """A column's values in one of the types that keep their order."""
    array = one_array(part.table[column])
    kind = array.type
    found = next((read for is_kind, read in READERS if is_kind(kind)), None)
    if found is None:
        raise OrderUnreadable(
            f"{part.place(0, column)}: values of type {kind} are neither numbers nor times.",
            hint="Write the column as numbers or times. Or name another `order_column`.",
        )
    _refuse_missing(part, column, array.is_null(nan_is_null=True))
    return found(part, column, array)


def _signed(part: TablePart, column: str, values: pa.Array) -> pa.Array:
    return values.cast(pa.int64())


def _unsigned(part: TablePart, column: str, values: pa.Array) -> pa.Array:
    return _first_cast(values, INTEGERS)


def _floats(part: TablePart, column: str, values: pa.Array) -> pa.Array:
    limit = EXACT_BELOW[values.type]
    values = values.cast(pa.float64())
    infinite = pc.index(pc.is_finite(values), False).as_py()
    if infinite >= 0:
        raise _unreadable(part, column, infinite)
    _refuse_inexact(part, column, pc.greater_equal(pc.abs(values), limit))
    return values


def _decimals(part: TablePart, column: str, values: pa.Array) -> pa.Array:
    exact = _first_cast(values, (*INTEGERS, *(pa.decimal128(38, scale) for scale in SCALES)))
    if exact is None:
        _refuse_inexact(part, column, pa.array([True] * len(values)))
    return exact


def _dates(part: TablePart, column: str, values: pa.Array) -> pa.Array:
    return values.cast(pa.timestamp("us"))


def _timestamps(part: TablePart, column: str, values: pa.Array) -> pa.Array:
    exact = _first_cast(
        values, (pa.timestamp("us", tz=values.type.tz), pa.timestamp("ns", tz=values.type.tz))
    )
    if exact is None:  # seconds or milliseconds of a year beyond 290 000
        _refuse_inexact(part, column, pa.array([True] * len(values)))
    return exact


def _texts(part: TablePart, column: str, values: pa.Array) -> pa.Array:
    texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
    missing = pc.or_(pc.equal(texts, ""), pc.is_in(texts, pa.array(part.missing, pa.string())))
    _refuse_missing(part, column, missing)
    exact = _first_cast(texts, INTEGERS)
    if exact is None and pc.all(pc.match_substring_regex(texts, NUMBER)).as_py():
        return _fractions(part, column, texts)
    if exact is None:
        exact = _first_cast(pc.replace_substring_regex(texts, r"\s*UTC$", "Z"), TIMES)
    if exact is None:
        raise _unreadable(part, column, _first_unlike(texts.to_pylist()))
    return exact


def _fractions(part: TablePart, column: str, texts: pa.Array) -> pa.Array:
    """Numbers of which some have a fraction: decimals, or floats if they are as exact."""
    wide = _first_cast(texts, (WIDEST,))
    scales = tuple(pa.decimal128(38, scale) for scale in SCALES)
    exact = None if wide is None else _first_cast(wide, scales)
    if exact is not None:
        largest = pc.max(pc.abs(exact)).as_py()
        if largest.scaleb(exact.type.scale) < 2**63:
            return exact
    floats = _first_cast(texts, (pa.float64(),))
    if floats is None:
        raise _unreadable(part, column, 0)
    unlike = pc.not_equal(floats.cast(pa.string()), texts).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(unlike).tolist():
        unlike[row] = Decimal(texts[row].as_py()) != Decimal(repr(floats[row].as_py()))
    _refuse_inexact(part, column, pa.array(unlike))
    return floats


READERS: tuple[
    tuple[Callable[[pa.DataType], bool], Callable[[TablePart, str, pa.Array], pa.Array]], ...
] = (
    (pa.types.is_signed_integer, _signed),
    (pa.types.is_unsigned_integer, _unsigned),
    (pa.types.is_floating, _floats),
    (pa.types.is_decimal, _decimals),
    (pa.types.is_date, _dates),
    (pa.types.is_timestamp, _timestamps),
    (pa.types.is_string, _texts),
    (pa.types.is_large_string, _texts),
    (pa.types.is_null, _signed),
)
"""How the values of each type are read."""


def _first_cast(values: pa.Array, types: tuple[pa.DataType, ...]) -> pa.Array | None:
    """The values in the first type that holds them exactly."""
    for arrow_type in types:
        try:
            return values.cast(arrow_type)
        except pa.ArrowInvalid:
            continue
    return None


def _first_unlike(texts: list[str]) -> int:
    """The first row that does not have the type of the first row."""
    if re.match(NUMBER, texts[0]):
        return next((i for i, text in enumerate(texts) if not re.match(NUMBER, text)), 0)
    for arrow_type in TIMES:
        if _casts(texts[0], arrow_type):
            return next((i for i, text in enumerate(texts) if not _casts(text, arrow_type)), 0)
    return 0


def _casts(text: str, arrow_type: pa.DataType) -> bool:
    return _first_cast(pa.array([text], pa.string()), (arrow_type,)) is not None


def _refuse_missing(part: TablePart, column: str, missing: pa.Array) -> None:
    row = pc.index(missing, True).as_py()
    if row >= 0:
        raise OrderUnreadable(
            f"{part.place(row, column)}: the value is missing.",
            hint="Fill it or remove the row. Or name another `order_column`.",
        )


def _unreadable(part: TablePart, column: str, row: int) -> OrderUnreadable:
    value, first = _value(part, column, row), _value(part, column, 0)
    if row > 0 and isinstance(value, str):
        return OrderUnreadable(
            f"{part.place(row, column)}: {value!r} is not of the form of {first!r}, which is in "
            f"{part.place(0, column)}.",
            hint="Write all values alike, with or without a zone. Or name another `order_column`.",
        )
    return OrderUnreadable(
        f"{part.place(row, column)}: {value!r} is neither a number nor a timestamp.",
        hint="Write times like 2024-01-31 10:00:00 or as numbers. Or name another `order_column`.",
    )


def _refuse_inexact(part: TablePart, column: str, bad: pa.Array) -> None:
    row = pc.index(bad, True).as_py()
    if row >= 0:
        kind = part.table[column].type
        raise OrderUnreadable(
            f"{part.place(row, column)}: {_value(part, column, row)!r} of type {kind} does not "
            "keep its order exactly: numbers next to it are the same to the type, or to 64 bits.",
            hint="Write the column as integers or timestamps, from data that were never floats.",
        )


def _value(part: TablePart, column: str, row: int) -> object:
    value: object = part.table[column][row].as_py()
    return value
