"""The follower: reconciles the device's table with the registry.

A notification is only a hint: the registry's revision counter is the truth, read on connecting and
on a timer. The follower runs in its own thread, and hashing and verification in further ones. All
of them have a low priority, so that a registration does not delay the requests of other tasks.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog
import uvloop
from tenacity import AsyncRetrying, RetryCallState, wait_fixed

from peterrec.model.errors import PeterRecError
from peterrec.patches.bundle.verify import VerifiedBundle
from peterrec.patches.errors import BundleRejected, RegistryUnavailable
from peterrec.patches.identity import Digest, TaskRef
from peterrec.patches.registry.records import ActiveTraffic, RegistrySnapshot, VersionSummary
from peterrec.patches.registry.registry import Registry
from peterrec.service.device.load import Failures
from peterrec.service.device.loop import DeviceLoop
from peterrec.service.device.queue import Worker
from peterrec.service.device.serving_table import DesiredState
from peterrec.service.device.slots import LocalBundle
from peterrec.service.protocol.messages import (
    KeyEntry,
    ProofReason,
    TrafficSeen,
    Validate,
    Validated,
)
from peterrec.service.sync.guard import GuardWatch
from peterrec.service.sync.loader import BundleLoader
from peterrec.service.sync.source import BundleSource
from peterrec.service.system.memory import give_back_memory
from peterrec.service.system.priority import step_back
from peterrec.service.telemetry.events import (
    BundleRefused,
    Emit,
    RegistrySynced,
    RegistryUnreachable,
)

log = structlog.get_logger()

Result = TypeVar("Result")

RETRY_S = 0.5
"""Seconds until the registry is tried again after an error."""

LOOK_TIMEOUT_S = 0.5
LONGEST_LOOK_TIMEOUT_S = 1.0
"""Seconds without an answer after which Redis counts as away; a cut connection can stay silent much
longer. The first timeout is shorter, since Redis may be reachable over another connection."""

READ_TIMEOUT_S = 1.0
LONGEST_READ_TIMEOUT_S = 10.0
"""Seconds for reading changes or the whole registry; doubled while that takes too long."""

SAVE_INTERVAL_S = 1.0
"""Seconds between two writes of the last-known-good copy."""

COLLECT_INTERVAL_S = 3600.0
"""Seconds between two collections of blobs that no version names."""


class RegistryFollower:
    """Follows one registry for one device.

    ``look_now``, ``validate`` and ``count_traffic`` may be called from any thread.
    """

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
        self._loader = BundleLoader(source, self._load, self._flip, self._report_refused)
        self._known: RegistrySnapshot | None = None
        self._desired: DesiredState | None = None
        self._seen_at = 0.0
        self._look_timeout_s = LOOK_TIMEOUT_S
        self._read_timeout_s = READ_TIMEOUT_S
        self._is_away = False
        self._unsaved: RegistrySnapshot | None = None
        self._loop = uvloop.new_event_loop()
        self._look = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._guards = GuardWatch(registry, self._traffic, self._withdraw, self._spawn, emit)
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Start the follower's thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the follower and wait for its thread to end."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout=10)

    def look_now(self) -> None:
        """Read the registry's revision now."""
        self._loop.call_soon_threadsafe(self._look.set)

    def validate(self, worker: Worker, request: Validate) -> None:
        """Verify a spooled file, load and probe it on the device, and answer the worker."""
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._validate(worker, request)))

    def count_traffic(self, seen: TrafficSeen) -> None:
        """Count what a worker saw of a task's traffic."""
        self._loop.call_soon_threadsafe(self._guards.count, seen)

    def _run(self) -> None:
        step_back()
        self._loop.set_default_executor(ThreadPoolExecutor(initializer=step_back))
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        for work in (
            self._wait_for_hints,
            self._save_regularly,
            self._collect_regularly,
            self._loader.run,
            self._guards.report_regularly,
        ):
            self._spawn(forever(work))
        self._spawn(self._follow())
        await self._stopping.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._save()
        await self._registry.close()
        await self._source.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wait_for_hints(self) -> None:
        """Wake the reconcile loop as soon as the registry notifies a change."""
        heard = 0
        while True:
            try:
                since = max(heard, self._known.revision if self._known else 0)
                heard = await self._registry.feed.wait_for_change(since, self._interval_s)
            except RegistryUnavailable:
                heard = 0
                await asyncio.sleep(RETRY_S)
            if self._known is None or heard != self._known.revision:
                self._look.set()

    async def _follow(self) -> None:
        await self._start_from_cache()
        await forever(self._reconcile_regularly)

    async def _reconcile_regularly(self) -> None:
        while True:
            started = time.monotonic()
            try:
                await self._reconcile()
            except PeterRecError as error:
                if not self._is_away:  # log it once, not twice a second
                    log.warning(error.code, reason=error.message)
                self._is_away = True
                self._emit(RegistryUnreachable(time.time()))
                self._source.give_up()
                self._note_progress()
                await asyncio.sleep(max(0.0, started + RETRY_S - time.monotonic()))
            else:
                if self._is_away:
                    log.info("registry_is_back")
                self._is_away = False
                await self._sleep_until_hint()

    async def _sleep_until_hint(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._look.wait(), self._interval_s)
        self._look.clear()

    async def _start_from_cache(self) -> None:
        """Serve what was served last, if the registry can't be read now."""
        try:
            await self._look_at_revision()
        except PeterRecError:
            snapshot = await self._recall()
            if snapshot is not None:
                log.warning("serving_from_cache", revision=snapshot.revision)
                await self._apply(snapshot, time.monotonic())

    async def _reconcile(self) -> None:
        seen_at = time.monotonic()
        snapshot = await self._read()
        if snapshot is not self._known:
            await self._apply(snapshot, seen_at)
            self._known = self._unsaved = snapshot
            log.info("registry_applied", revision=snapshot.revision, tasks=len(snapshot.tasks))
        self._device.registry_synced_at = time.time()
        self._note_progress()
        await self._on_device(self._emit_synced)

    async def _read(self) -> RegistrySnapshot:
        """Read the registry as it is now; raise RegistryUnavailable soon if Redis is silent."""
        await self._look_at_revision()
        try:
            catching_up = self._registry.feed.catch_up(self._known)
            found = await self._within(self._read_timeout_s, catching_up)
        except RegistryUnavailable:
            self._read_timeout_s = min(LONGEST_READ_TIMEOUT_S, 2 * self._read_timeout_s)
            raise
        self._read_timeout_s = READ_TIMEOUT_S
        return found

    async def _look_at_revision(self) -> None:
        try:
            await self._within(self._look_timeout_s, self._registry.feed.revision())
        except RegistryUnavailable:
            self._look_timeout_s = min(LONGEST_LOOK_TIMEOUT_S, 2 * self._look_timeout_s)
            raise
        self._look_timeout_s = LOOK_TIMEOUT_S

    async def _within(self, timeout_s: float, answer: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            await self._registry.drop_idle_connections()
            raise RegistryUnavailable(
                f"Redis did not answer within {timeout_s:g} s.", hint="Serving continues."
            ) from error

    def _note_progress(self) -> None:
        """Become ready once everything that can be loaded is loaded; a bad bundle is left out."""
        if self._desired is not None and self._loader.is_idle:
            self._device.is_open = self._device.is_ready = True

    async def _recall(self) -> RegistrySnapshot | None:
        try:
            return await self._source.recall()
        except PeterRecError as error:
            log.error(error.code, reason=error.message)
            return None

    async def _save_regularly(self) -> None:
        """Write the last-known-good copy, once for many changes in a row."""
        while True:
            await asyncio.sleep(SAVE_INTERVAL_S)
            if self._unsaved is not None and self._loader.is_idle:
                with contextlib.suppress(PeterRecError):  # logged when the copy is written
                    await self._source.settle()
            await self._save()

    async def _collect_regularly(self) -> None:
        """Drop blobs that no version names from the registry; any replica may do it."""
        while True:
            await asyncio.sleep(COLLECT_INTERVAL_S)
            with contextlib.suppress(PeterRecError):
                await self._source.collect()

    async def _save(self) -> None:
        """Write the unsaved snapshot, if its bundles were fetched: the copy must not lack them."""
        if self._unsaved is not None and self._loader.is_idle:
            snapshot, self._unsaved = self._unsaved, None
            try:
                await self._source.remember(snapshot, self._in_use())
            except PeterRecError as error:
                log.error(error.code, reason=error.message)
            await asyncio.to_thread(give_back_memory)

    async def _apply(self, snapshot: RegistrySnapshot, seen_at: float) -> None:
        """Serve the snapshot as far as it is loaded; the rest follows bundle by bundle."""
        self._desired, self._seen_at = _desired_of(snapshot), seen_at
        await self._make_table()
        self._note_progress()

    async def _flip(self) -> None:
        """Change the table to what was loaded since, and open it to workers."""
        await self._make_table()
        self._device.is_open = True
        self._note_progress()

    async def _make_table(self) -> None:
        desired, seen_at = self._desired, self._seen_at
        assert desired is not None, "nothing is loaded before it is desired"
        desired = replace(desired, refused=self._loader.refused)
        self._loader.want(await self._on_device(lambda: self._device.apply(desired, seen_at)))

    def _in_use(self) -> frozenset[Digest]:
        """Return the bundles whose files are needed, while the device thread may change them."""
        # making the list is one step that no other thread can interrupt
        resident = list(self._device.store.resident.values())
        return frozenset(residency.digest for residency in resident)

    async def _load(self, bundles: Sequence[LocalBundle]) -> Failures:
        return await self._on_device(lambda: self._device.loading.load(bundles))

    async def _validate(self, worker: Worker, request: Validate) -> None:
        try:
            local = await self._source.accept(Path(request.path))
            await self._on_device(lambda: self._device.loading.validate(local))
        except PeterRecError as error:
            self._report_refused(request.path, error)
            answer = _refusal(request, error)
        else:
            answer = await self._stored(request, local.bundle)
        await self._on_device(lambda: self._device.send(worker, answer))

    async def _stored(self, request: Validate, bundle: VerifiedBundle) -> Validated:
        """Store a validated bundle if the worker asked for it; build the answer to the worker."""
        try:
            if request.store:
                await self._source.store(bundle.blob)
        except PeterRecError as error:
            return _refusal(request, error)
        summary = msgspec.json.encode(await asyncio.to_thread(VersionSummary.of, bundle))
        return Validated(request.request_id, bundle.digest, bundle.size_bytes, summary, [])

    def _emit_synced(self) -> None:
        """Emit which revision is served. Runs on the device thread."""
        device = self._device
        self._emit(RegistrySynced(device.table.revision, device.registry_synced_at))

    def _report_refused(self, what: str, error: PeterRecError) -> None:
        codes = [reason.code for reason in _reasons(error)]
        log.warning("bundle_refused", bundle=Path(what).name, codes=",".join(codes))
        self._emit(BundleRefused(codes))

    def _traffic(self, ref: TaskRef) -> ActiveTraffic | None:
        entry = self._desired.tasks.get(ref) if self._desired else None
        return entry.traffic if entry else None

    async def _withdraw(self, ref: TaskRef, traffic_revision: int) -> None:
        await self._on_device(lambda: self._device.withdraw(ref, traffic_revision))

    async def _on_device(self, job: Callable[[], Result]) -> Result:
        return await asyncio.wrap_future(self._device.submit(job))


async def forever(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work``, and again after any exception, so a bug can't silently stop registry sync."""
    await AsyncRetrying(wait=wait_fixed(RETRY_S), before_sleep=_log_failure)(work)


def _log_failure(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    log.error("follower_failed", exc_info=error)


def _desired_of(snapshot: RegistrySnapshot) -> DesiredState:
    keys = [
        KeyEntry(k.key_id, k.secret_digest, k.tenant, [str(scope) for scope in k.scopes])
        for k in snapshot.keys.values()
    ]
    return DesiredState(snapshot.revision, snapshot.tasks, keys, snapshot.touched)


def _refusal(request: Validate, error: PeterRecError) -> Validated:
    return Validated(request.request_id, "", 0, b"{}", _reasons(error), error.category)


def _reasons(error: PeterRecError) -> list[ProofReason]:
    if isinstance(error, BundleRejected):
        return [ProofReason(r.code, r.message, r.hint) for r in error.reasons]
    return [ProofReason(error.code, error.message, error.hint)]
