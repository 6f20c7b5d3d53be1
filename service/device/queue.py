"""The queue of the device process: bounded, first come first served, without cancelled rows."""

from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from peterrec.service.protocol.messages import Handle, Row, older_places, places_of

Worker = bytes
"""The address of a worker on the device socket."""


class QueuedRow(msgspec.Struct, eq=False, gc=False):
    """A row that waits. ``number`` is its index in its request; times are in monotonic seconds."""

    worker: Worker
    request_id: int
    number: int
    row: Row
    deadline: float
    enqueued_at: float
    is_cancelled: bool = False


EXPIRY_INTERVAL_S = 0.02
"""Seconds between two searches for pending rows whose deadline has passed."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What ``take`` took from the queue: rows to run, and rows whose deadline has passed."""

    rows: list[QueuedRow] = field(default_factory=list)
    expired: list[QueuedRow] = field(default_factory=list)


class RowQueue:
    """Rows in order of arrival. Used by the device thread only.

    Rows whose head is evicted are pending until it is reloaded; they count towards the bound. So do
    long histories (``places_of``), as a row may carry 40 KB of older tokens.
    """

    def __init__(self, max_places: int) -> None:
        self._max_places = max_places
        self._rows: deque[QueuedRow] = deque()
        self._by_request: defaultdict[tuple[Worker, int], list[QueuedRow]] = defaultdict(list)
        self._by_handle: defaultdict[Handle, int] = defaultdict(int)
        self._count = self._places = 0
        self._sharing: defaultdict[int, int] = defaultdict(int)  # rows, by identity of older tokens
        self._pending: dict[Handle, deque[QueuedRow]] = {}
        self._expired_at = float("-inf")

    @property
    def is_runnable(self) -> bool:
        """True if rows wait that are not pending."""
        return bool(self._rows)

    @property
    def pending(self) -> Iterator[Handle]:
        """The residencies whose heads rows are pending for, in the order of their first row.

        Leaves out those whose rows were all cancelled, since these may have been freed meanwhile.
        """
        return filter(self.is_waiting_for, self._pending)

    def __len__(self) -> int:
        return self._count

    def push(self, rows: Sequence[QueuedRow]) -> bool:
        """Queue all rows of a request; return False, with none queued, if they do not fit."""
        places = places_of([each.row for each in rows])
        if self._places + places > self._max_places:
            return False
        self._count += len(rows)
        self._places += places
        self._rows.extend(rows)
        for row in rows:
            if row.row.older:
                self._sharing[id(row.row.older)] += 1
            self._by_request[row.worker, row.request_id].append(row)
            self._by_handle[row.row.handle] += 1
        return True

    def take(self, max_rows: int, now: float, evicted: Collection[Handle] = ()) -> Taken:
        """Take the oldest rows, at most ``max_rows`` whose deadline has not passed.

        Rows of residencies whose heads are ``evicted`` become pending instead.
        """
        taken = Taken(expired=self._expired(now))
        while self._rows and len(taken.rows) < max_rows:
            row = self._rows.popleft()
            if row.is_cancelled:
                continue
            if evicted and row.row.handle in evicted and row.deadline >= now:
                self._pending.setdefault(row.row.handle, deque()).append(row)
                continue
            self._forget(row)
            (taken.expired if row.deadline < now else taken.rows).append(row)
        return taken

    def resume(self, handle: Handle) -> None:
        """Make the pending rows of a reloaded head the next to run."""
        self._rows.extendleft(reversed(self._pending.pop(handle, ())))

    def drop_pending(self, handle: Handle) -> list[QueuedRow]:
        """Take out and return the rows that are pending for a head which can't be reloaded."""
        rows = [row for row in self._pending.pop(handle, ()) if not row.is_cancelled]
        for row in rows:
            self._forget(row)
        return rows

    def cancel(self, worker: Worker, request_id: int) -> int:
        """Drop the waiting rows of a request whose client left; return how many they were."""
        rows = self._by_request.pop((worker, request_id), [])
        for row in rows:
            row.is_cancelled = True
            self._uncount(row)
        return len(rows)

    def is_waiting_for(self, handle: Handle) -> bool:
        """True if a waiting row was bound to this residency."""
        return handle in self._by_handle

    def _expired(self, now: float) -> list[QueuedRow]:
        """Take out and return the pending rows whose deadline has passed."""
        if not self._pending or now < self._expired_at + EXPIRY_INTERVAL_S:
            return []
        self._expired_at = now
        expired: list[QueuedRow] = []
        for handle, rows in list(self._pending.items()):
            waiting = [row for row in rows if not row.is_cancelled]
            expired += (row for row in waiting if row.deadline < now)
            kept = deque(row for row in waiting if row.deadline >= now)
            if kept:
                self._pending[handle] = kept
            else:
                del self._pending[handle]
        for row in expired:
            self._forget(row)
        return expired

    def _forget(self, row: QueuedRow) -> None:
        self._uncount(row)
        request = row.worker, row.request_id
        siblings = self._by_request[request]
        siblings.remove(row)
        if not siblings:
            del self._by_request[request]

    def _uncount(self, row: QueuedRow) -> None:
        handle, older = row.row.handle, row.row.older
        self._count -= 1
        self._places -= 1
        if older:
            self._sharing[id(older)] -= 1
            if not self._sharing[id(older)]:
                del self._sharing[id(older)]
                self._places -= older_places(older)
        self._by_handle[handle] -= 1
        if not self._by_handle[handle]:
            del self._by_handle[handle]
