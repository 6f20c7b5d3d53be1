"""Events of users and items: read from tables, put in order by one rule, and turned into histories.

The rule of order, for every command: a user's events are ordered by the order column. Events with
equal times are ordered by a hash of the user id and the item id. Neither the file's order nor the
ids decide: sorted files and sorted ids reveal which item is older or more popular. Without an order
column the order of the files is taken as the true one.

The rule of cut-offs: an event at exactly the time of a cut-off counts as later than the cut-off,
because within one moment (one day, in daily data) nobody knows what came first.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from peterrec.model.data.event_store import Codes, EventColumns, EventStore, TimeForm, open_store
from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.data.lists import (
    notice_of_padding,
    notice_of_written_lists,
    refuse_unread_lists,
    unfolded,
)
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.order_columns import EPOCHS, Kind, OrderColumn, OrderValues
from peterrec.model.data.tables import TablePart, TableSource, read_batches
from peterrec.model.data.values import require_values, texts_of
from peterrec.model.errors import FilterMatchesNothing, OrderUnreadable
from peterrec.model.progress import Progress

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class InteractionSource:
    """Where interactions are read from: a table with one row per event, and its columns.

    Only events with ``since <= time < before`` are read. Both bounds are written as the order
    column writes its values, or as dates, and need an order column.
    """

    table: TableSource
    user_column: str = "user_id"
    item_column: str = "item_id"
    order_column: str | None = None
    since: str | None = None
    before: str | None = None

    def absolute(self) -> "InteractionSource":
        """Return the source as a process with another current folder finds it."""
        data = self.table.data
        if not isinstance(data, Path):
            return self
        return replace(self, table=replace(self.table, data=data.absolute()))


@dataclass(frozen=True, slots=True)
class Events:
    """Event ``i`` is user ``users[user[i]]`` taking item ``items[item[i]]`` at ``time[i]``.

    ``time`` is None without an order column; the events are then in their true order. Times are
    numbers or, if ``time_kind`` is ``timestamp``, seconds since 1970 in UTC, in both cases
    multiplied by ten to the power of ``time_scale``: 6 or 9 for timestamps, and 0 for most numbers.
    ``source`` names the events in messages.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    user: Codes
    item: Codes
    time: OrderValues | None
    time_kind: Kind | None
    source: str
    time_scale: int = 0

    def select(self, kept: Flags) -> "Events":
        """The events where the mask is true."""
        time = None if self.time is None else self.time[kept]
        return replace(self, user=self.user[kept], item=self.item[kept], time=time)

    def in_order(self, hashes: "TieHashes | None" = None) -> Indices:
        """Indices of the events by user, then by the rule of order (see the module).

        ``hashes`` are those of the same users and items, if several events share them.
        """
        if self.time is None:
            return np.argsort(self.user, kind="stable")
        order = self._by_time()
        places = self._tied_places(order)
        if len(places):
            tied = order[places]
            hashes = hashes or TieHashes(self.users, self.items)
            ties = hashes.of(self.user[tied], self.item[tied])
            order[places] = tied[np.lexsort((ties, self.time[tied], self.user[tied]))]
        return order

    def _by_time(self) -> Indices:
        """Indices by user and time; not sorted again where the file is in that order already."""
        user, time = self.user, self.time
        assert time is not None
        is_ascending = (user[1:] == user[:-1]) & (time[1:] >= time[:-1])
        is_ascending |= user[1:] > user[:-1]
        return np.arange(len(user)) if is_ascending.all() else np.lexsort((time, user))

    def _tied_places(self, order: Indices) -> Indices:
        """Places in the order that share user and time with a place next to them."""
        assert self.time is not None
        equals_next = np.zeros(len(order), dtype=np.bool_)
        for column in (self.user, self.time):
            ordered = column[order]
            equal = ordered[1:] == ordered[:-1]
            equals_next[:-1] = equal if column is self.user else equals_next[:-1] & equal
        equals_next[1:] |= equals_next[:-1].copy()  # True for both events of a pair
        return np.flatnonzero(equals_next)


class TieHashes:
    """Hashes of users and items, computed once for each id that needs one."""

    def __init__(self, users: Sequence[str], items: Sequence[str]) -> None:
        self._users, self._items = _Hashes(users), _Hashes(items)

    def of(self, users: Codes, items: Codes) -> Hashes:
        """A hash of the user and item of each of some events."""
        return _scrambled(self._users.of(users) ^ _scrambled(self._items.of(items)))


class _Hashes:
    """Hashes of some of many texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._hashes: Hashes = np.zeros(len(texts), dtype=np.uint64)
        self._is_known = np.zeros(len(texts), dtype=np.bool_)

    def of(self, codes: Codes) -> Hashes:
        new = np.unique(codes[~self._is_known[codes]])
        digests = (
            hashlib.blake2b(self._texts[code].encode(), digest_size=8).digest()
            for code in new.tolist()
        )
        self._hashes[new] = [int.from_bytes(digest) for digest in digests]
        self._is_known[new] = True
        found: Hashes = self._hashes[codes]
        return found


def _scrambled(values: Hashes) -> Hashes:
    """Apply the finaliser of SplitMix64, so that equal low bits of two hashes do not cancel out."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: Hashes = mixed ^ (mixed >> np.uint64(31))
    return scrambled


def read_events(source: InteractionSource, observer: ReadingObserver = SILENT) -> Events:
    """All events of a source, in the files' order.

    Files are read batch after batch, so they may be larger than memory. An event takes 4 bytes for
    the user, 4 for the item and 8 for the time; every id is kept once as text.
    """
    with _filled(source, observer) as filled:
        every = filled.store.in_given_order(filled.form)
    return Events(
        filled.users,
        filled.items,
        every.user,
        every.item,
        None if source.order_column is None else every.time,
        filled.kind,
        source.table.name,
        filled.form.scale,
    )


def read_histories(source: InteractionSource, observer: ReadingObserver = SILENT) -> Histories:
    """Every user's items in order (see the module).

    The histories take 8 bytes for each event; reading and sorting take no more than a constant
    beside them, whatever the number of events.
    """
    return _read_in_order(source, observer)


def _read_in_order(
    source: InteractionSource, observer: ReadingObserver, takes_samples: bool = False
) -> Histories:
    with _filled(source, observer, takes_samples) as filled:
        store = filled.store
        codes = np.empty(store.count, dtype=np.int64)
        lengths = np.zeros(len(filled.users), dtype=np.int64)
        hashes = TieHashes(filled.users, filled.items)
        done = 0
        for block in store.by_user_and_time(filled.form):
            events = Events(
                *(filled.users, filled.items, block.user, block.item, block.time),
                *(filled.kind, source.table.name),
            )
            end = done + len(block.user)
            codes[done:end] = block.item[events.in_order(hashes)]
            first, last = block.user[0], block.user[-1]
            lengths[first : last + 1] = np.bincount(block.user - first)
            done = end
            observer.progress(Progress("ordering", done, store.count, unit="events"))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Histories(filled.users, filled.items, codes, offsets)


def read_targets(source: InteractionSource, observer: ReadingObserver = SILENT) -> UserLabels:
    """Each user's target items, oldest first; a repeated target counts once.

    The items of RecBole's training samples may be targets, though they are no histories.
    """
    histories = _read_in_order(source, observer, takes_samples=True)
    return _as_targets(histories, source.table.name)


def histories_of(events: Events) -> Histories:
    """Each user's items in order; users without events are left out."""
    counts = np.bincount(events.user, minlength=len(events.users))
    present = np.flatnonzero(counts)
    offsets = np.concatenate([[0], np.cumsum(counts[present])])
    users = events.users
    if len(present) < len(users):
        users = tuple(users[i] for i in present.tolist())
    codes = events.item[events.in_order()].astype(np.int64)
    return Histories(users, events.items, codes, offsets)


def targets_of(events: Events, most: int | None = None) -> UserLabels:
    """Each user's first distinct items in order, at most ``most`` of them."""
    return _as_targets(histories_of(events), events.source, most)


def _as_targets(histories: Histories, source: str, most: int | None = None) -> UserLabels:
    by_user = {
        user: tuple(dict.fromkeys(histories.items_of(i)))[:most]
        for i, user in enumerate(histories.users)
    }
    return UserLabels(by_user, source)


def on_one_scale(one: Events, other: Events) -> tuple[Events, Events]:
    """Two tables of events whose times may be compared; both must have times of one kind."""
    if one.time_kind != other.time_kind:
        kinds = " but ".join(f"{e.source} has {e.time_kind or 'no time'}s" for e in (one, other))
        raise OrderUnreadable(
            f"{kinds}: nothing says which events are earlier.",
            hint="Write both order columns as numbers of one unit, or both as timestamps.",
        )
    scale = max(one.time_scale, other.time_scale)
    one, other = _scaled(one, scale), _scaled(other, scale)
    is_unsigned = any(e.time is not None and e.time.dtype == np.uint64 for e in (one, other))
    return (_unsigned(one), _unsigned(other)) if is_unsigned else (one, other)


def _scaled(events: Events, scale: int) -> Events:
    factor = 10 ** (scale - events.time_scale)
    if events.time is None or factor == 1:
        return events
    if np.abs(events.time).max(initial=0) > np.iinfo(np.int64).max // factor:
        raise _incomparable(events)
    return replace(events, time=events.time * factor, time_scale=scale)


def _unsigned(events: Events) -> Events:
    """Events whose times are compared with integers of more than 63 bits."""
    if events.time is None or events.time.dtype == np.uint64:
        return events
    if events.time.min(initial=0) < 0 or events.time.dtype != np.int64:
        raise _incomparable(events)
    return replace(events, time=events.time.astype(np.uint64))


def _incomparable(events: Events) -> OrderUnreadable:
    return OrderUnreadable(
        f"{events.source}: no 64-bit numbers hold its times exactly beside those of the other "
        "table.",
        hint="Write both order columns in one unit, as integers or timestamps.",
    )


@dataclass(frozen=True, slots=True)
class _Filled:
    """A store with all events of a source, and the names of their users and items."""

    store: EventStore
    users: tuple[str, ...]
    items: tuple[str, ...]
    form: TimeForm
    kind: Kind | None


@contextmanager
def _filled(
    source: InteractionSource, observer: ReadingObserver, takes_samples: bool = False
) -> Iterator[_Filled]:
    """Read all events of a source into a store."""
    name = source.table.name
    order = None if source.order_column is None else OrderColumn(source.order_column, observer)
    require_order(source, observer)
    columns = EventColumns(name, source.user_column, source.item_column, source.order_column)
    with open_store(columns) as store:
        for part in event_parts(source, observer, takes_samples):
            _add(store, part, order, source)
        if not store.count:
            raise FilterMatchesNothing(
                f"no event of {name} is within the cut-off.", hint="Choose another cut-off."
            )
        users, items = store.name_users(), store.name_items()
        for notice in (*users.notices, *items.notices, *_mixed_units(store, columns)):
            observer.notice(notice)
        if store.count == len(users.texts):
            lists = notice_of_written_lists(items.texts, source.item_column, name)
            if lists is not None:
                observer.notice(lists)
        yield _Filled(
            store,
            tuple(users.texts.to_pylist()),
            tuple(items.texts.to_pylist()),
            store.time_form(),
            order.kind if order else None,
        )


def event_parts(
    source: InteractionSource, observer: ReadingObserver, takes_samples: bool = False
) -> Iterator[TablePart]:
    """The table with one row per event, also if it has one per user with lists of items."""
    values = [source.item_column, *([source.order_column] if source.order_column else [])]
    is_judged = False
    for part in read_batches(source.table, [source.user_column, *values], observer):
        if not takes_samples:
            refuse_unread_lists(part, source.item_column)
        if not is_judged and part.table.num_rows:
            is_judged = True
            if (padding := notice_of_padding(part, source.item_column)) is not None:
                observer.notice(padding)
        yield from unfolded(part, source.user_column, values)


def require_order(source: InteractionSource, observer: ReadingObserver) -> None:
    """Refuse a cut-off without an order column, and tell what order is taken without one."""
    if source.order_column is not None:
        return
    if source.since or source.before:
        raise OrderUnreadable(
            "a cut-off needs an order column.",
            hint="Name it: `order_column`.",
        )
    data = source.table.data
    is_folder = isinstance(data, Path) and data.is_dir()
    files = ", files in the order of their names" if is_folder else ""
    observer.notice(
        f"{source.table.name}: no order column is named, so events are taken in the order of the "
        f"rows{files}."
    )


def _add(
    store: EventStore, part: TablePart, order: OrderColumn | None, source: InteractionSource
) -> None:
    """Add a part's events that are within the source's bounds."""
    part, times = within_bounds(part, order, source)
    ids = []
    for column in (source.user_column, source.item_column):
        texts = texts_of(part, column)
        require_values(part, column, texts)
        ids.append(texts)
    store.add(ids[0], ids[1], times)


def within_bounds(
    part: TablePart, order: OrderColumn | None, source: InteractionSource
) -> tuple[TablePart, pa.Array | None]:
    """The events of a part that are within the source's bounds, and their times."""
    if order is None:
        return part, None
    times = order.values(part)
    wanted = _within(times, order, source)
    return part.filtered(wanted), times.filter(pa.array(wanted))


def _within(times: pa.Array, order: OrderColumn, source: InteractionSource) -> Flags:
    wanted = np.ones(len(times), dtype=np.bool_)
    if len(times) and source.since is not None:
        wanted &= order.at_or_after(times, source.since)
    if len(times) and source.before is not None:
        wanted &= ~order.at_or_after(times, source.before)
    return wanted


PLAUSIBLE_S = (5 * 10**8, 5 * 10**9)
"""Seconds since 1970 of the years 1985 and 2128: most times of events are between them."""


def _mixed_units(store: EventStore, columns: EventColumns) -> Iterator[str]:
    """A notice of an order column that has times since 1970 in several units."""
    low, high = PLAUSIBLE_S
    counts = store.count_between([(low * per, high * per) for per in EPOCHS.values()])
    found = {unit: count for unit, count in zip(EPOCHS, counts, strict=True) if count}
    if len(found) > 1 and sum(found.values()) >= MOSTLY * store.count:
        units = " and ".join(f"{unit} ({count:,} events)" for unit, count in found.items())
        yield (
            f"{columns.source}, column {columns.order!r} seems to mix units: by the size of its "
            f"numbers, it has {units} since 1970, which are not in order with one another."
        )


MOSTLY = 0.9
"""The least share of times in known units at which several units are taken for a mistake."""
