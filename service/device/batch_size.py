"""How large a batch may be: by the time that it takes, learned from those that ran, and by bytes.

A row that comes while a batch runs waits for it, so long batches cost everybody latency and short
ones throughput, as each batch costs something by itself. Batches are short only if somebody gains
by it: a sender that asks for less than its share, beside others.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peterrec.service.device.queue import BatchBounds

SHARED_BATCH_S, ALONE_BATCH_S = 0.0025, 0.035
"""Seconds that a batch should take at most: for a sender beside others that asks for little, and
else."""

BESIDE = 0.4
"""The part of a short batch that others may fill if it has all rows of a sender: these wait for the
batch before it, and need not wait for as long again."""

FEWEST_SHARED, FEWEST_BESIDE, FEWEST_ALONE = 512, 256, 1_600
"""Positions that a batch may have in any case, for each thread: with fewer, rows of wide backbones
would run alone, and so would all rows on a processor that others keep busy."""

MAX_BATCH_BYTES = 32 << 20
"""Bytes of gathered heads and of scores that the rows of a batch take together: many labels times
many rows would be gigabytes."""

MEMORY = 0.9
"""The weight of what is known about the rate when another batch has run."""


@dataclass(slots=True)
class BatchSizer:
    """Learns how much work a second takes, and says how large the next batch may be.

    Used by the device thread only. ``threads`` are those of a forward.
    """

    max_rows: int
    threads: int = 1
    _work: float = 0.0
    _seconds: float = 0.0

    @contextmanager
    def timing(self, work: float) -> Iterator[None]:
        """Learn from the batch of so much work that runs in this block.

        Time in which others have the processor does not count, as far as it can be told: smaller
        batches would not spare anybody that.
        """
        began, began_cpu = time.monotonic(), time.process_time()
        yield
        self.note(work, min(time.monotonic() - began, time.process_time() - began_cpu))

    def note(self, work: float, seconds: float) -> None:
        """Learn from a batch that took so many seconds."""
        self._work = MEMORY * self._work + work
        self._seconds = MEMORY * self._seconds + seconds

    def bounds(self, *, is_shared: bool) -> BatchBounds:
        """Return the bounds of the next batch."""
        rate = self._work / self._seconds if self._seconds else 0.0
        short = max(self.threads * FEWEST_SHARED, SHARED_BATCH_S * rate)
        if is_shared:
            beside = max(self.threads * FEWEST_BESIDE, BESIDE * short)
            return BatchBounds(self.max_rows, short, MAX_BATCH_BYTES, beside, short)
        work = max(self.threads * FEWEST_ALONE, ALONE_BATCH_S * rate)
        return BatchBounds(self.max_rows, work, MAX_BATCH_BYTES, short_work=short)
