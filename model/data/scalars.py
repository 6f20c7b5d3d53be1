"""A number, a truth or a time that is written as text, in a filter, a cut-off or a field."""

import re
from decimal import Decimal

import pyarrow as pa

NUMBER = r"[+-]?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?"
"""Texts of a column that are numbers. One with a leading zero, such as 007, is a name."""

TRUTHS = {"true": True, "false": False}

NS_PER_SECOND = 10**9
NS_PER_DAY = 86_400 * NS_PER_SECOND

TIME_TYPES = (
    (pa.timestamp("us"), 1000),
    (pa.timestamp("us", tz="UTC"), 1000),
    (pa.timestamp("ns"), 1),
    (pa.timestamp("ns", tz="UTC"), 1),
)
"""Types that a time is read as, with their nanoseconds. A time without a zone is taken as UTC."""


def number_of(text: str) -> Decimal | None:
    """The exact number that somebody writes, perhaps with leading zeros, or None."""
    found = re.fullmatch(r"\s*([+-]?)0*([0-9].*)", text, re.DOTALL)
    written = "".join(found.groups()).strip() if found else ""
    return Decimal(written) if re.fullmatch(NUMBER, written, re.ASCII) else None


def truth_of(text: str) -> bool | None:
    """Whether a text says true or false, in whatever case, or None."""
    return TRUTHS.get(text.strip().lower())


def instant_of(text: str) -> int | None:
    """Nanoseconds since 1970 of an ISO date or time, or None. A date is its first moment."""
    written = re.sub(r"\s*UTC$", "Z", text.strip())
    for arrow_type, nanoseconds in TIME_TYPES:
        try:
            at: int = pa.scalar(written).cast(arrow_type).cast(pa.int64()).as_py()
        except pa.ArrowInvalid:
            continue
        return at * nanoseconds
    return None
