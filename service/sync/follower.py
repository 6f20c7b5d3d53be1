"""The follower: reconciles the device's table with the registry.

A notification is only a hint: the registry's revision counter is the truth, read on connecting and
on a timer. The follower runs in its own thread, and hashing and verification in further ones. All
of them have a low priority, so that a registration does not delay the requests of other tasks.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog
import uvloop
from tenacity import AsyncRetrying, RetryCallState, wait_fixed

from peterrec.model.errors import PeterRecError
from peterrec.patches.bundle.verify import VerifiedBundle
from peterrec.patches.errors import BundleRejected, RegistryLost, RegistryUnavailable
from peterrec.patches.identity import Digest, TaskRef
from peterrec.patches.registry.api_keys import KeyRecord
from peterrec.patches.registry.records import (
    ActiveTraffic,
    RegistrySnapshot,
    TenantRecord,
    VersionSummary,
)
from peterrec.patches.registry.registry import Registry
from peterrec.service.device.load import Failures
from peterrec.service.device.loop import DeviceLoop
from peterrec.service.device.queue import Worker
from peterrec.service.device.serving_table import DesiredState
from peterrec.service.device.slots import LocalBundle, weights_of
from peterrec.service.errors import InternalFault, LoadFailed
from peterrec.service.protocol.messages import (
    KeyEntry,
    Probed,
    Profile,
    Profiled,
    ProofReason,
    TrafficSeen,
    Validate,
    Validated,
)
from peterrec.service.protocol.quota_table import ServedTenant
from peterrec.service.sync.guard import GuardWatch
from peterrec.service.sync.loader import BundleLoader
from peterrec.service.sync.operations import record_operations
from peterrec.service.sync.quotas import QuotaKeeper
from peterrec.service.sync.source import BundleSource
from peterrec.service.system.memory import give_back_memory
from peterrec.service.system.priority import step_back
from peterrec.service.telemetry.events import (
    BundleRefused,
    Emit,
    RegistrySynced,
    RegistryUnreachable,
    TenantMeasured,
    TenantsMeasured,
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

LOSS_TOLD_INTERVAL_S = 60.0
"""Seconds between two log lines that say that the registry is lost."""

COLLECT_INTERVAL_S = 3600.0
"""Seconds between two collections of blobs that no version names."""


MEASURE_INTERVAL_S = 10.0
"""Seconds between two reads of what tenants use, for the metrics."""


class RegistryFollower:
    """Follows one registry for one device.

    ``look_now``, ``validate``, ``count_traffic`` and ``profile`` may be called from any thread.
    What is known of the registry is kept in the ``knowledge`` of ``source``, so that a lost one is
    left alone.
    """

    def __init__(
        self,
        registry: Registry,
        source: BundleSource,
        device: DeviceLoop,
        quotas: QuotaKeeper,
        reconcile_interval_s: float,
        emit: Emit,
    ) -> None:
        self._registry = registry
        self._source = source
        self._device = device
        self._quotas = quotas
        self._interval_s = reconcile_interval_s
        self._emit = emit
        self._loader = BundleLoader(source, self._load, self._flip, self._report_refused)
        self._known: RegistrySnapshot | None = None
        self._recalled: RegistrySnapshot | None = None  # what was known before this start
        self._loss_told_at = float("-inf")
        self._desired: DesiredState | None = None
        self._seen_at = 0.0
        self._look_timeout_s = LOOK_TIMEOUT_S
        self._read_timeout_s = READ_TIMEOUT_S
        self._is_away = False
        self._unsaved: RegistrySnapshot | None = None
        self._last_deletion = 0
        self._is_erasing = False
        self._tables_made = 0  # tables that are being made; with one, what is refused is not told
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

    def profile(self, worker: Worker, request: Profile) -> None:
        """Record what the device computes, and answer the worker."""
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._profile(worker, request)))

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
            self._guards.hear_regularly,
            self._measure_tenants_regularly,
            self._quotas.exchange_regularly,
        ):
            self._spawn(forever(work))
        self._spawn(self._follow())
        await self._stopping.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._save()
        await self._quotas.leave()
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
            if heard < since:  # the registry went back: there is nothing to wait for
                await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        await self._quotas.join()
        self._recalled = await self._recall()
        await forever(self._reconcile_regularly)

    async def _reconcile_regularly(self) -> None:
        while True:
            started = time.monotonic()
            try:
                await self._reconcile()
            except PeterRecError as error:
                self._note_away(error)
                await self._fall_back()
                self._source.give_up()
                self._note_progress()
                await asyncio.sleep(max(0.0, started + RETRY_S - time.monotonic()))
            else:
                if self._is_away:
                    log.info("registry_is_back")
                self._is_away = False
                self._loss_told_at = float("-inf")
                await self._sleep_until_hint()

    def _note_away(self, error: PeterRecError) -> None:
        """Log that the registry is away once, and that it is lost at intervals until it is back."""
        is_lost = isinstance(error, RegistryLost)
        if is_lost:
            self._device.registry_loss = error.message
            self._source.knowledge.loss = error.message
            if time.monotonic() - self._loss_told_at >= LOSS_TOLD_INTERVAL_S:
                self._loss_told_at = time.monotonic()
                log.error(error.code, reason=error.message, hint=error.hint)
        elif not self._is_away:
            log.warning(error.code, reason=error.message)
        self._is_away = True
        self._emit(RegistryUnreachable(time.time(), is_lost))

    async def _sleep_until_hint(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._look.wait(), self._interval_s)
        self._look.clear()

    async def _fall_back(self) -> None:
        """Serve what was served before this start, if the registry can't be read or has lost it."""
        if self._desired is None and self._recalled is not None:
            log.warning("serving_from_cache", revision=self._recalled.revision)
            self._remember_position(self._recalled)
            await self._apply(self._recalled, time.monotonic())

    def _remember_position(self, snapshot: RegistrySnapshot) -> None:
        """Let nobody of this replica change a registry that does not hold this."""
        self._source.knowledge.position = self._device.registry_position = snapshot.position

    async def _reconcile(self) -> None:
        seen_at = time.monotonic()
        snapshot = await self._read()
        if snapshot is not self._known:
            await self._apply(snapshot, seen_at)
            self._known = self._unsaved = snapshot
            self._recalled = None
            if snapshot.last_deletion != self._last_deletion:
                await self._erase(snapshot.last_deletion)
            log.info("registry_applied", revision=snapshot.revision, tasks=len(snapshot.tasks))
        self._device.registry_loss = self._source.knowledge.loss = ""
        self._remember_position(snapshot)
        self._device.registry_synced_at = time.time()
        self._note_progress()
        await self._on_device(self._emit_synced)

    async def _erase(self, revision: int) -> None:
        """Keep nothing here that no task names, since a tenant was deleted at this revision.

        What is kept only to save a later load may be that tenant's: uploads and idle bundles.
        """
        self._last_deletion, self._is_erasing = revision, True
        self._source.forget_uploads()
        await self._on_device(self._device.forget_idle)

    async def _read(self) -> RegistrySnapshot:
        """Read the registry as it is now; raise RegistryUnavailable soon if Redis is silent."""
        await self._look_at_revision()
        try:
            feed = self._registry.feed
            catching_up = (
                feed.catch_up(self._known) if self._known else feed.snapshot(self._recalled)
            )
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
        if self._desired is not None and self._loader.is_idle and not self._tables_made:
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
            if self._is_erasing:
                self._unsaved = self._known
                self._is_erasing = await self._on_device(lambda: self._device.table.is_forgetting)
            await self._save()

    async def _collect_regularly(self) -> None:
        """Drop blobs that no version names from the registry; any replica may do it."""
        while True:
            await asyncio.sleep(COLLECT_INTERVAL_S)
            with contextlib.suppress(PeterRecError):
                await self._source.collect()

    async def _measure_tenants_regularly(self) -> None:
        """Emit what tenants use of their quotas, which other replicas change as well."""
        while True:
            with contextlib.suppress(PeterRecError):
                records = await self._registry.tenants.counted()
                measured = [self._measured(record) for record in records]
                self._emit(TenantsMeasured(measured))
            await asyncio.sleep(MEASURE_INTERVAL_S)

    def _measured(self, record: TenantRecord) -> TenantMeasured:
        used: dict[str, float] = asdict(record.usage)
        use = self._quotas.use_of(record.tenant)
        if use is not None:
            used |= asdict(use)
        shares = self._quotas.shares_of(record.tenant)
        return TenantMeasured(record.tenant, used, record.options.quotas.limits(), shares)

    async def _save(self) -> None:
        """Write the unsaved snapshot, if its bundles were fetched: the copy must not lack them."""
        if self._unsaved is not None and self._loader.is_idle:
            snapshot, self._unsaved = self._unsaved, None
            try:
                await self._source.remember(snapshot, self._in_use)
            except PeterRecError as error:
                log.error(error.code, reason=error.message)
            await asyncio.to_thread(give_back_memory)

    async def _apply(self, snapshot: RegistrySnapshot, seen_at: float) -> None:
        """Serve the snapshot as far as it is loaded; the rest follows bundle by bundle."""
        bound = self._quotas.place(snapshot.tenants)
        self._desired, self._seen_at = _desired_of(snapshot, bound), seen_at
        await self._make_table()
        self._quotas.revision = snapshot.revision
        self._note_progress()

    async def _flip(self) -> None:
        """Change the table to what was loaded since, and open it to workers."""
        await self._make_table()
        self._device.is_open = True
        self._note_progress()

    async def _make_table(self) -> None:
        desired, seen_at = self._desired, self._seen_at
        assert desired is not None, "nothing is loaded before it is desired"
        desired = replace(desired, refused=self._loader.refused, failing=self._loader.failing)
        self._tables_made += 1
        try:
            missing = await self._on_device(lambda: self._device.apply(desired, seen_at))
        finally:
            self._tables_made -= 1
        self._loader.want(missing)

    def _in_use(self) -> frozenset[Digest]:
        """Return the bundles whose files are needed, while the device thread may change them."""
        coming = self._loader.wanted  # first: a bundle that has come by then is resident
        # making the list is one step that no other thread can interrupt
        resident = list(self._device.store.resident.values())
        return coming.union(residency.digest for residency in resident)

    async def _load(self, bundles: Sequence[LocalBundle]) -> Failures:
        loading = self._device.loading
        try:
            await self._compile(bundles)
            prepared = await asyncio.to_thread(_with_weights, bundles)
            failures = await asyncio.wrap_future(
                self._device.submit_steps(lambda: loading.load(prepared))
            )
            await self._prepare_launches()
        except Exception as error:
            # One failure of a device must not end the loading of all bundles for good.
            log.error("load_failed", bundles=len(bundles), exc_info=error)
            return {str(local.bundle.digest): LoadFailed(error) for local in bundles}
        return failures

    async def _compile(self, bundles: Sequence[LocalBundle]) -> None:
        """Compile what the bundles' rows run, in a thread beside the device's."""
        store = self._device.store
        if not store.are_prepared(bundles):
            await asyncio.to_thread(store.prepare_for, bundles)

    async def _prepare_launches(self) -> None:
        """Prepare batches with loaded bundles step by step: the device runs others in between."""
        while self._device.store.has_steps:
            await self._on_device(self._device.store.prepare_next)

    async def _validate(self, worker: Worker, request: Validate) -> None:
        try:
            answer = await self._validated(request)
        except Exception as error:
            # The worker's caller waits: any mistake of ours, and no memory, is an answer too.
            fault = InternalFault()
            log.error("validate_failed", fault=fault.fault_id, exc_info=error)
            answer = _refusal(request, fault)
        await self._on_device(lambda: self._device.send(worker, answer))

    async def _profile(self, worker: Worker, request: Profile) -> None:
        problem = ""
        try:
            await record_operations(self._device, Path(request.path), request.seconds)
        except Exception as error:
            # The worker's caller waits, and whatever torch says is an answer.
            log.error("profile_failed", exc_info=error)
            problem = str(error) or repr(error)
        answer = Profiled(request.request_id, problem)
        await self._on_device(lambda: self._device.send(worker, answer))

    async def _validated(self, request: Validate) -> Validated:
        """Verify a spooled file, load it and run its probes; store it if it is good."""
        try:
            local = await self._source.accept(Path(request.path))
            await self._compile([local])
            (local,) = await asyncio.to_thread(_with_weights, [local])
            validating = self._device.submit_steps(lambda: self._device.loading.validate(local))
            await asyncio.wrap_future(validating)
            await self._prepare_launches()
        except PeterRecError as error:
            self._report_refused(request.path, error)
            return _refusal(request, error)
        return await self._stored(request, local.bundle)

    async def _stored(self, request: Validate, bundle: VerifiedBundle) -> Validated:
        """Store a validated bundle if the worker asked for it; build the answer to the worker."""
        try:
            if request.store:
                await self._source.store(bundle.blob)
        except PeterRecError as error:
            return _refusal(request, error)
        summary = msgspec.json.encode(await asyncio.to_thread(VersionSummary.of, bundle))
        return Validated(
            request.request_id,
            bundle.digest,
            bundle.size_bytes,
            summary,
            [],
            probes=self._probes_of(bundle),
        )

    def _probes_of(self, bundle: VerifiedBundle) -> Probed | None:
        """Return what a bundle's probes gave when it was loaded; None if it was freed meanwhile."""
        store = self._device.store
        residency = store.by_digest.get(bundle.digest)
        if residency is None:
            return None
        count = bundle.manifest.probes.count
        return Probed(count, residency.probe_error, store.probe_tolerance)

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


def _with_weights(bundles: Sequence[LocalBundle]) -> list[LocalBundle]:
    """Copy the bundles' weights in this thread, which spares the device's that time."""
    prepared: list[LocalBundle] = []
    for local in bundles:
        try:
            prepared.append(replace(local, weights=weights_of(local.bundle)))
        except Exception as error:
            # The device thread tries again, and answers for this bundle alone if it fails.
            log.error("weights_failed", reason=repr(error))
            prepared.append(local)
    return prepared


def _desired_of(snapshot: RegistrySnapshot, bound: Mapping[str, ServedTenant]) -> DesiredState:
    keys = [entry for record in snapshot.keys.values() for entry in _key_entries(record)]
    tenants = {key.tenant for key in keys}
    tenants.update(each.tenant for each in snapshot.tenants.values() if not each.is_deleted)
    served = [bound.get(tenant) or ServedTenant(tenant) for tenant in sorted(tenants)]
    weights = {each.tenant: each.weight for each in snapshot.tenants.values() if each.weight != 1}
    return DesiredState(
        snapshot.revision,
        snapshot.tasks,
        keys,
        snapshot.touched,
        tenants=served,
        weights={str(tenant): weight for tenant, weight in weights.items()},
    )


def _key_entries(record: KeyRecord) -> list[KeyEntry]:
    """Return an entry for each secret of a key."""
    scopes = [str(scope) for scope in record.scopes]
    return [
        KeyEntry(
            record.key_id,
            secret.secret_digest,
            record.tenant,
            scopes,
            secret.number,
            secret.expires_at.timestamp() if secret.expires_at else 0.0,
        )
        for secret in record.secrets()
    ]


def _refusal(request: Validate, error: PeterRecError) -> Validated:
    return Validated(request.request_id, "", 0, b"{}", _reasons(error), error.category)


def _reasons(error: PeterRecError) -> list[ProofReason]:
    if isinstance(error, BundleRejected):
        return [ProofReason(r.code, r.message, r.hint) for r in error.reasons]
    return [ProofReason(error.code, error.message, error.hint)]
