"""Reloads evicted parts of heads that rows wait for, one after another.

Files are read in a separate thread. Meanwhile the rows of these heads are pending, and those of
other tasks run.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import structlog
from torch import Tensor

from peterrec.service.device.head_file import read_head
from peterrec.service.device.queue import QueuedRow, RowQueue
from peterrec.service.device.stores import Store
from peterrec.service.errors import HeadBudgetExceeded, HeadUnreadable, RowError
from peterrec.service.protocol.messages import Handle

log = structlog.get_logger()

KEPT_S = 30.0
"""Seconds for which it is known when a head was reloaded: no row waits for longer."""

Submit = Callable[[Callable[[], None]], object]
Refuse = Callable[[Sequence[QueuedRow], type[RowError], str], None]


class HeadReloader:
    """Reloads one head at a time. Used by the device thread only.

    ``submit`` runs a job on the device thread; ``refuse`` answers rows whose head could not be read
    with an error class and a detail.
    """

    def __init__(self, store: Store, queue: RowQueue, submit: Submit, refuse: Refuse) -> None:
        self._store = store
        self._queue = queue
        self._submit = submit
        self._refuse = refuse
        self._is_reading = False
        self._reloaded_at: dict[Handle, float] = {}
        self._reader = ThreadPoolExecutor(1, "heads")

    def begin_next(self) -> None:
        """Read the head that rows have waited for longest, unless another is being read.

        Called after a batch, so that the rows of a reloaded head run before it can be evicted
        again.
        """
        handle = next(self._queue.pending, None)
        if handle is None or self._is_reading:
            return
        residency = self._store.resident[handle]
        try:
            self._store.head_cache.begin_reload(handle)
        except HeadBudgetExceeded:
            return  # heads that are being loaded take the room until their probes have run
        self._is_reading = True
        read = self._reader.submit(read_head, Path(residency.path), residency.digest)
        read.add_done_callback(lambda done: self._submit(partial(self._end, handle, done)))

    def waits(self, rows: Sequence[QueuedRow]) -> dict[int, float]:
        """Return the seconds that rows waited for their heads, by their places; mostly none did."""
        if not self._reloaded_at:
            return {}
        ended = [self._reloaded_at.get(row.row.handle, 0.0) - row.enqueued_at for row in rows]
        return {place: seconds for place, seconds in enumerate(ended) if seconds > 0}

    def forget(self, now: float) -> None:
        """Forget the reloads that no row can have waited for any more."""
        if self._reloaded_at:
            lately = self._reloaded_at.items()
            self._reloaded_at = {handle: at for handle, at in lately if at > now - KEPT_S}

    def close(self) -> None:
        """Wait for a read in progress; no head is reloaded any more."""
        self._reader.shutdown()

    def _end(self, handle: Handle, read: Future[dict[str, Tensor]]) -> None:
        self._is_reading = False
        try:
            is_here = self._store.end_head_reload(handle, read.result())
        except Exception as error:
            # An unreadable head fails the rows that wait for it; the device loop must not stop.
            log.error("head_unreadable", reason=repr(error))
            if self._store.end_head_reload(handle, None):
                rows = self._queue.drop_pending(handle)
                self._refuse(rows, HeadUnreadable, "")
        else:
            if is_here:
                self._reloaded_at[handle] = time.monotonic()
                self._queue.resume(handle)
