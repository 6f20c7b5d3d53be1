"""The device process's queue: bounded, first come first served, deadlines and leavers dropped."""

from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from peterrec.service.protocol.messages import Handle, Row

Worker = bytes
"""A worker's address on the device socket."""


class QueuedRow(msgspec.Struct, eq=False, gc=False):
    """A row that waits. ``number`` is its place in its request; times are monotonic seconds."""

    worker: Worker
    request_id: int
    number: int
    row: Row
    deadline: float
    enqueued_at: float
    is_cancelled: bool = False


LOOK_INTERVAL_S = 0.02
"""Between two looks for parked rows whose deadline has passed."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What ``take`` found: rows to run, and rows whose deadline has passed."""

    rows: list[QueuedRow] = field(default_factory=list)
    expired: list[QueuedRow] = field(default_factory=list)


class RowQueue:
    """Rows in order of arrival. Used by the device thread only.

    Rows whose residency is away are parked, still within the bound, until it is back.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._rows: deque[QueuedRow] = deque()
        self._by_request: defaultdict[tuple[Worker, int], list[QueuedRow]] = defaultdict(list)
        self._by_handle: defaultdict[Handle, int] = defaultdict(int)
        self._count = 0
        self._parked: dict[Handle, deque[QueuedRow]] = {}
        self._looked_at = float("-inf")

    @property
    def is_runnable(self) -> bool:
        """True if rows wait that are not parked."""
        return bool(self._rows)

    @property
    def parked(self) -> Iterator[Handle]:
        """Residencies that parked rows wait for, in the order of their first row.

        Without those whose rows were all cancelled: they may have been freed meanwhile.
        """
        return filter(self.is_waiting_for, self._parked)

    def __len__(self) -> int:
        return self._count

    def push(self, rows: Sequence[QueuedRow]) -> bool:
        """Queue all rows of a request, or none if they do not fit."""
        if self._count + len(rows) > self._max_rows:
            return False
        self._count += len(rows)
        self._rows.extend(rows)
        for row in rows:
            self._by_request[row.worker, row.request_id].append(row)
            self._by_handle[row.row.handle] += 1
        return True

    def take(self, max_rows: int, now: float, away: Collection[Handle] = ()) -> Taken:
        """The oldest rows, at most ``max_rows`` of them still worth running.

        Rows of residencies that are ``away`` are parked instead.
        """
        taken = Taken(expired=self._expired(now))
        while self._rows and len(taken.rows) < max_rows:
            row = self._rows.popleft()
            if row.is_cancelled:
                continue
            if away and row.row.handle in away and row.deadline >= now:
                self._parked.setdefault(row.row.handle, deque()).append(row)
                continue
            self._forget(row)
            (taken.expired if row.deadline < now else taken.rows).append(row)
        return taken

    def unpark(self, handle: Handle) -> None:
        """The residency is back: its rows are the next to run."""
        self._rows.extendleft(reversed(self._parked.pop(handle, ())))

    def drop_parked(self, handle: Handle) -> list[QueuedRow]:
        """Take out the rows that wait for a residency which does not come back."""
        rows = [row for row in self._parked.pop(handle, ()) if not row.is_cancelled]
        for row in rows:
            self._forget(row)
        return rows

    def cancel(self, worker: Worker, request_id: int) -> int:
        """Drop the waiting rows of a request whose client left; how many there were."""
        rows = self._by_request.pop((worker, request_id), [])
        for row in rows:
            row.is_cancelled = True
            self._uncount(row)
        return len(rows)

    def is_waiting_for(self, handle: Handle) -> bool:
        """True if a waiting row was admitted for this residency."""
        return handle in self._by_handle

    def _expired(self, now: float) -> list[QueuedRow]:
        """Parked rows whose deadline has passed."""
        if not self._parked or now < self._looked_at + LOOK_INTERVAL_S:
            return []
        self._looked_at = now
        expired: list[QueuedRow] = []
        for handle, rows in list(self._parked.items()):
            waiting = [row for row in rows if not row.is_cancelled]
            expired += (row for row in waiting if row.deadline < now)
            kept = deque(row for row in waiting if row.deadline >= now)
            if kept:
                self._parked[handle] = kept
            else:
                del self._parked[handle]
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
        handle = row.row.handle
        self._count -= 1
        self._by_handle[handle] -= 1
        if not self._by_handle[handle]:
            del self._by_handle[handle]
