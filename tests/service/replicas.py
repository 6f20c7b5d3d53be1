"""A replica within the test: a real device loop and follower in threads, and a worker's table."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue

from peterrec.patches.bundle.verify import BundleLimits
from peterrec.patches.identity import DEFAULT_TENANT, Digest
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.losses import Knowledge
from peterrec.patches.registry.records import Position
from peterrec.patches.registry.registry import Registry, open_redis
from peterrec.service.device.loop import DeviceLimits, DeviceLoop
from peterrec.service.device.slots import SlotStore
from peterrec.service.predict.device_link import DeviceLink
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.listener import Listener
from peterrec.service.protocol.quota_table import QuotaTable
from peterrec.service.sync.follower import RegistryFollower
from peterrec.service.sync.quotas import QuotaKeeper
from peterrec.service.sync.source import BundleSource, Demands
from peterrec.service.telemetry.events import Event
from tests.service.random_bundles import Workshop

Served = dict[str, tuple[Mapping[str, str], frozenset[str]]]
"""For each task: the digest of each alias, and the digests that take part in its traffic."""


class DeviceThread:
    """A thread that runs one device after another and never ends.

    A thread that has run forwards may hang when it ends, in the cleanup of native libraries. (In a
    server, the device has the main thread.)
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], None], Future[None]]] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, job: Callable[[], None]) -> "Future[None]":
        done: Future[None] = Future()
        self._jobs.put((job, done))
        return done

    def _run(self) -> None:
        while True:
            job, done = self._jobs.get()
            try:
                done.set_result(job())
            except Exception as error:
                done.set_exception(error)


class Replica:
    """A device that may be started and stopped repeatedly; the worker and the disk stay.

    Use the worker's side only on the event loop that ``open`` ran on.
    """

    def __init__(
        self,
        thread: DeviceThread,
        workshop: Workshop,
        folder: Path,
        redis_url: str,
        prefix: str,
    ) -> None:
        self._thread = thread
        self._running: Future[None] | None = None
        self._workshop = workshop
        self._folder = folder
        self._redis_url = redis_url
        self._prefix = prefix
        folder.mkdir()
        self._endpoint = folder / "device"
        self.table = TaskTable()
        self.link = DeviceLink(
            self._endpoint, self.table, max_rows=100, on_update=lambda update: None
        )
        self.events: list[Event] = []

    async def open(self) -> None:
        await self.link.start()
        self.start()

    async def close(self) -> None:
        await self.link.close()
        self.stop()

    def start(self) -> None:
        self._is_stopping = False
        store = SlotStore(self._workshop.loaded.backbone, head_limit_bytes=1 << 20)
        limits = DeviceLimits(max_queue_rows=100, max_batch_rows=16)
        self.device = DeviceLoop(Listener(self._endpoint), store, limits, self.events.append)
        knowledge = Knowledge()
        registry = Registry(open_redis(self._redis_url), self._prefix, knowledge)
        cache = BlobCache(self._folder / "cache")
        demands = Demands(self._workshop.identity, BundleLimits())
        uploads = Registry(open_redis(self._redis_url), self._prefix, knowledge)
        source = BundleSource(registry, uploads, cache, demands, knowledge)
        quota_table = QuotaTable.open(self._folder / "quotas", worker_count=1)
        quotas = QuotaKeeper(quota_table, registry.shares, self.events.append)
        self.follower = RegistryFollower(
            registry, source, self.device, quotas, 1.0, self.events.append
        )
        self._running = self._thread.submit(self._serve)

    def stop(self) -> None:
        if self._running is not None:
            self._is_stopping = True
            self._running.result(timeout=30)
            self._running = None

    def _serve(self) -> None:
        self.follower.start()
        self.device.run(self.follower, lambda: self._is_stopping)
        self.follower.stop()
        self.device.close()

    def known(self) -> list[Position]:
        """Return what it knows of the registry, in memory and on its disk."""
        copy = BlobCache(self._folder / "cache").load_snapshot()
        return [self.device.registry_position, *([copy.position] if copy else [])]

    def served(self) -> Served:
        """Return the digests that the worker would answer with at present.

        A bundle that it cannot find is an error.
        """
        served: Served = {}
        for entry in self.table.entries(DEFAULT_TENANT):
            aliases = {alias: entry.versions[number] for alias, number in entry.aliases.items()}
            split = frozenset(map(str, entry.traffic.versions)) if entry.traffic else frozenset()
            for digest in {*aliases.values(), *split}:
                bundle = self.table.resident(Digest(digest))
                assert bundle is not None, f"{entry.task} names {digest}, which is not there"
            served[entry.task] = (aliases, split)
        return served
