"""Tenants that share one device in this process: the queue, the size of batches and the forward.

Clients are closed loops: each sends its next request when the last one is answered, after a pause.
"""

import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, cycle

import numpy as np

from bench.plain_queue import PlainQueue
from bench.random_fleet import FleetShape
from peterrec.model.spec import FIRST_ITEM
from peterrec.service.device.batch_size import BatchSizer
from peterrec.service.device.queue import QueuedRow, RowQueue
from peterrec.service.device.slots import Residency, SlotStore
from peterrec.service.protocol.messages import Row
from peterrec.service.protocol.sender import Sender

FAR = 1e12
"""A deadline that does not come."""

MAX_ROWS = 256
"""Most rows of a batch, as the server's default."""

REQUESTS = 16
"""Different requests of a load."""

WARM_UP_S = 4.0
"""Seconds before the figures count: the queue has to learn who asks for how much."""


@dataclass(frozen=True, slots=True)
class Load:
    """A tenant's clients, and what each of them asks for: rows of histories, all of one length."""

    tenant: str
    clients: int
    rows: int
    items: int = 50
    pause_s: float = 0.0


@dataclass(slots=True)
class Shared:
    """What the tenants got: their work and the latencies of their requests.

    ``cpu_seconds`` is the processor's time of all, which other load on the machine does not change.
    """

    cpu_seconds: float = 0.0
    work: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    latencies_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def rate(self) -> float:
        """Work of all tenants per second of the processor."""
        return sum(self.work.values()) / self.cpu_seconds

    def p99_ms(self, tenant: str) -> float:
        """99th percentile of the latencies of a tenant, in milliseconds."""
        return 1000 * float(np.percentile(self.latencies_s[tenant], 99))

    def share(self, tenant: str) -> float:
        """A tenant's part of the work."""
        return self.work[tenant] / sum(self.work.values())

    def jain(self) -> float:
        """Jain's index of the tenants' work: 1 if all are equal, 1/n if one has it all."""
        work = list(self.work.values())
        return sum(work) ** 2 / (len(work) * sum(each**2 for each in work))


@dataclass(slots=True)
class Asked:
    """A request that waits: whose it is, since when, and how many of its rows have no answer."""

    client: "Client"
    since: float
    left: int


@dataclass(frozen=True, slots=True)
class Client:
    """One of a load's clients, and the rows of its requests, in turn."""

    load: Load
    requests: Iterator[list[Row]]


class SharedDevice:
    """A store with random tasks, on which loads are run with one queue or the other."""

    def __init__(self, shape: FleetShape, store: SlotStore, residents: Sequence[Residency]) -> None:
        self._shape, self._store, self._residents = shape, store, residents

    def run(self, loads: Sequence[Load], seconds: float, *, is_fair: bool) -> Shared:
        """Run loads for so many seconds, after a warm-up that does not count."""
        session = Session(self._store, RowQueue(1 << 30) if is_fair else PlainQueue())
        for load in loads:
            requests = self._requests(load)
            for _ in range(load.clients):
                session.begin(Client(load, requests))
        session.run(WARM_UP_S)
        session.found, began = Shared(), time.process_time()
        session.run(seconds)
        session.found.cpu_seconds = time.process_time() - began
        return session.found

    def _requests(self, load: Load) -> Iterator[list[Row]]:
        """Rows of requests without end, of random tasks and histories."""
        random = np.random.default_rng(zlib.crc32(load.tenant.encode()))
        size = (REQUESTS, load.rows, load.items)
        items = random.integers(FIRST_ITEM, FIRST_ITEM + self._shape.items, size, dtype=np.int32)
        tasks = random.integers(len(self._residents), size=size[:2]).tolist()
        return cycle(
            [
                [
                    Row(self._residents[n].handle, row.tobytes())
                    for n, row in zip(*pair, strict=True)
                ]
                for pair in zip(tasks, items, strict=True)
            ]
        )


class Session:
    """One run of clients against a device: they push, it takes and scores, in one thread."""

    def __init__(self, store: SlotStore, queue: RowQueue | PlainQueue) -> None:
        self.found = Shared()
        self._store, self._queue, self._sizer = store, queue, BatchSizer(MAX_ROWS)
        self._asked: dict[int, Asked] = {}
        self._due: list[tuple[float, int, Client]] = []
        self._ids = count()

    def begin(self, client: Client) -> None:
        """Let a client send its first request at once."""
        heappush(self._due, (0.0, next(self._ids), client))

    def run(self, seconds: float) -> None:
        """Serve for so many seconds."""
        ends_at = time.perf_counter() + seconds
        while (now := time.perf_counter()) < ends_at:
            while self._due and self._due[0][0] <= now:
                self._ask(heappop(self._due)[2], now)
            bounds = self._sizer.bounds(is_shared=self._queue.is_shared(now))
            taken = self._queue.take(bounds, now)
            if taken.rows:
                with self._sizer.timing(taken.work):
                    self._store.score([queued.row for queued in taken.rows])
                self._answer(taken.rows, time.perf_counter())

    def _ask(self, client: Client, now: float) -> None:
        number, price = next(self._ids), self._store.resident
        rows = [
            QueuedRow(0, number, at, row, FAR, now, price[row.handle].price.work(row))
            for at, row in enumerate(next(client.requests))
        ]
        self._asked[number] = Asked(client, now, len(rows))
        self._queue.push(rows, Sender(client.load.tenant))

    def _answer(self, rows: Sequence[QueuedRow], ended: float) -> None:
        for row in rows:
            asked = self._asked[row.request_id]
            load = asked.client.load
            self.found.work[load.tenant] += row.work
            asked.left -= 1
            if not asked.left:
                del self._asked[row.request_id]
                self.found.latencies_s[load.tenant].append(ended - asked.since)
                heappush(self._due, (ended + load.pause_s, next(self._ids), asked.client))
