"""Filters of rows: a column equals a value, whether its file has texts, numbers, truths or times.

Values are compared, not texts: ``5``, ``5.0`` and ``5e0`` are one number, ``true`` and ``True`` one
truth, and ``2024-01-02`` is the first moment of that day. A missing value equals nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peterrec.model.data.scalars import (
    NS_PER_DAY,
    NS_PER_SECOND,
    NUMBER,
    instant_of,
    number_of,
    truth_of,
)
from peterrec.model.errors import FilterUnreadable

UNIT_NS = {"s": NS_PER_SECOND, "ms": 10**6, "us": 10**3, "ns": 1}
"""Nanoseconds of the units of Arrow's timestamps."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter: keep rows whose ``column`` has the value that ``value`` writes (see the module)."""

    column: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``column=value``."""
        column, equals, value = text.partition("=")
        if not (column and equals):
            raise FilterUnreadable(
                f"filter {text!r} is not COLUMN=VALUE.", hint="Write it like domain=food."
            )
        return cls(column, value)

    def __str__(self) -> str:
        return f"{self.column}={self.value}"

    def matches(self, values: pa.Array) -> pa.Array:
        """Which of the column's values equal the filter's: a mask without nulls."""
        wanted = self.value.strip()
        types = pa.types
        kind = values.type
        if types.is_boolean(kind):
            found = _equals(values, truth_of(wanted))
        elif types.is_integer(kind):
            found = _equals(values, _whole(number_of(wanted)))
        elif types.is_decimal(kind):
            found = _equals(values, number_of(wanted))
        elif types.is_floating(kind):
            number = number_of(wanted)
            found = _equals(values, None if number is None else float(number))
        elif types.is_date(kind):
            found = _equals(values.cast(pa.date32()).cast(pa.int32()), _units(wanted, NS_PER_DAY))
        elif types.is_timestamp(kind):
            found = _equals(values.cast(pa.int64()), _units(wanted, UNIT_NS[kind.unit]))
        elif types.is_string(kind) or types.is_large_string(kind):
            found = _equals_text(values, wanted)
        else:
            found = _equals(values, None)
        return pc.fill_null(found, False)


def _equals(values: pa.Array, wanted: bool | int | float | Decimal | None) -> pa.Array:
    """Where values equal one of their type; nowhere if that type has no such value."""
    if wanted is not None:
        try:
            return pc.equal(values, pa.scalar(wanted, values.type))
        except (pa.ArrowInvalid, OverflowError):
            pass
    return pc.and_(pc.is_valid(values), False)


def _whole(number: Decimal | None) -> int | None:
    return int(number) if number is not None and number == number.to_integral_value() else None


def _units(wanted: str, nanoseconds: int) -> int | None:
    """A time in units of some nanoseconds, if it is a whole number of them."""
    instant = instant_of(wanted)
    return None if instant is None or instant % nanoseconds else instant // nanoseconds


def _equals_text(values: pa.Array, wanted: str) -> pa.Array:
    """Where texts write the same value: letter by letter, as a number, as a truth or as a time."""
    texts = pc.utf8_trim_whitespace(values)
    found = pc.equal(texts, wanted)
    if truth_of(wanted) is not None:
        found = pc.or_(found, pc.equal(pc.utf8_lower(texts), wanted.lower()))
    number = number_of(wanted)
    if number is not None:
        numbers = _where(texts, f"^{NUMBER}$").cast(pa.float64())
        near = pc.fill_null(pc.equal(numbers, float(number)), False)
        found = pc.or_(found, _confirmed(texts, near, lambda text: number_of(text) == number))
    instant = instant_of(wanted)
    if instant is not None:
        near = pc.is_valid(_where(texts, _days_around(instant)))
        found = pc.or_(found, _confirmed(texts, near, lambda text: instant_of(text) == instant))
    return found


def _where(texts: pa.Array, pattern: str) -> pa.Array:
    """The texts that have a pattern; null in place of the others."""
    return pc.if_else(pc.match_substring_regex(texts, pattern), texts, None)


def _confirmed(texts: pa.Array, near: pa.Array, is_equal: Callable[[str], bool]) -> pa.Array:
    """The places of ``near`` whose text passes an exact test."""
    found = np.zeros(len(texts), dtype=np.bool_)
    places = pc.indices_nonzero(near).to_pylist()
    found[places] = [is_equal(texts[place].as_py()) for place in places]
    return pa.array(found)


def _days_around(instant: int) -> str:
    """A pattern of the dates on which a time may be written, in whatever zone."""
    day = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=instant // NS_PER_DAY)
    days = [f"{day + timedelta(days=shift):%Y-%m-%d}" for shift in (-1, 0, 1)]
    return f"^({'|'.join(days)})"
