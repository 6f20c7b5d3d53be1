"""One queue for all, first come first served: what the fair queue is compared with."""

from collections import deque
from collections.abc import Collection

from peterrec.service.device.queue import BatchBounds, QueuedRow, Taken
from peterrec.service.protocol.messages import Handle
from peterrec.service.protocol.sender import NOBODY, Sender


class PlainQueue:
    """Rows in the order in which they came, up to the rows of a batch."""

    def __init__(self) -> None:
        self._rows: deque[QueuedRow] = deque()

    def push(self, rows: list[QueuedRow], sender: Sender = NOBODY) -> bool:
        """Queue all rows of a request."""
        self._rows.extend(rows)
        return True

    def is_shared(self, now: float) -> bool:
        """Batches are never short."""
        return False

    def take(self, bounds: BatchBounds, now: float, evicted: Collection[Handle] = ()) -> Taken:
        """Take the oldest rows."""
        count = min(bounds.rows, len(self._rows))
        rows = [self._rows.popleft() for _ in range(count)]
        return Taken(bounds, now, rows=rows, work=sum([row.work for row in rows]))
