"""What the processes of one replica know together of tenants with quotas for requests.

A file in memory that all of them map, since a message per request would cost more than the request.
Each tenant has a slot: its buckets, which any worker draws from, what its follower has leased, and
for each worker a cell that this worker alone writes. Each number is 8 aligned bytes, which are read
and written as one. Nothing is locked: two workers that draw from one bucket within the same 0.2 µs
take the place of one (docs/decisions/0153-quotas-without-locks.md), and no process that stops or
dies holds up another.
"""

import fcntl
import hashlib
import mmap
import os
import secrets
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from peterrec.model.disk import refusals

MAX_SLOTS = 16_384
"""Slots in one server; with four workers, each has 600 bytes. The file begins with a number for
each that stands for its tenant's name, or 0. The first is no tenant's: its number stands for the
replica, also after a restart of the device process."""

SPARE_CELLS = 2
"""Cells beyond those of the workers: a new worker may start before the old one's end is noticed."""

SIZE_BYTES = 8
BURST_S = 1.0
"""Seconds of its rate that a bucket holds."""


class Bucket(IntEnum):
    """The buckets of a tenant, as the places of their first numbers in its slot, by what they hold.

    The numbers of each are the seconds for one token, the seconds by which ``full_at`` may be ahead
    of the present while there is a token, and ``full_at``: the monotonic time at which the bucket
    will be full.
    """

    REQUESTS = 0
    ADMINISTRATION = 3
    ROWS = 6


class Leased(IntEnum):
    """Places of what the follower has leased: four shares, and what follows from leases.

    ``WAITING_ROWS`` may wait here, and ``STREAMS_ELSEWHERE`` are open on other replicas.
    """

    SHARES = 9
    WAITING_ROWS = 13
    STREAMS_ELSEWHERE = 14


class Cell(IntEnum):
    """Places in a worker's cell: what is now, and what was admitted and refused so far."""

    WAITING_ROWS = 0
    STREAMS = 1
    REQUESTS = 2
    ADMINISTRATION = 3
    ROWS = 4
    REFUSED_REQUESTS = 5
    REFUSED_ADMINISTRATION = 6
    REFUSED_BY_ROWS = 7
    REFUSED_BY_WAITING_ROWS = 8
    REFUSED_STREAMS = 9


HEAD_NUMBERS = 15
CELL_NUMBERS = len(Cell)
NEVER = 1e30
"""Seconds for one token of a bucket that is not filled: no quota is smaller."""


class ServedTenant(msgspec.Struct, frozen=True, array_like=True):
    """A tenant as workers know it. ``slot`` is None without quotas that are looked at in requests;
    a quota is None if there is none."""

    tenant: str
    slot: int | None = None
    requests_per_s: int | None = None
    rows_per_s: int | None = None
    waiting_rows: int | None = None
    streams: int | None = None


class QuotaTable:
    """The mapped file, which ``open`` makes if it is not there. Only ``open`` may wait."""

    def __init__(self, descriptor: int, worker_count: int) -> None:
        self._descriptor = descriptor
        self._cells = worker_count + SPARE_CELLS
        self._stride = HEAD_NUMBERS + self._cells * CELL_NUMBERS
        self._map = mmap.mmap(descriptor, _size_bytes(worker_count))
        self.numbers = memoryview(self._map).cast("d")

    @classmethod
    def open(cls, path: Path, worker_count: int) -> "QuotaTable":
        """Map the file, which must be in a folder that only this server's processes use."""
        size_bytes = _size_bytes(worker_count)
        with refusals(path.parent, doing="written"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # one process fills it with zeros
            while (have := os.fstat(descriptor).st_size) < size_bytes:
                os.pwrite(descriptor, bytes(min(1 << 20, size_bytes - have)), have)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        return cls(descriptor, worker_count)

    def close(self) -> None:
        """Unmap the file, and free this process's cell."""
        self.numbers.release()
        self._map.close()
        os.close(self._descriptor)

    def start_of(self, slot: int) -> int:
        """Return the place of a slot's first number."""
        return MAX_SLOTS + slot * self._stride

    def own_cell(self) -> int:
        """Take a cell that no living process has, and return its place in a slot.

        What its last owner had waiting and open ended with it. The lock of the cell ends with this
        process, however that ends.
        """
        for number in range(self._cells):
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except OSError:
                continue
            break
        else:
            number = self._cells - 1  # shared: counts may be off by what is counted at one moment
        place = HEAD_NUMBERS + number * CELL_NUMBERS
        for slot in self.known().values():
            start = self.start_of(slot) + place
            self.numbers[start + Cell.WAITING_ROWS] = self.numbers[start + Cell.STREAMS] = 0.0
        return place

    def sum_of(self, slot: int, place: Cell) -> float:
        """Sum up one number of all workers' cells."""
        first = self.start_of(slot) + HEAD_NUMBERS + place
        return sum(self.numbers[first : first + self._cells * CELL_NUMBERS : CELL_NUMBERS])

    def counts(self, slots: Sequence[int]) -> npt.NDArray[np.float64]:
        """Sum up the cells of all workers for each of some slots: [slots, numbers of a cell]."""
        cells = self._slots()[list(slots), HEAD_NUMBERS:]
        summed: npt.NDArray[np.float64] = cells.reshape(-1, self._cells, CELL_NUMBERS).sum(axis=1)
        return summed

    def known(self) -> dict[float, int]:
        """Return the slots that are taken, by the numbers of the tenants' names."""
        names = self.numbers[1:MAX_SLOTS].tolist()
        return {name: slot for slot, name in enumerate(names, 1) if name}

    @property
    def replica(self) -> str:
        """The name of this replica among those that share quotas."""
        if not self.numbers[0]:
            self.numbers[0] = float(1 + secrets.randbits(48))
        return f"{int(self.numbers[0]):012x}"

    def _slots(self) -> npt.NDArray[np.float64]:
        numbers = np.frombuffer(self._map, np.float64, offset=MAX_SLOTS * SIZE_BYTES)
        return numbers.reshape(MAX_SLOTS, self._stride)

    def clear(self, slot: int, name: float) -> None:
        """Give a slot to a tenant, with full buckets and counts of 0."""
        start = self.start_of(slot)
        for place in range(start, start + self._stride):
            self.numbers[place] = 0.0
        self.numbers[slot] = name

    def set_rate(self, slot: int, bucket: Bucket, rate: float, now: float) -> None:
        """Fill a bucket at another rate from now on. The tokens that it lacks are still lacking."""
        numbers, at = self.numbers, self.start_of(slot) + bucket
        period_s = 1 / rate if rate > 0 else NEVER
        before_s = numbers[at]
        if before_s == period_s:
            return
        lacking = max(0.0, numbers[at + 2] - now) / before_s if before_s else 0.0
        numbers[at] = period_s
        numbers[at + 1] = max(0.0, BURST_S - period_s)
        numbers[at + 2] = now + lacking * period_s


def _size_bytes(worker_count: int) -> int:
    stride = HEAD_NUMBERS + (worker_count + SPARE_CELLS) * CELL_NUMBERS
    return MAX_SLOTS * (1 + stride) * SIZE_BYTES


def name_number(tenant: str) -> float:
    """Return a number that stands for a tenant's name, exact as a float and never 0."""
    digest = hashlib.blake2b(tenant.encode(), digest_size=6).digest()
    return float(int.from_bytes(digest) + 1)
