"""The follower: keeps the device's table in step with the registry.

A notification is a hint; the revision counter is the truth, read on connecting and on a timer. It
runs in a thread of its own: Redis, hashing and verification never hold up the device thread.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from model.errors import PeterRecError
from patches.errors import BundleRejected, RegistryUnavailable
from patches.identity import Digest, TaskRef
from patches.records import RegistrySnapshot, TaskRecord, VersionSummary
from patches.registry import Registry
from patches.verify import VerifiedBundle
from service.bundle_source import BundleSource
from service.device import DeviceLoop
from service.events import BundleRefused, Emit, RegistrySynced, RegistryUnreachable
from service.messages import KeyEntry, ProofReason, Prove, Proved, TaskEntry
from service.scheduler import Worker
from service.serving_table import Desired, TaskKey
from service.slots import ProbeFailed

log = structlog.get_logger()

Result = TypeVar("Result")

RETRY_S = 0.5
RETRY_LOAD_S = 5.0
SAVE_INTERVAL_S = 1.0
COLLECT_INTERVAL_S = 3600.0
LOADED_PER_FLIP = 256
"""While many bundles load, the table is flipped this often: what is there is served already."""


class RegistryFollower:
    """Follows one registry for one device. ``look_now`` and ``prove`` may be called anywhere."""

    def __init__(
        self,
        registry: Registry,
        source: BundleSource,
        device: DeviceLoop,
        reconcile_interval_s: float,
        emit: Emit,
    ) -> None:
        self._registry = registry
        self._source = source
        self._device = device
        self._interval_s = reconcile_interval_s
        self._emit = emit
        self._refused: set[str] = set()
        self._retry_at: dict[str, float] = {}
        self._known: RegistrySnapshot | None = None
        self._entries: dict[TaskRef, tuple[TaskRecord, TaskEntry]] = {}
        self._has_news = False
        self._unsaved: RegistrySnapshot | None = None
        self._loop = asyncio.new_event_loop()
        self._look = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Begin to follow, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following and wait for the thread to end."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout=10)

    def look_now(self) -> None:
        """Read the registry's revision at once."""
        self._loop.call_soon_threadsafe(self._look.set)

    def prove(self, worker: Worker, request: Prove) -> None:
        """Verify a spooled file, load and probe it on the device, and answer the worker."""
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._prove(worker, request)))

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._spawn(self._hear_hints())
        self._spawn(self._save_sometimes())
        self._spawn(self._collect_sometimes())
        following = asyncio.create_task(self._follow())
        await self._stopping.wait()
        following.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(following, *self._tasks, return_exceptions=True)
        await self._save()
        await self._registry.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hear_hints(self) -> None:
        """Wake the reconcile loop as soon as the registry tells of a change."""
        heard = 0
        while True:
            try:
                since = max(heard, self._known.revision if self._known else 0)
                heard = await self._registry.wait_for_change(since, self._interval_s)
            except RegistryUnavailable:
                heard = 0
                await asyncio.sleep(RETRY_S)
            if self._known is None or heard != self._known.revision:
                self._look.set()

    async def _follow(self) -> None:
        await self._start_from_cache()
        while True:
            try:
                await self._reconcile()
            except RegistryUnavailable as error:
                log.warning(error.code, reason=error.message)
                self._emit(RegistryUnreachable(time.time()))
                await asyncio.sleep(RETRY_S)
                continue
            await self._sleep_until_hint()

    async def _sleep_until_hint(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._look.wait(), self._interval_s)
        self._look.clear()

    async def _start_from_cache(self) -> None:
        """If the registry can't be read now, serve what was served last."""
        try:
            await self._registry.revision()
        except RegistryUnavailable:
            snapshot = await self._recalled()
            if snapshot is None:
                return
            log.warning("serving_from_cache", revision=snapshot.revision)
            await self._apply(snapshot, time.monotonic())
            self._device.is_ready = True

    async def _reconcile(self) -> None:
        seen_at = time.monotonic()
        snapshot = await self._registry.catch_up(self._known)
        if snapshot is not self._known or self._is_load_due():
            await self._apply(snapshot, seen_at)
            self._known = self._unsaved = snapshot
            self._has_news = True
            log.info("registry_applied", revision=snapshot.revision, tasks=len(snapshot.tasks))
        self._device.registry_synced_at = time.time()
        self._device.is_ready = True
        await self._on_device(self._report)

    def _is_load_due(self) -> bool:
        return any(retry_at <= time.monotonic() for retry_at in self._retry_at.values())

    async def _recalled(self) -> RegistrySnapshot | None:
        try:
            return await self._source.recall()
        except PeterRecError as error:
            log.error(error.code, reason=error.message)
            return None

    async def _save_sometimes(self) -> None:
        """Write the last-known-good copy, but not at each of many changes in a row."""
        while True:
            await asyncio.sleep(SAVE_INTERVAL_S)
            await self._save()

    async def _collect_sometimes(self) -> None:
        """Any replica may collect; the registry keeps what was uploaded lately."""
        while True:
            await asyncio.sleep(COLLECT_INTERVAL_S)
            with contextlib.suppress(PeterRecError):
                await self._source.collect()

    async def _save(self) -> None:
        if self._unsaved is not None:
            snapshot, self._unsaved = self._unsaved, None
            try:
                await self._source.remember(snapshot)
            except PeterRecError as error:
                log.error(error.code, reason=error.message)

    async def _apply(self, snapshot: RegistrySnapshot, seen_at: float) -> None:
        """Flip to the snapshot, loading what is missing; a bundle that fails is left out."""
        desired = self._desired(snapshot)
        self._retry_at = {d: at for d, at in self._retry_at.items() if at > time.monotonic()}
        while True:
            missing = await self._on_device(lambda: self._device.apply(desired, seen_at))
            left_out = self._refused | self._retry_at.keys()
            wanted = [digest for digest in missing if digest not in left_out]
            if not wanted:
                return
            for digest in wanted[:LOADED_PER_FLIP]:
                await self._load(Digest(digest))

    def _desired(self, snapshot: RegistrySnapshot) -> Desired:
        """The snapshot in the table's form; a task that did not change stays the same object."""
        entries: dict[TaskRef, tuple[TaskRecord, TaskEntry]] = {}
        for ref, record in snapshot.tasks.items():
            known = self._entries.get(ref)
            is_same = known is not None and known[0] is record
            entries[ref] = known if known and is_same else (record, _task_entry(record))
        self._entries = entries
        keys = [
            KeyEntry(k.key_id, k.secret_digest, k.tenant, [str(scope) for scope in k.scopes])
            for k in snapshot.keys.values()
        ]
        tasks: dict[TaskKey, TaskEntry] = {ref: entry for ref, (_, entry) in entries.items()}
        return Desired(snapshot.revision, tasks, keys)

    async def _load(self, digest: Digest) -> None:
        """Make a bundle resident, or note when to try again; one failure holds up no other."""
        try:
            bundle = await self._source.fetch(digest)
            await self._load_on_device(bundle)
        except RegistryUnavailable:
            raise
        except (BundleRejected, ProbeFailed) as error:
            self._refused.add(digest)  # its bytes will not change: never tried again
            self._tell_refused(digest, error)
        except PeterRecError as error:
            # a blob that is missing, a full disk, no room for a head: can be cured
            self._retry_at[digest] = time.monotonic() + RETRY_LOAD_S
            self._tell_refused(digest, error)

    async def _load_on_device(self, bundle: VerifiedBundle) -> None:
        path = self._source.local_path(bundle)
        await self._on_device(lambda: self._device.load(bundle, path))

    async def _prove(self, worker: Worker, request: Prove) -> None:
        try:
            bundle = await self._source.accept(Path(request.path))
            if await self._on_device(lambda: self._device.is_missing(bundle.digest)):
                await self._load_on_device(bundle)
        except PeterRecError as error:
            self._tell_refused(request.path, error)
            answer = _refusal(request, error)
        else:
            summary = msgspec.json.encode(VersionSummary.of(bundle))
            answer = Proved(request.request_id, bundle.digest, bundle.size_bytes, summary, [])
        await self._on_device(lambda: self._device.send(worker, answer))

    def _report(self) -> None:
        """On the device thread: tell what is served at which revision."""
        table, self._has_news, is_news = self._device.table, False, self._has_news
        tasks = table.task_keys() if is_news else None
        self._emit(RegistrySynced(table.revision, self._device.registry_synced_at, tasks))

    def _tell_refused(self, what: str, error: PeterRecError) -> None:
        codes = [reason.code for reason in _reasons(error)]
        log.warning("bundle_refused", bundle=Path(what).name, codes=",".join(codes))
        self._emit(BundleRefused(codes))

    async def _on_device(self, job: Callable[[], Result]) -> Result:
        return await asyncio.wrap_future(self._device.submit(job))


def _task_entry(record: TaskRecord) -> TaskEntry:
    return TaskEntry(
        tenant=record.tenant,
        task=record.task,
        revision=record.revision,
        aliases={alias: target.version for alias, target in record.aliases.items()},
        versions={target.version: target.digest for target in record.aliases.values()},
    )


def _refusal(request: Prove, error: PeterRecError) -> Proved:
    return Proved(request.request_id, "", 0, b"{}", _reasons(error), error.category)


def _reasons(error: PeterRecError) -> list[ProofReason]:
    if isinstance(error, BundleRejected):
        return [ProofReason(r.code, r.message, r.hint) for r in error.reasons]
    return [ProofReason(error.code, error.message, error.hint)]
