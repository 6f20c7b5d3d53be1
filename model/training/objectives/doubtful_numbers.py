"""Numbers that can be trained on and are probably not meant: times, dates, ids, outliers."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

FEWEST_JUDGED = 20
"""Users below which numbers are not judged as times, ids or outliers: chance makes them look so."""

EXACT_WHOLE = 2.0**53
"""Whole numbers from here on may be rounded to a neighbour in float64."""

TIME_UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}

TIMES = (631_152_000.0, 4_102_444_800.0)
"""The years 1990 to 2100 in seconds since 1970."""

FIRST_DAY, LAST_DAY = 19_000_101, 21_001_231
"""Dates written as one number, from 1900 to 2100."""

ID_DIGITS = 7
"""Digits from which whole numbers that all differ and are equally long look like ids."""

DOMINANT_SHARE = 0.5
"""Share of the squared distances from the median from which one number is an outlier."""


def doubts_of_numbers(
    numbers: Numbers, texts: Sequence[str], users: Sequence[str]
) -> Iterator[str]:
    """A sentence for each doubt about the numbers of some users, and the texts they come from."""
    distinct = np.unique(numbers)
    if len(distinct) == 2:
        yield (
            f"There are only two values, {texts[int(numbers.argmin())]} and "
            f"{texts[int(numbers.argmax())]}: if they are classes, train a classification task."
        )
    if np.abs(numbers).max() >= EXACT_WHOLE:
        yield "Some values are 2^53 or more, where not every whole number is a float64."
    if len(numbers) < FEWEST_JUDGED:
        return
    whole = bool((numbers == np.round(numbers)).all())
    looks_like = (_as_times(distinct) or _as_dates(distinct) or _as_ids(numbers)) if whole else ""
    if np.mean([text == user for text, user in zip(texts, users, strict=True)]) > 1 / 2:
        looks_like = "equal the user ids"
    if looks_like:
        yield f"The values {looks_like}. If they are, they say nothing of how much or how many."
    yield from _dominant(numbers, texts, users)


def _as_times(distinct: Numbers) -> str:
    first, last = distinct[0], distinct[-1]
    for unit, factor in TIME_UNITS.items():
        if TIMES[0] * factor <= first and last <= TIMES[1] * factor:
            days = (datetime.fromtimestamp(t / factor, UTC).date() for t in (first, last))
            return f"look like times in {unit}, from {' to '.join(map(str, days))}"
    return ""


def _as_dates(distinct: Numbers) -> str:
    if not (distinct[0] >= FIRST_DAY and distinct[-1] <= LAST_DAY):
        return ""
    try:
        days = [_day(int(number)) for number in distinct]
    except ValueError:
        return ""
    return f"look like dates written as one number, from {days[0]} to {days[-1]}"


def _day(number: int) -> date:
    return date(number // 10_000, number // 100 % 100, number % 100)


def _as_ids(numbers: Numbers) -> str:
    count = len(numbers)
    if len(np.unique(numbers)) < count:
        return ""
    if count > 2 * FEWEST_JUDGED and np.ptp(numbers) < 2 * count:
        return "look like row numbers or ids: whole, all different and nearly without gaps"
    lengths = {len(str(int(abs(number)))) for number in numbers.tolist()}
    if len(lengths) == 1 and lengths.pop() >= ID_DIGITS:
        return "look like ids: whole, all different and equally long"
    return ""


def _dominant(numbers: Numbers, texts: Sequence[str], users: Sequence[str]) -> Iterator[str]:
    unit = np.abs(numbers).max() or 1.0
    squared = (numbers / unit - np.median(numbers / unit)) ** 2
    at = int(squared.argmax())
    if squared[at] > DOMINANT_SHARE * squared.sum():
        others = np.delete(numbers, at)
        yield (
            f"One value outweighs all others together: user {users[at]!r} has {texts[at]}, the "
            f"others have {others.min():.15g} to {others.max():.15g}. Scale, loss and metrics "
            "depend on that user."
        )
