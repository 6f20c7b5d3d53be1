"""Events of users and items: read from tables, put in order by one rule, and turned into histories.

The rule of order, for every command: a user's events are ordered by the order column. Events with
equal times are ordered by a hash of the user id and the item id. Neither the file's order nor the
ids decide: sorted files and sorted ids reveal which item is older or more popular. Without an order
column the order of the files is taken as the true one.

The rule of cut-offs: an event at exactly the time of a cut-off counts as later than the cut-off,
because within one moment (one day, in daily data) nobody knows what came first.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.order_columns import Kind, OrderColumn, OrderValues
from peterrec.model.data.tables import TablePart, TableSource, as_text, read_batches, require_values
from peterrec.model.errors import FilterMatchesNothing, OrderUnreadable

Codes = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class InteractionSource:
    """Where interactions are read from: a table with one row per event, and its columns.

    Only events with ``since <= time < before`` are read. Both bounds are written as the order
    column writes its values, and need an order column.
    """

    table: TableSource
    user_column: str = "user_id"
    item_column: str = "item_id"
    order_column: str | None = None
    since: str | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Events:
    """Event ``i`` is user ``users[user[i]]`` taking item ``items[item[i]]`` at ``time[i]``.

    ``time`` is None without an order column; the events are then in their true order. If
    ``time_kind`` is ``timestamp``, times are microseconds since 1970. ``source`` names the events
    in messages.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    user: Codes
    item: Codes
    time: OrderValues | None
    time_kind: Kind | None
    source: str

    def select(self, kept: Flags) -> "Events":
        """The events where the mask is true."""
        time = None if self.time is None else self.time[kept]
        return replace(self, user=self.user[kept], item=self.item[kept], time=time)

    def in_order(self) -> Indices:
        """Indices of the events by user, then by the rule of order (see the module)."""
        if self.time is None:
            return np.argsort(self.user, kind="stable")
        order = self._by_time()
        places = self._tied_places(order)
        if len(places):
            tied = order[places]
            ties = self._tie_hashes(tied)
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

    def _tie_hashes(self, events: Indices) -> npt.NDArray[np.uint64]:
        """A hash of user and item of some events; ids are hashed once each."""
        users, user = np.unique(self.user[events], return_inverse=True)
        items, item = np.unique(self.item[events], return_inverse=True)
        user_hashes = _hashes([self.users[i] for i in users.tolist()])
        item_hashes = _hashes([self.items[i] for i in items.tolist()])
        return _scrambled(user_hashes[user] ^ _scrambled(item_hashes[item]))


def read_events(source: InteractionSource, observer: ReadingObserver = SILENT) -> Events:
    """All events of a source, in the files' order.

    Files are read batch after batch into integers, so they may be larger than memory. An event
    takes 4 bytes for the user, 4 for the item and 8 for the time; every id is kept once as text.
    """
    users, items = _Names(), _Names()
    order = None if source.order_column is None else OrderColumn(source.order_column)
    if order is None and (source.since or source.before):
        raise OrderUnreadable(
            "a cut-off needs an order column.",
            hint="Name it with --order-column, that of targets with --target-order-column.",
        )
    user: list[Codes] = []
    item: list[Codes] = []
    times: list[OrderValues] = []
    names = [source.user_column, source.item_column]
    for part in read_batches(source.table, names if order is None else [*names, order.column]):
        kept = part if order is None else _within(part, order, source, times)
        for column in names:
            require_values(kept, column)
        user.append(users.encode(kept.table[source.user_column]))
        item.append(items.encode(kept.table[source.item_column]))
    if not users.texts:
        raise FilterMatchesNothing(
            f"no event of {source.table.path} is within the cut-off.",
            hint="Choose another cut-off.",
        )
    return Events(
        users.texts,
        items.texts,
        _joined(user),
        _joined(item),
        _joined(times) if order else None,
        order.kind if order else None,
        str(source.table.path),
    )


def read_histories(source: InteractionSource, observer: ReadingObserver = SILENT) -> Histories:
    """Every user's items in order (see the module).

    Reading takes 16 bytes of memory for each event (8 without an order column), and putting them
    in order about 20 more.
    """
    return histories_of(read_events(source, observer))


def read_targets(source: InteractionSource, observer: ReadingObserver = SILENT) -> UserLabels:
    """Each user's target items, oldest first; a repeated target counts once."""
    return targets_of(read_events(source, observer))


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
    histories = histories_of(events)
    by_user = {
        user: tuple(dict.fromkeys(histories.items_of(i)))[:most]
        for i, user in enumerate(histories.users)
    }
    return UserLabels(by_user, events.source)


class _Names:
    """Distinct texts in the order of their first appearance over all batches."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self._codes)

    def encode(self, values: pa.ChunkedArray) -> Codes:
        """Each row's index among the texts; new texts are added."""
        encoded = values.combine_chunks().dictionary_encode()
        distinct = as_text(pa.chunked_array([encoded.dictionary])).to_pylist()
        codes = self._codes
        own = np.array([codes.setdefault(text, len(codes)) for text in distinct], dtype=np.int32)
        found: Codes = own[encoded.indices.to_numpy()]
        return found


def _within(
    part: TablePart, order: OrderColumn, source: InteractionSource, times: list[OrderValues]
) -> TablePart:
    """The part's events within the source's bounds; their times are appended to ``times``."""
    values = order.values(part)
    wanted = np.ones(len(values), dtype=np.bool_)
    if len(values) and source.since is not None:
        wanted &= values >= order.bound(source.since)
    if len(values) and source.before is not None:
        wanted &= values < order.bound(source.before)
    times.append(values[wanted])
    if wanted.all():
        return part
    return TablePart(part.path, part.table.filter(pa.array(wanted)), part.rows[wanted], part.form)


def _joined(parts: list[npt.NDArray[Scalar]]) -> npt.NDArray[Scalar]:
    """One array of all parts. The list is emptied, so that no two columns are held twice."""
    joined = np.concatenate(parts)
    parts.clear()
    return joined


def _hashes(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.array([int.from_bytes(digest) for digest in digests], dtype=np.uint64)


def _scrambled(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply the finaliser of SplitMix64, so that equal low bits of two hashes do not cancel out."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: npt.NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return scrambled
