"""What a table of interactions and a table of answers look like: numbers to read before training.

Everything is counted from events as integers (``Events``). What needs a sort is computed for some
users at a time, so that a hundred million events need little more memory than they take.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from peterrec.model.data.histories import UserLabels
from peterrec.model.data.interactions import Events
from peterrec.model.data.order_columns import EPOCHS, OrderValues, epoch_of
from peterrec.model.data.scalars import number_of
from peterrec.model.documents import Document
from peterrec.model.progress import OnProgress, Progress, no_progress

Counts = npt.NDArray[np.int64]

QUANTILES = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "p99": 99}

BLOCK_EVENTS = 1 << 23
"""Events that are sorted at a time, unless one user has more; about 600 MB of memory."""

TOP = 10
"""Items or classes that are listed, the most frequent ones."""

TIME_BINS = 40
"""Equal parts of the whole time in which events are counted."""

MOST_CLASSES = 50
"""A column of numbers with more distinct values than this is described as numbers."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of counts: quantiles by name, the mean and the largest."""

    quantiles: dict[str, float]
    mean: float
    largest: int


@dataclass(frozen=True, slots=True)
class Frequent:
    """A value, how often it occurs, and its share of all."""

    value: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Clock:
    """What the numbers of an order column mean: their unit, and the zone of their dates.

    Times of ``Events`` are numbers of the column times ``scale``. ``per_second`` is how many of
    them a second has, None for positions and other plain numbers.
    """

    unit: str
    zone: str | None
    scale: int
    per_second: int | None

    def number(self, time: float) -> str:
        """A time as the column has it."""
        if isinstance(time, float):
            return f"{time / self.scale:.17g}"
        return f"{(Decimal(time) / self.scale).normalize():f}"

    def text(self, time: float) -> str:
        """A time as a date and a time of day; a plain number as it is."""
        if self.per_second is None:
            return self.number(time)
        whole, rest = divmod(int(time), self.per_second)
        try:
            at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=whole)
        except OverflowError:
            return self.number(time)
        digits = len(str(self.per_second)) - 1
        fraction = f".{rest:0{digits}}".rstrip("0") if rest else ""
        return at.strftime("%Y-%m-%d %H:%M:%S") + fraction


@dataclass(frozen=True, slots=True)
class Times:
    """The range of the order column, and how many events it does not order.

    ``tied_share`` is the share of events at the time of another event of their user, which a hash
    orders. ``first`` and ``last`` are dates, or plain numbers; ``first_value`` and ``last_value``
    are what a column of numbers has. ``counts`` are the events in equal parts of the time.
    """

    first: str
    last: str
    unit: str
    zone: str | None
    first_value: str
    last_value: str
    days: float | None
    tied_share: float
    tied_events: int
    counts: list[int]


@dataclass(frozen=True, slots=True)
class SampleEvent:
    """One event of the sample history; ``time`` is None without an order column."""

    item: str
    time: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """The history of a user whose number of events is the median, oldest first."""

    user: str
    events: list[SampleEvent]


@dataclass(frozen=True, slots=True)
class DataInfo:
    """The statistics of the events of one table.

    ``lengths`` counts the events of each user, ``popularity`` those of each item. ``sparsity`` is
    the share of user–item pairs that never occur. ``repeated_share`` is the share of events whose
    item their user had before; ``duplicate_share`` of events that repeat user, item and time (None
    without an order column). ``top_shares`` are the shares of events on the most popular items.
    """

    users: int
    items: int
    events: int
    sparsity: float
    repeated_share: float
    duplicate_share: float | None
    duplicate_events: int | None
    single_event_users: int
    single_event_items: int
    top_shares: dict[str, float]
    top_items: list[Frequent]
    length_spread: Spread
    popularity_spread: Spread
    times: Times | None
    lengths: Counts
    popularity: Counts
    sample: Sample | None

    def to_json(self) -> Document:
        """All fields as JSON, except the counts of single users and items."""
        fields = asdict(self)
        del fields["lengths"], fields["popularity"]
        return fields


def describe_events(events: Events, on_progress: OnProgress = no_progress) -> DataInfo:
    """Compute the statistics of events."""
    lengths = np.bincount(events.user, minlength=len(events.users))
    popularity = np.bincount(events.item, minlength=len(events.items))
    total = len(events.user)
    sorted_out = _sort_out(events, lengths, on_progress)
    timed = events.time is not None
    users, items = int(np.count_nonzero(lengths)), int(np.count_nonzero(popularity))
    return DataInfo(
        users=users,
        items=items,
        events=total,
        sparsity=1 - sorted_out.pairs / (users * items),
        repeated_share=1 - sorted_out.pairs / total,
        duplicate_share=sorted_out.duplicates / total if timed else None,
        duplicate_events=sorted_out.duplicates if timed else None,
        single_event_users=int((lengths == 1).sum()),
        single_event_items=int((popularity == 1).sum()),
        top_shares={f"{p} %": _top_share(popularity, p) for p in (1, 10)},
        top_items=_top_items(events.items, popularity),
        length_spread=_spread(lengths),
        popularity_spread=_spread(popularity),
        times=_times(events, sorted_out.tied),
        lengths=lengths[lengths > 0],
        popularity=popularity[popularity > 0],
        sample=_sample(events, lengths),
    )


@dataclass(slots=True)
class _SortedOut:
    """Numbers of distinct pairs of user and item, of repetitions and of ties."""

    pairs: int = 0
    duplicates: int = 0
    tied: int = 0


def _sort_out(events: Events, lengths: Counts, on_progress: OnProgress) -> _SortedOut:
    """Count what needs sorting, some users at a time."""
    found, done = _SortedOut(), 0
    for first, end in _blocks(lengths):
        on_progress(Progress("counting", done, len(events.user), unit="events"))
        block = _events_of(events, first, end)
        user = block.user.astype(np.int64) - first
        pair = user * len(events.items) + block.item
        found.pairs += _distinct(np.sort(pair))
        if block.time is not None:
            moments = _moments(user, block.time)
            is_tied = _is_repeated(moments)
            found.tied += int(np.count_nonzero(is_tied))
            found.duplicates += _repetitions(pair[is_tied], moments[is_tied])
        done += len(pair)
    on_progress(Progress("counting", done, done, unit="events"))
    return found


def _moments(user: Counts, time: OrderValues) -> Counts:
    """A number for each event that is the same for events of one user at one time, and no others.

    Integers of a usual span are packed into one; others are numbered by a sort.
    """
    low, high = time.min().item(), time.max().item()
    span = high - low + 1
    if time.dtype.kind in "iu" and span * (int(user.max()) + 1) < 2**63:
        packed: Counts = user * span + (time - time.dtype.type(low)).astype(np.int64)
        return packed
    order = np.lexsort((time, user))
    is_new = (user[order][1:] != user[order][:-1]) | (time[order][1:] != time[order][:-1])
    moments = np.empty(len(user), dtype=np.int64)
    moments[order] = np.concatenate([[0], np.cumsum(is_new)])
    return moments


def _is_repeated(values: Counts) -> npt.NDArray[np.bool_]:
    """True for every value that occurs more than once. Numbers are sorted directly, not by index,
    which numpy does ten times as fast; most are seldom repeated."""
    ordered = np.sort(values)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    return np.isin(values, repeated)


def _repetitions(one: Counts, other: Counts) -> int:
    """The number of pairs that equal an earlier pair."""
    order = np.lexsort((other, one))
    one, other = one[order], other[order]
    return int(np.count_nonzero((one[1:] == one[:-1]) & (other[1:] == other[:-1])))


def _blocks(lengths: Counts) -> Iterator[tuple[int, int]]:
    """Ranges of users that together have ``BLOCK_EVENTS`` events, or of one user with more."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = ends[first - 1] if first else 0
        end = max(first + 1, int(np.searchsorted(ends, before + BLOCK_EVENTS, side="right")))
        yield first, end
        first = end


def _events_of(events: Events, first: int, end: int) -> Events:
    if first == 0 and end == len(events.users):
        return events
    return events.select((events.user >= first) & (events.user < end))


def _distinct(ordered: npt.NDArray[np.int64]) -> int:
    return 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1])) if len(ordered) else 0


def _top_share(popularity: Counts, percent: int) -> float:
    top = max(1, round(np.count_nonzero(popularity) * percent / 100))
    return float(np.sort(popularity)[-top:].sum() / popularity.sum())


def _top_items(items: Sequence[str], popularity: Counts) -> list[Frequent]:
    best = np.argsort(-popularity, kind="stable")[:TOP].tolist()
    total = int(popularity.sum())
    return [
        Frequent(items[at], int(popularity[at]), int(popularity[at]) / total)
        for at in best
        if popularity[at]
    ]


def _spread(counts: Counts) -> Spread:
    present = counts[counts > 0]
    values = np.percentile(present, list(QUANTILES.values()))
    quantiles = dict(zip(QUANTILES, values.tolist(), strict=True))
    return Spread(quantiles, float(present.mean()), int(present.max()))


def clock_of(events: Events) -> Clock | None:
    """The unit and zone of the events' times; None if they have none."""
    if events.time is None:
        return None
    low, high = events.time.min().item(), events.time.max().item()
    scale = 10**events.time_scale
    if events.time_kind == "timestamp":
        return Clock("dates or times", "UTC", 1, scale)
    unit = epoch_of(low / scale, high / scale)
    if unit is None:
        return Clock("plain numbers", None, scale, None)
    return Clock(f"epoch {unit}", "UTC", scale, EPOCHS[unit] * scale)


def _times(events: Events, tied: int) -> Times | None:
    clock = clock_of(events)
    if clock is None or events.time is None:
        return None
    low, high = events.time.min().item(), events.time.max().item()
    days = None if clock.per_second is None else (high - low) / clock.per_second / 86400
    return Times(
        first=clock.text(low),
        last=clock.text(high),
        unit=clock.unit,
        zone=clock.zone,
        first_value=clock.number(low),
        last_value=clock.number(high),
        days=days,
        tied_share=tied / len(events.user),
        tied_events=tied,
        counts=_counts_over_time(events.time, low, high),
    )


def _counts_over_time(times: OrderValues, low: float, high: float) -> list[int]:
    """Events in ``TIME_BINS`` equal parts; integers are subtracted before anything is rounded."""
    counts = np.zeros(TIME_BINS, dtype=np.int64)
    for first in range(0, len(times), BLOCK_EVENTS):
        block = times[first : first + BLOCK_EVENTS]
        is_exact = block.dtype.kind in "iu" and high - low < 2**63
        since = block - block.dtype.type(low) if is_exact else block.astype(np.float64) - float(low)
        bins = (since / ((high - low) or 1) * TIME_BINS).astype(np.int64)
        counts += np.bincount(np.clip(bins, 0, TIME_BINS - 1), minlength=TIME_BINS)
    return counts.tolist()


def _sample(events: Events, lengths: Counts) -> Sample:
    """The history of the first user whose number of events is nearest to the median."""
    present = np.flatnonzero(lengths)
    median = np.median(lengths[present])
    user = int(present[np.argmin(np.abs(lengths[present] - median))])
    own = events.select(events.user == user)
    order = own.in_order()
    items = [events.items[at] for at in own.item[order].tolist()]
    clock = clock_of(events)
    if clock is None or own.time is None:
        return Sample(events.users[user], [SampleEvent(item, None) for item in items])
    times = [clock.text(time) for time in own.time[order].tolist()]
    pairs = zip(items, times, strict=True)
    return Sample(events.users[user], [SampleEvent(item, time) for item, time in pairs])


@dataclass(frozen=True, slots=True)
class AnswersInfo:
    """The answers of a task and the users that they are known for.

    ``values`` counts the distinct answers; ``frequent`` has the most frequent ones with their
    numbers of users. ``numbers`` describes the answers if they are many different numbers.
    ``several`` users have more than one answer.
    """

    name: str
    users: int
    without_value: int
    with_history: int
    without_history: int
    several: int
    values: int
    frequent: list[Frequent]
    numbers: dict[str, float] | None

    def to_json(self) -> Document:
        """All fields as JSON."""
        return asdict(self)


def describe_answers(name: str, answers: UserLabels, users: Sequence[str]) -> AnswersInfo:
    """Compute the statistics of answers; ``users`` are those with a history."""
    known = {user: values for user, values in answers.by_user.items() if values}
    has_history = set(users)
    counts = Counter(value for values in known.values() for value in values)
    with_history = sum(user in has_history for user in known)
    return AnswersInfo(
        name=name,
        users=len(known),
        without_value=len(answers.by_user) - len(known),
        with_history=with_history,
        without_history=len(known) - with_history,
        several=sum(len(values) > 1 for values in known.values()),
        values=len(counts),
        frequent=[
            Frequent(value, count, count / len(known)) for value, count in counts.most_common(TOP)
        ],
        numbers=_numbers(counts),
    )


def _numbers(counts: Counter[str]) -> dict[str, float] | None:
    """Quantiles and mean of many different numbers; None for classes, tags and items."""
    if len(counts) <= MOST_CLASSES or not all(number_of(value) is not None for value in counts):
        return None
    values = np.repeat([float(value) for value in counts], list(counts.values()))
    found = np.percentile(values, list(QUANTILES.values())).tolist()
    return {
        **dict(zip(QUANTILES, found, strict=True)),
        "max": float(values.max()),
        "mean": float(values.mean()),
    }
