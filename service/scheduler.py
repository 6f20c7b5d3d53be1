"""The device process's queue: bounded, first come first served, deadlines and leavers dropped."""

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.messages import Handle, Row

Worker = bytes
"""A worker's address on the device socket."""


@dataclass(slots=True, eq=False)
class QueuedRow:
    """A row that waits. ``number`` is its place in its request; times are monotonic seconds."""

    worker: Worker
    request_id: int
    number: int
    row: Row
    deadline: float
    enqueued_at: float
    is_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """What ``take`` found: rows to run, and rows whose deadline has passed."""

    rows: list[QueuedRow] = field(default_factory=list)
    expired: list[QueuedRow] = field(default_factory=list)


class RowQueue:
    """Rows in order of arrival. Used by the device thread only."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._rows: deque[QueuedRow] = deque()
        self._by_request: defaultdict[tuple[Worker, int], list[QueuedRow]] = defaultdict(list)
        self._by_handle: Counter[Handle] = Counter()

    def __len__(self) -> int:
        return self._by_handle.total()

    def push(self, rows: Sequence[QueuedRow]) -> bool:
        """Queue all rows of a request, or none if they do not fit."""
        if len(self) + len(rows) > self._max_rows:
            return False
        for row in rows:
            self._rows.append(row)
            self._by_request[row.worker, row.request_id].append(row)
            self._by_handle[row.row.handle] += 1
        return True

    def take(self, max_rows: int, now: float) -> Taken:
        """The oldest rows, at most ``max_rows`` of them still worth running."""
        taken = Taken()
        while self._rows and len(taken.rows) < max_rows:
            row = self._rows.popleft()
            if row.is_cancelled:
                continue
            self._forget(row)
            (taken.expired if row.deadline < now else taken.rows).append(row)
        return taken

    def cancel(self, worker: Worker, request_id: int) -> int:
        """Drop the waiting rows of a request whose client left; how many there were."""
        rows = self._by_request.pop((worker, request_id), [])
        for row in rows:
            row.is_cancelled = True
            self._by_handle[row.row.handle] -= 1
        return len(rows)

    def is_waiting_for(self, handle: Handle) -> bool:
        """True if a waiting row was admitted for this residency."""
        return self._by_handle[handle] > 0

    def _forget(self, row: QueuedRow) -> None:
        self._by_handle[row.row.handle] -= 1
        if not self._by_handle[row.row.handle]:
            del self._by_handle[row.row.handle]
        siblings = self._by_request[row.worker, row.request_id]
        siblings.remove(row)
        if not siblings:
            del self._by_request[row.worker, row.request_id]
