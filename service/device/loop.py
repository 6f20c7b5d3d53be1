"""The device thread: the only one that runs forwards and writes slots.

A turn reads the workers' messages, runs the follower's jobs and runs one batch. The device never
idles while rows wait, and the table changes only between batches.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Protocol, TypeVar

import msgspec
import numpy as np
import structlog

from peterrec.model.inference.heads import RowScores
from peterrec.model.inference.steps import Steps
from peterrec.patches.identity import TaskRef
from peterrec.patches.registry.records import Position
from peterrec.service.device.batch_size import BatchSizer
from peterrec.service.device.head_cache import HeadMoves
from peterrec.service.device.head_reload import HeadReloader
from peterrec.service.device.holdups import HoldUps
from peterrec.service.device.load import Loading
from peterrec.service.device.queue import QueuedRow, RowQueue, Taken, Worker
from peterrec.service.device.readiness import NO_BUNDLE_FITS, EnoughLoaded
from peterrec.service.device.serving_table import IDLE_RESIDENCIES, DesiredState, ServingTable
from peterrec.service.device.slots import Preparation
from peterrec.service.device.stores import Store
from peterrec.service.errors import (
    BundleGone,
    DeadlineExceeded,
    InternalFault,
    QueueFull,
    ResultNotFinite,
    RowError,
    RowFailed,
)
from peterrec.service.protocol.listener import Arrival, Listener
from peterrec.service.protocol.messages import (
    BatchResults,
    BatchTimes,
    Cancel,
    FromDevice,
    Hello,
    Predict,
    Profile,
    ProofReason,
    RequestRows,
    RowResult,
    Status,
    Sync,
    Synced,
    TableAck,
    ToDevice,
    TrafficSeen,
    Validate,
    Validated,
    Welcome,
    encode,
    to_device,
)
from peterrec.service.telemetry.events import (
    BatchFinished,
    BundleSwapped,
    DeviceMeasured,
    DevicePrepared,
    DeviceShared,
    Emit,
    HeadsMoved,
    RowsRefused,
    TasksChanged,
    TenantServed,
)

log = structlog.get_logger()

Result = TypeVar("Result")

STATUS_INTERVAL_S = 1.0
"""Seconds between two ``Status`` messages. Workers take three seconds for a death in which neither
a message comes nor the process shows by its pulse that it lives."""

LINGER_S = 1.0
"""Seconds that closing waits for workers to take the last answers."""

STEPS_S = 0.003
"""Seconds of steps between two batches; the last step may take a few milliseconds more."""

IDLE_POLL_S, PENDING_POLL_S = 0.1, 0.02
"""Seconds that a poll waits: without any rows; and with pending rows, for their deadlines."""

TOKEN_BYTES = 4


class Follower(Protocol):
    """What the device thread needs of the registry follower."""

    def look_now(self) -> None:
        """Read the registry's revision now instead of at the next tick."""

    def validate(self, worker: Worker, request: Validate) -> None:
        """Verify a spooled bundle, have it loaded, and send ``Validated`` to the worker."""

    def count_traffic(self, seen: TrafficSeen) -> None:
        """Count what a worker saw of a task's traffic."""

    def profile(self, worker: Worker, request: Profile) -> None:
        """Record what the device computes, and send ``Profiled`` to the worker."""


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """Bounds of the queue and of one batch, in rows; ``threads`` are those of a forward.

    ``ready_share`` is the share of the tasks that must be answered before the server is ready.
    ``backbones`` are the fingerprints by which the metrics tell them apart.
    """

    max_queue_rows: int
    max_batch_rows: int
    threads: int = 1
    ready_share: float = 0.0
    backbones: tuple[str, ...] = ()


@dataclass(slots=True)
class PendingSync:
    """A worker that waits until all workers serve a revision.

    ``version`` is the table's version with that revision, or None before it is applied.
    """

    worker: Worker
    request: Sync
    version: int | None = None


class DeviceLoop:
    """Everything the device thread owns. ``submit`` is the only method for other threads."""

    def __init__(
        self,
        listener: Listener,
        store: Store,
        limits: DeviceLimits,
        emit: Emit,
    ) -> None:
        self._listener = listener
        self._gone: deque[Worker] = deque()  # a message may be on its way to all when one hangs up
        listener.on_gone = self._gone.append
        self._emit = emit
        self._limits = limits
        self.store = store
        self.table = ServingTable(time.time_ns(), store.by_digest)
        self.queue = RowQueue(limits.max_queue_rows)
        self._sizer = BatchSizer(limits.max_batch_rows, limits.threads)
        self.loading = Loading(store, self.table, lambda: self._free_idle(keep=0))
        self._reloader = HeadReloader(store, self.queue, self.submit, self._refuse)
        self.is_open = False  # workers get the table, which may still lack bundles
        self.is_ready = False
        self._enough = EnoughLoaded(limits.ready_share)
        self.registry_synced_at = 0.0
        self.registry_position = Position(0, "")
        self.registry_loss = ""  # what the registry has lost; empty if it is as it should be
        self._syncs: list[PendingSync] = []
        self._given: dict[str, float] = {}
        self._work: deque[Steps[None]] = deque()
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._holdups = HoldUps()
        self.batches = 0  # of this epoch
        self._next_status_at = 0.0
        self._awake_until = 0.0
        self._handlers: dict[type, Callable[[Worker, ToDevice], None]] = {
            Predict: self._on_predict,
            Cancel: self._on_cancel,
            Hello: self._on_hello,
            TableAck: self._on_ack,
            Validate: self._on_validate,
            Sync: self._on_sync,
            TrafficSeen: self._on_traffic_seen,
            Profile: self._on_profile,
        }

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Run ``job`` on the device thread between batches. May be called from any thread."""
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)

        self._jobs.put(run)
        self._listener.wake()
        return future

    def submit_steps(self, work: Callable[[], Steps[Result]]) -> Future[Result]:
        """Run work on the device thread in steps, of which few are taken between two batches.

        One after the other: ``work`` is called when all earlier ones have ended. May be called from
        any thread.
        """
        future: Future[Result] = Future()
        self.submit(lambda: self._work.append(_into(work, future)))
        return future

    def run(
        self,
        follower: Follower,
        is_stopping: Callable[[], bool],
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until ``is_stopping``, and then until no row waits; turns call ``progress``."""
        self._follower = follower
        while not (is_stopping() and not len(self.queue)):
            progress()
            for worker, frames in self._news():
                for frame in frames:
                    self._read_message(worker, frame)
            while self._gone:
                self._forget(self._gone.popleft())
            self._do_jobs()
            self._run_batch()
            self._take_steps()
            if not self.queue.is_runnable:
                with self._holdups.timing("kernels"):
                    self.store.prepare_next()
            self._tick()

    def close(self) -> None:
        """Send the last answers and hang up; ``submit`` must not be called any more."""
        self._reloader.close()
        self._listener.close(LINGER_S)

    def apply(self, desired: DesiredState, seen_at: float) -> list[str]:
        """Reconcile the table with the desired state; return the digests still to be loaded.

        ``seen_at`` is when the change was noticed, in monotonic seconds.
        """
        self.loading.hand_over()
        update = self.table.reconcile(desired)
        if update.weights is not None:
            self.queue.set_weights(update.weights)
        is_first = update.version == 1
        if is_first or update.tasks or update.removed_tasks:
            tasks = [entry.ref for entry in update.tasks]
            answering = [self.table.answering(entry) for entry in update.tasks]
            self._emit(TasksChanged(is_first, tasks, update.removed_tasks, answering))
        self._broadcast(update)
        freed = self._free_idle(IDLE_RESIDENCIES)
        if update.bundles or update.removed_bundles:
            self._emit(BundleSwapped(time.monotonic() - seen_at, len(update.bundles), freed))
        self._answer_syncs()
        return self.table.missing()

    def withdraw(self, key: TaskRef, traffic_revision: int) -> None:
        """Let prod answer alone, if this is still the task's traffic."""
        self.loading.hand_over()
        update = self.table.withdraw(key, traffic_revision)
        if update is not None:
            self._broadcast(update)

    def forget_idle(self) -> None:
        """Free every bundle that no task names, as soon as no row can need it."""
        self.table.forget_idle()
        self._free_idle(IDLE_RESIDENCIES)

    def send(self, worker: Worker, message: FromDevice) -> None:
        """Send to one worker; does nothing if the worker is gone."""
        self._listener.send(worker, encode(message))

    def _news(self) -> list[Arrival]:
        """Read the workers' messages; wait for them as long as nothing else is to be done.

        Beside a GPU, the thread keeps looking for a moment after a batch: a core that slept takes
        longer for the next batch's Python than the GPU takes for its arithmetic.
        """
        while time.monotonic() < self._awake_until and self._poll_s():
            if news := self._listener.poll(0):
                return news
        return self._listener.poll(self._poll_s())

    def _poll_s(self) -> float:
        """Return how long to wait for messages. Pending rows only need their deadlines checked."""
        if self.queue.is_runnable or self._work or not self._jobs.empty():
            return 0
        return PENDING_POLL_S if len(self.queue) else IDLE_POLL_S

    def _read_message(self, worker: Worker, frame: bytes) -> None:
        try:
            message = to_device.decode(frame)
        except msgspec.MsgspecError as error:
            log.error("message_refused", reason=str(error))
            return
        try:
            self._handlers[type(message)](worker, message)
        except Exception as error:
            # Whoever waits for an answer gets one at once, and the device loop must not stop.
            self._fail(worker, message, InternalFault(), error)

    def _fail(
        self, worker: Worker, message: ToDevice, fault: InternalFault, error: Exception
    ) -> None:
        """Answer a message that could not be handled; rows with answers keep them."""
        kind = type(message).__name__
        log.error("message_failed", fault=fault.fault_id, kind=kind, exc_info=error)
        if isinstance(message, Predict):
            for request in message.requests:
                results = [
                    RowResult(request.request_id, number, b"", b"", RowFailed.code, fault.message)
                    for number in range(len(request.rows))
                ]
                self.send(worker, BatchResults(self.table.epoch, results))
        elif isinstance(message, Validate):
            reason = ProofReason(fault.code, fault.message, fault.hint)
            self.send(worker, Validated(message.request_id, "", 0, b"{}", [reason], fault.category))

    def _do_jobs(self) -> None:
        if self._jobs.empty():
            return
        with self._holdups.timing("swap"):
            while not self._jobs.empty():
                self._jobs.get()()

    def _take_steps(self) -> None:
        """Take steps of the oldest work for a few milliseconds: rows that come meanwhile wait."""
        if not self._work:
            return
        with self._holdups.timing("swap"):
            until = time.monotonic() + STEPS_S
            while self._work and time.monotonic() < until:
                try:
                    next(self._work[0])
                except StopIteration:
                    self._work.popleft()

    def _on_hello(self, worker: Worker, message: ToDevice) -> None:
        assert isinstance(message, Hello)
        if not self.is_open:
            return  # the worker asks again; an empty table would fail the rows that it still has
        is_known = worker in self.table.workers and message.epoch == self.table.epoch
        self.table.hear(worker, time.monotonic())
        if not is_known:  # or it was silent for so long that it missed changes
            table, unready = self.table, self._unready()
            welcome = Welcome(table.epoch, self.is_ready, table.full(), unready, table.prod)
            self.send(worker, welcome)

    def _unready(self) -> str:
        """Return a reason for which the server is not ready although it has loaded what it can."""
        return self._enough.reason(self.table.prod, is_loaded=self.is_ready)

    def _forget(self, worker: Worker) -> None:
        """Drop what a worker that has hung up still waits for."""
        self.table.workers.pop(worker, None)
        dropped = self.queue.cancel_all(worker)
        if dropped:
            self._emit(RowsRefused("client_left", dropped))
        self._syncs = [sync for sync in self._syncs if sync.worker != worker]
        self._answer_syncs()

    def _on_ack(self, worker: Worker, message: ToDevice) -> None:
        assert isinstance(message, TableAck)
        if message.epoch == self.table.epoch and worker in self.table.workers:
            self.table.hear(worker, time.monotonic()).acked_version = message.version
            self._answer_syncs()

    def _on_validate(self, worker: Worker, message: ToDevice) -> None:
        assert isinstance(message, Validate)
        self._follower.validate(worker, message)

    def _on_traffic_seen(self, worker: Worker, message: ToDevice) -> None:
        assert isinstance(message, TrafficSeen)
        self._follower.count_traffic(message)

    def _on_profile(self, worker: Worker, message: ToDevice) -> None:
        assert isinstance(message, Profile)
        self._follower.profile(worker, message)

    def _on_sync(self, worker: Worker, message: ToDevice) -> None:
        assert isinstance(message, Sync)
        self._syncs.append(PendingSync(worker, message))
        self._answer_syncs()
        if message.revision > self.table.revision:
            self._follower.look_now()

    def _on_cancel(self, worker: Worker, message: ToDevice) -> None:
        assert isinstance(message, Cancel)
        dropped = self.queue.cancel(worker, message.request_id)
        if dropped:
            self._emit(RowsRefused("client_left", dropped))

    def _on_predict(self, worker: Worker, message: ToDevice) -> None:
        assert isinstance(message, Predict)
        if message.epoch != self.table.epoch:
            return
        now = time.monotonic()
        for request in message.requests:
            rows = self._priced(worker, request, now)
            if not self.queue.push(rows, request.sender):
                self._refuse(rows, QueueFull, f"{self.queue.places.total} rows wait already")

    def _priced(self, worker: Worker, request: RequestRows, now: float) -> list[QueuedRow]:
        """Make the rows of a request, each with what it will take of a batch."""
        resident, request_id = self.store.resident, request.request_id
        rows: list[QueuedRow] = []
        for number, row in enumerate(request.whole_rows()):
            residency = resident.get(row.handle)
            if residency is not None:
                price = residency.price
            else:
                price = self.store.price_of_plain(row.handle)
            work, size = price.work(row), price.bytes_of(row)
            due, sent_at = request.deadline, request.sent_at
            rows.append(QueuedRow(worker, request_id, number, row, due, now, work, size, sent_at))
        return rows

    def _run_batch(self) -> None:
        now = time.monotonic()
        bounds = self._sizer.bounds(is_shared=self.queue.is_shared(now))
        taken = self.queue.take(bounds, now, self.store.head_cache.evicted)
        self._refuse(taken.expired, DeadlineExceeded, "the deadline passed in the queue")
        gone = [row for row in taken.rows if not self.store.holds(row.row.handle)]
        self._refuse(gone, BundleGone, "the bundle has left the device")
        rows = [row for row in taken.rows if row not in gone] if gone else taken.rows
        try:
            if rows:
                self._run_rows(rows, taken)
        except Exception as error:
            # The batch ran, and there was no memory for its results, say. As above.
            fault = InternalFault()
            log.error("batch_failed", fault=fault.fault_id, rows=len(rows), exc_info=error)
            self._refuse(rows, RowFailed, fault.message)
        self._reloader.begin_next()

    def _run_rows(self, rows: Sequence[QueuedRow], taken: Taken) -> None:
        started = time.monotonic()
        with self._sizer.timing(taken.work):
            scores = self._score(rows)
        duration = time.monotonic() - started
        self._awake_until = time.monotonic() + self.store.awake_s
        distinct = len({row.row.handle for row in rows})
        times = self._times(rows, started, duration, distinct)
        self._answer(rows, row_results(rows, scores), times)
        self._emit(
            BatchFinished(
                rows=len(rows),
                distinct_bundles=distinct,
                positions=len(rows) + sum([len(row.row.tokens) for row in rows]) // TOKEN_BYTES,
                duration_s=duration,
                queue_waits_s=[started - row.enqueued_at for row in rows],
            )
        )

    def _score(self, rows: Sequence[QueuedRow]) -> list[RowScores | str]:
        """Return the scores of each row, or why it failed. A batch that fails is run row by row."""
        try:
            return list(self.store.score([queued.row for queued in rows]))
        except Exception as error:
            # One bad row must not fail the others, and the device loop must not stop.
            fault = InternalFault()
            log.error("batch_failed", fault=fault.fault_id, rows=len(rows), exc_info=error)
            if len(rows) == 1:
                return [fault.message]
        return [self._score([row])[0] for row in rows]

    def _times(
        self, rows: Sequence[QueuedRow], started: float, duration: float, distinct: int
    ) -> BatchTimes | None:
        """Describe a batch for those who ask where their time went; None if nobody does.

        A message waits to be read while the device thread does something else, so what held rows
        up counts from when they were sent.
        """
        self.batches += 1
        asked = [row.sent_at for row in rows if row.sent_at]
        if not asked:
            return None
        held_s = self._holdups.between(min(asked), started)
        return BatchTimes(self.batches, started, duration, len(rows), distinct, held_s)

    def _answer(
        self,
        rows: Sequence[QueuedRow],
        results: Sequence[RowResult],
        times: BatchTimes | None = None,
    ) -> None:
        """Send each worker one message with the results of its rows."""
        by_worker: defaultdict[Worker, list[RowResult]] = defaultdict(list)
        for queued, result in zip(rows, results, strict=True):
            by_worker[queued.worker].append(result)
        epoch, places = self.table.epoch, self.queue.places.total
        late = {} if times is None else self._reloader.waits(rows)
        for worker, answers in by_worker.items():
            of_worker = times
            if late and times is not None:
                own = [late.get(at, 0.0) for at, row in enumerate(rows) if row.worker == worker]
                of_worker = msgspec.structs.replace(times, head_waits=dict(enumerate(own)))
            self.send(worker, BatchResults(epoch, answers, places, of_worker))

    def _refuse(self, rows: Sequence[QueuedRow], error: type[RowError], detail: str) -> None:
        if not rows:
            return
        self._answer(rows, [_refusal(row, error, detail) for row in rows])
        self._emit(RowsRefused(error.code, len(rows)))

    def _answer_syncs(self) -> None:
        waiting: list[PendingSync] = []
        for sync in self._syncs:
            if sync.version is None and self.table.revision >= sync.request.revision:
                sync.version = self.table.version
            if sync.version is not None and self.table.is_acknowledged(sync.version):
                self.send(sync.worker, Synced(sync.request.request_id, self.table.revision))
            else:
                waiting.append(sync)
        self._syncs = waiting

    def _broadcast(self, message: FromDevice) -> None:
        frame = encode(message)
        for worker in self.table.workers:
            self._listener.send(worker, frame)

    def _free_idle(self, keep: int) -> int:
        freed = self.table.take_idle(self.queue.waited_for, keep)
        for residency in freed:
            self.store.free(residency)
        return len(freed)

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next_status_at:
            return
        self._next_status_at = now + STATUS_INTERVAL_S
        self.table.forget_silent(now)
        self._reloader.forget(now)
        self._answer_syncs()
        self._free_idle(IDLE_RESIDENCIES)
        waiting, unready = len(self.queue), self._unready()
        self._broadcast(
            Status(
                epoch=self.table.epoch,
                is_ready=self.is_ready,
                registry_revision=self.table.revision,
                registry_synced_at=self.registry_synced_at,
                queued_rows=waiting,
                position=self.registry_position,
                loss=self.registry_loss,
                unready=unready,
                prod=self.table.prod,
                memory=(memory := self.store.memory()),
            )
        )
        self._emit(
            DeviceMeasured(
                queued_rows=waiting,
                resident_bundles=len(self.store.resident),
                patch_bytes=self.store.patch_bytes,
                head_bytes=self.store.head_bytes,
                backbone_bytes=sum(each.backbone_bytes for each in memory),
                unservable_bundles=self.table.unservable,
                prod_answering=self.table.prod.answering,
                prod_unfit=self.table.prod.unfit,
                prod_registered=self.table.prod.registered,
                no_bundle_fits=unready == NO_BUNDLE_FITS,
                backbones={
                    name: [each.backbone_bytes, each.patch_bytes, each.head_bytes]
                    for name, each in zip(self._limits.backbones, memory, strict=False)
                },
            )
        )
        self._emit(DeviceShared(self._shared()))
        if (prepared := self.store.take_preparation()) != Preparation():
            self._emit(DevicePrepared(**asdict(prepared), memory_bytes=self.store.memory_bytes))
        moves = self.store.head_cache.take_moves()
        if moves != HeadMoves():
            self._emit(HeadsMoved(**asdict(moves)))

    def _shared(self) -> list[TenantServed]:
        """Return what each tenant was given since the last call, and how much of it waits."""
        before, self._given = self._given, self.queue.given_work()
        waiting = self.queue.places.by_tenant()
        found = (
            TenantServed(tenant, max(0.0, given - before.get(tenant, 0.0)), waiting.get(tenant, 0))
            for tenant, given in self._given.items()
        )
        return [each for each in found if each.work or each.waiting]


def _into(work: Callable[[], Steps[Result]], future: Future[Result]) -> Steps[None]:
    """Take the steps of some work, and put its result or its exception into a future."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result((yield from work()))
    except Exception as error:
        future.set_exception(error)


def _refusal(queued: QueuedRow, error: type[RowError], detail: str) -> RowResult:
    return RowResult(queued.request_id, queued.number, b"", error=error.code, detail=detail)


def row_results(rows: Sequence[QueuedRow], scores: Sequence[RowScores | str]) -> list[RowResult]:
    """Encode the results of a batch.

    All scores are checked for finiteness together first, since they nearly always are finite.
    """
    values = [each.values for each in scores if not isinstance(each, str)]
    are_finite = not values or bool(np.isfinite(np.concatenate(values)).all())
    return [
        _row_result(row, each, is_finite=are_finite) for row, each in zip(rows, scores, strict=True)
    ]


def _row_result(queued: QueuedRow, result: RowScores | str, *, is_finite: bool) -> RowResult:
    if isinstance(result, str):
        return _refusal(queued, RowFailed, result)
    if not (is_finite or np.isfinite(result.values).all()):
        return _refusal(queued, ResultNotFinite, ResultNotFinite.reason)
    return RowResult(
        queued.request_id, queued.number, result.values.tobytes(), result.indices.tobytes()
    )
