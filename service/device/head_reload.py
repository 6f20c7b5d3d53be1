"""Ranking heads that rows ask for and that are not on the device: read back one after another.

Files are read in a thread of its own; meanwhile the rows wait, and those of other tasks go on.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import structlog
from torch import Tensor

from peterrec.service.device.head_file import read_head
from peterrec.service.device.queue import QueuedRow, RowQueue
from peterrec.service.device.slots import SlotStore
from peterrec.service.errors import HeadUnreadable, RowError
from peterrec.service.protocol.messages import Handle

log = structlog.get_logger()

Submit = Callable[[Callable[[], None]], object]
Refuse = Callable[[Sequence[QueuedRow], type[RowError], str], None]


class HeadReturns:
    """Used by the device thread only.

    ``submit`` runs a job there; ``refuse`` answers rows whose head could not be read, with an error
    class and a detail.
    """

    def __init__(self, store: SlotStore, queue: RowQueue, submit: Submit, refuse: Refuse) -> None:
        self._store = store
        self._queue = queue
        self._submit = submit
        self._refuse = refuse
        self._is_reading = False
        self._reader = ThreadPoolExecutor(1, "heads")

    def begin_next(self) -> None:
        """Read the head that rows have waited for longest, unless one is being read.

        Called after a batch: the rows of a head that has come back run before it may leave again.
        """
        handle = next(self._queue.parked, None)
        if handle is None or self._is_reading:
            return
        residency = self._store.resident[handle]
        self._store.head_room.begin_return(handle)
        self._is_reading = True
        read = self._reader.submit(read_head, Path(residency.catalog_path), residency.digest)
        read.add_done_callback(lambda done: self._submit(partial(self._end, handle, done)))

    def close(self) -> None:
        """Wait for a read under way; nothing comes back any more."""
        self._reader.shutdown()

    def _end(self, handle: Handle, read: Future[dict[str, Tensor]]) -> None:
        self._is_reading = False
        try:
            is_back = self._store.put_head_back(handle, read.result())
        except Exception as error:
            # An unreadable head fails the rows that wait for it, and the loop must go on.
            log.error("head_unreadable", reason=repr(error))
            if self._store.put_head_back(handle, None):
                rows = self._queue.drop_parked(handle)
                self._refuse(rows, HeadUnreadable, "")
        else:
            if is_back:
                self._queue.unpark(handle)
