"""``where``: which items of a catalog pass conditions on their attributes, exactly."""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, Meta, Struct, UnsetType

from peterrec.patches.bundle.attributes import EARLIEST, LATEST, Attributes, Column
from peterrec.patches.bundle.manifest import LONGEST_ATTRIBUTE
from peterrec.patches.bundle.outputs import type_of
from peterrec.service.errors import FilterInvalid, UnknownAttribute, cut

MAX_CONDITIONS = 16
"""Most attributes that a filter has conditions on."""

MAX_VALUES = 256
"""Most values of a list in a filter."""

MAX_ALL_VALUES = 16
"""Most values that a list may be asked to have together: each takes a look at all items."""

TEXT_WORK = 1000
"""How many values of a column a wanted text counts as, since it is sought by bisection."""

MAX_VALUE_CHARACTERS = 256
"""Characters of the longest text in a filter: no attribute has a longer one."""

SHOWN_VALUE = 60
"""Characters of a value that an error repeats."""

SIMILARITY = 0.6
"""From which similarity on a hint proposes the name of another attribute."""

Flags = npt.NDArray[np.bool_]

Value = Annotated[str, Meta(max_length=MAX_VALUE_CHARACTERS)] | int | float | bool
Values = Annotated[list[Value], Meta(min_length=1, max_length=MAX_VALUES)]


class Condition(
    Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename={"in_": "in", "not_": "not"},
):
    """What an attribute must be; all that is given must hold.

    An item without a value passes only `not` and `"exists": false`.
    """

    eq: Annotated[
        Value | UnsetType, Meta(description="Equal; of a list, that it has this value.")
    ] = UNSET
    in_: Annotated[
        Values | UnsetType, Meta(description="One of these; of a list, that it has any of them.")
    ] = UNSET
    not_: Annotated[
        Value | Values | UnsetType, Meta(description="None of these; of a list, that it has none.")
    ] = UNSET
    all: Annotated[
        Annotated[list[Value], Meta(min_length=1, max_length=MAX_ALL_VALUES)] | UnsetType,
        Meta(description="A list that has all of these."),
    ] = UNSET
    gt: Value | UnsetType = UNSET
    gte: Value | UnsetType = UNSET
    lt: Value | UnsetType = UNSET
    lte: Value | UnsetType = UNSET
    exists: Annotated[
        bool | UnsetType, Meta(description="Whether the item has a value at all.")
    ] = UNSET


Where = Annotated[
    dict[
        Annotated[str, Meta(max_length=LONGEST_ATTRIBUTE)],
        Value | Values | Condition,
    ],
    Meta(
        max_length=MAX_CONDITIONS,
        description="Which items a ranking may return, by the attributes that the bundle has: a "
        "value, a list of values of which one must be there, or an object of conditions. Times are "
        "in ISO's form or Unix seconds.",
        examples=[{"genre": ["Drama", "War"], "price": {"gte": 5, "lt": 20}}],
    ),
]


def key_of(where: Where) -> bytes:
    """Return bytes that are equal for equal filters, whatever the order of their attributes."""
    return _encode(where)


_encode = msgspec.json.Encoder(order="sorted").encode


def passing(where: Where, attributes: Attributes, items: int) -> Flags:
    """Return which of a catalog's items pass, bool [items].

    Raises UnknownAttribute or FilterInvalid. Blocks for some milliseconds per million items and
    attribute.
    """
    found = np.ones(items, np.bool_)
    for name, condition in where.items():
        column = attributes.get(name)
        if column is None:
            raise _unknown(name, attributes)
        found &= _Tested(name, column).passing(_as_condition(condition))
    return found


def work_of(where: Where, attributes: Attributes, items: int) -> int:
    """Return about how many values ``passing`` looks at."""
    return sum(
        _looks(_as_condition(condition)) * _size(attributes[name], items)
        + TEXT_WORK * _values(_as_condition(condition))
        for name, condition in where.items()
        if name in attributes
    )


def _size(column: Column, items: int) -> int:
    return items if column.codes is None else items + len(column.codes)


def _looks(condition: Condition) -> int:
    """How often a condition looks at its column."""
    tests = len(condition.__struct_fields__)
    return tests if condition.all is UNSET else tests + len(condition.all)


def _values(condition: Condition) -> int:
    """How many values a condition names, about."""
    lists = (condition.in_, condition.not_, condition.all)
    return 1 + sum(len(each) for each in lists if isinstance(each, list))


def _as_condition(given: object) -> Condition:
    if isinstance(given, Condition):
        return given
    return Condition(in_=given) if isinstance(given, list) else Condition(eq=given)  # type: ignore[arg-type]  # a Value


class _Tested:
    """A column of a catalog that a filter has a condition on."""

    def __init__(self, name: str, column: Column) -> None:
        self._name = name
        self._column = column

    def passing(self, condition: Condition) -> Flags:
        """Return which items meet the condition."""
        found = [
            _TESTS[test](self, wanted)
            for test in condition.__struct_fields__
            if (wanted := getattr(condition, test)) is not UNSET
        ]
        if not found:
            raise FilterInvalid(
                f"the condition on {self._name!r} is empty.",
                hint='Name a value: {"eq": …}, or leave the attribute out.',
            )
        return np.asarray(np.logical_and.reduce(found))

    def any_of(self, wanted: object) -> Flags:
        """The items that have one of some values."""
        values = wanted if isinstance(wanted, list) else [wanted]
        column = self._column
        if column.numbers is not None:
            return np.isin(column.numbers, [self._number(each) for each in values])
        if column.times is not None:
            return np.isin(column.times, [self._time(each) for each in values])
        assert column.codes is not None
        assert column.texts is not None
        is_wanted = np.zeros(len(column.texts) + 1, np.bool_)  # the last one is that of no text
        for each in values:
            text = self._text(each)
            code = bisect_left(column.texts, text)
            if code < len(column.texts) and column.texts[code] == text:
                is_wanted[code] = True
        hits: Flags = is_wanted[column.codes]
        if column.rows is None:
            return hits
        before = np.zeros(len(hits) + 1, np.int64)
        np.cumsum(hits, out=before[1:])
        return np.asarray(before[column.rows[1:]] > before[column.rows[:-1]])

    def none_of(self, wanted: object) -> Flags:
        """The items that have none of some values."""
        return ~self.any_of(wanted)

    def all_of(self, wanted: object) -> Flags:
        """The items whose list has all of some values."""
        if not self._column.form.is_list:
            raise self._no_such_test("all", "lists")
        assert isinstance(wanted, list)
        return np.asarray(np.logical_and.reduce([self.any_of(each) for each in wanted]))

    def exists(self, wanted: object) -> Flags:
        """The items that have a value, or those that have none."""
        has_value = self._column.has_value
        return has_value if wanted else ~has_value

    def compared(
        self, test: str, compare: Callable[[npt.NDArray[np.generic], float], Flags], bound: object
    ) -> Flags:
        """The items whose number or time is above or below a bound."""
        column = self._column
        if column.numbers is not None:
            return compare(column.numbers, self._number(bound))
        if column.times is not None:
            return compare(column.times, self._time(bound)) & column.has_value
        raise self._no_such_test(test, "numbers and times")

    def _text(self, value: object) -> str:
        if isinstance(value, str):
            return value
        written = "true" if value is True else "false" if value is False else f"{value}"
        raise self._wrong_type(value, f'Its values are texts: send "{cut(written, SHOWN_VALUE)}".')

    def _number(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong_type(value, "Its values are numbers: send one without quotes.")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._wrong_type(value, "It is beyond the largest number.")
        return number

    def _time(self, value: object) -> int:
        """The microseconds since 1970 of a text in ISO's form, in UTC if it does not say, or of
        Unix seconds."""
        hint = 'Its values are times: send "2026-01-31T12:00:00Z", a date, or Unix seconds.'
        try:
            if isinstance(value, str):
                at = datetime.fromisoformat(value)
                at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
                since = at - EPOCH
                return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds
            if isinstance(value, int | float) and not isinstance(value, bool):
                found = round(value * 1_000_000)
                if EARLIEST <= found <= LATEST:
                    return found
        except (ValueError, OverflowError):
            pass
        raise self._wrong_type(value, hint)

    def _wrong_type(self, value: object, hint: str) -> FilterInvalid:
        shown = cut(repr(value) if isinstance(value, str) else _written(value), SHOWN_VALUE)
        return FilterInvalid(
            f"attribute {self._name!r} is a {type_of(self._column.form)}; {shown} is none.",
            hint=hint,
        )

    def _no_such_test(self, test: str, belongs_to: str) -> FilterInvalid:
        return FilterInvalid(
            f"attribute {self._name!r} is a {type_of(self._column.form)}; `{test}` belongs to "
            f"{belongs_to}.",
            hint="Texts can be tested by eq, in, not and exists, and lists also by all.",
        )


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_TESTS: Mapping[str, Callable[[_Tested, object], Flags]] = {
    "eq": _Tested.any_of,
    "in_": _Tested.any_of,
    "not_": _Tested.none_of,
    "all": _Tested.all_of,
    "gt": lambda tested, bound: tested.compared("gt", np.greater, bound),
    "gte": lambda tested, bound: tested.compared("gte", np.greater_equal, bound),
    "lt": lambda tested, bound: tested.compared("lt", np.less, bound),
    "lte": lambda tested, bound: tested.compared("lte", np.less_equal, bound),
    "exists": _Tested.exists,
}


def _written(value: object) -> str:
    """A number as JSON writes it; the digits of a huge one are not made."""
    if isinstance(value, int) and abs(value) >= 10**SHOWN_VALUE:
        return "a number of very many digits"
    return msgspec.json.encode(value).decode()


def _unknown(name: str, attributes: Attributes) -> UnknownAttribute:
    names: Sequence[str] = sorted(attributes)
    near = get_close_matches(name, names, n=1, cutoff=SIMILARITY)
    return UnknownAttribute(cut(name, SHOWN_VALUE), names, near[0] if near else None)
