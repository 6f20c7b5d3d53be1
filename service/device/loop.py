"""The device thread: the only one that runs forwards and writes slots.

A turn reads the workers' messages, runs the follower's jobs and runs one batch. The device never
idles while rows wait, and the table changes only between batches.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from socket import socketpair
from typing import Protocol, TypeVar

import msgspec
import numpy as np
import structlog
import zmq

from peterrec.model.inference.heads import RowScores
from peterrec.patches.identity import TaskRef
from peterrec.service.device.head_cache import HeadMoves
from peterrec.service.device.head_reload import HeadReloader
from peterrec.service.device.load import Loading
from peterrec.service.device.queue import QueuedRow, RowQueue, Worker
from peterrec.service.device.serving_table import IDLE_RESIDENCIES, DesiredState, ServingTable
from peterrec.service.device.slots import SlotStore
from peterrec.service.errors import (
    BundleGone,
    DeadlineExceeded,
    QueueFull,
    ResultNotFinite,
    RowError,
    RowFailed,
)
from peterrec.service.protocol.messages import (
    BatchResults,
    Cancel,
    FromDevice,
    Goodbye,
    Hello,
    Predict,
    RowResult,
    Status,
    Sync,
    Synced,
    TableAck,
    ToDevice,
    TrafficSeen,
    Validate,
    Welcome,
    encode,
    to_device,
)
from peterrec.service.telemetry.events import (
    BatchFinished,
    BundleSwapped,
    DeviceMeasured,
    Emit,
    HeadsMoved,
    RowsRefused,
    TasksChanged,
)

log = structlog.get_logger()

Result = TypeVar("Result")

STATUS_INTERVAL_S = 1.0
"""Seconds between two ``Status`` messages; workers take three seconds of silence for a death."""

MESSAGES_PER_TURN = 1024
"""zmq messages that are read before the next batch runs."""

IDLE_POLL_MS, PENDING_POLL_MS = 100, 20
"""Milliseconds that a poll waits: without any rows; and with pending rows, for their deadlines."""

TOKEN_BYTES = 4


class Follower(Protocol):
    """What the device thread needs of the registry follower."""

    def look_now(self) -> None:
        """Read the registry's revision now instead of at the next tick."""

    def validate(self, worker: Worker, request: Validate) -> None:
        """Verify a spooled bundle, have it loaded, and send ``Validated`` to the worker."""

    def count_traffic(self, seen: TrafficSeen) -> None:
        """Count what a worker saw of a task's traffic."""


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """Bounds of the queue and of one batch, in rows."""

    max_queue_rows: int
    max_batch_rows: int


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
        socket: "zmq.Socket[bytes]",
        store: SlotStore,
        limits: DeviceLimits,
        emit: Emit,
    ) -> None:
        self._socket = socket
        self._wake, self._waker = socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._emit = emit
        self._limits = limits
        self.store = store
        self.table = ServingTable(time.time_ns(), store.by_digest)
        self.queue = RowQueue(limits.max_queue_rows)
        self.loading = Loading(store, self.table, lambda: self._free_idle(keep=0))
        self._reloader = HeadReloader(store, self.queue, self.submit, self._refuse)
        self.is_open = False  # workers get the table, which may still lack bundles
        self.is_ready = False
        self.registry_synced_at = 0.0
        self._syncs: list[PendingSync] = []
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._next_status_at = 0.0
        self._handlers: dict[type, Callable[[Worker, ToDevice], None]] = {
            Predict: self._on_predict,
            Cancel: self._on_cancel,
            Hello: self._on_hello,
            TableAck: self._on_ack,
            Validate: self._on_validate,
            Sync: self._on_sync,
            Goodbye: self._on_goodbye,
            TrafficSeen: self._on_traffic_seen,
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
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b"\0")
        return future

    def run(self, follower: Follower, is_stopping: Callable[[], bool]) -> None:
        """Serve until ``is_stopping``, and then until no row waits."""
        self._follower = follower
        poller, wake = zmq.Poller(), self._wake.fileno()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(wake, zmq.POLLIN)
        while not (is_stopping() and not len(self.queue)):
            ready = dict(poller.poll(self._poll_ms()))
            if self._socket in ready:
                self._read_messages()
            if wake in ready:
                self._do_jobs()
            self._run_batch()
            self._tick()

    def close(self) -> None:
        """Close the sockets that wake the thread; ``submit`` must not be called any more."""
        self._reloader.close()
        self._wake.close()
        self._waker.close()

    def apply(self, desired: DesiredState, seen_at: float) -> list[str]:
        """Reconcile the table with the desired state; return the digests still to be loaded.

        ``seen_at`` is when the change was noticed, in monotonic seconds.
        """
        self.loading.hand_over()
        update = self.table.reconcile(desired)
        is_first = update.version == 1
        if is_first or update.tasks or update.removed_tasks:
            tasks = [entry.ref for entry in update.tasks]
            self._emit(TasksChanged(is_first, tasks, update.removed_tasks))
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

    def send(self, worker: Worker, message: FromDevice) -> None:
        """Send to one worker; does nothing if the worker is gone."""
        self._socket.send_multipart([worker, encode(message)])

    def _poll_ms(self) -> int:
        """Return how long to wait for messages. Pending rows only need their deadlines checked."""
        if self.queue.is_runnable:
            return 0
        return PENDING_POLL_MS if len(self.queue) else IDLE_POLL_MS

    def _read_messages(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            try:
                worker, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            for frame in frames:
                self._read_message(worker, frame)

    def _read_message(self, worker: Worker, frame: bytes) -> None:
        try:
            message = to_device.decode(frame)
        except msgspec.MsgspecError as error:
            log.error("message_refused", reason=str(error))
        else:
            self._handlers[type(message)](worker, message)

    def _do_jobs(self) -> None:
        self._wake.recv(4096)
        while not self._jobs.empty():
            self._jobs.get()()

    def _on_hello(self, worker: Worker, message: ToDevice) -> None:
        assert isinstance(message, Hello)
        if not self.is_open:
            return  # the worker asks again; an empty table would fail the rows that it still has
        is_known = worker in self.table.workers and message.epoch == self.table.epoch
        self.table.hear(worker, time.monotonic())
        if not is_known:  # or it was silent for so long that it missed changes
            self.send(worker, Welcome(self.table.epoch, self.is_ready, self.table.full()))

    def _on_goodbye(self, worker: Worker, message: ToDevice) -> None:
        self.table.workers.pop(worker, None)
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
            rows = [
                QueuedRow(worker, request.request_id, number, row, request.deadline, now)
                for number, row in enumerate(request.whole_rows())
            ]
            if not self.queue.push(rows):
                self._refuse(rows, QueueFull, f"{self._limits.max_queue_rows} rows wait already")

    def _run_batch(self) -> None:
        evicted = self.store.head_cache.evicted
        taken = self.queue.take(self._limits.max_batch_rows, time.monotonic(), evicted)
        self._refuse(taken.expired, DeadlineExceeded, "the deadline passed in the queue")
        gone = [row for row in taken.rows if row.row.handle not in self.store.resident]
        self._refuse(gone, BundleGone, "the bundle has left the device")
        rows = [row for row in taken.rows if row not in gone] if gone else taken.rows
        if rows:
            self._run_rows(rows)
        self._reloader.begin_next()

    def _run_rows(self, rows: Sequence[QueuedRow]) -> None:
        started = time.monotonic()
        scores = self._score(rows)
        duration = time.monotonic() - started
        self._answer(rows, row_results(rows, scores))
        self._emit(
            BatchFinished(
                rows=len(rows),
                distinct_bundles=len({row.row.handle for row in rows}),
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
            log.error("batch_failed", rows=len(rows), reason=repr(error))
            if len(rows) == 1:
                return [repr(error)]
        return [self._score([row])[0] for row in rows]

    def _answer(self, rows: Sequence[QueuedRow], results: Sequence[RowResult]) -> None:
        """Send each worker one message with the results of its rows."""
        by_worker: defaultdict[Worker, list[RowResult]] = defaultdict(list)
        for queued, result in zip(rows, results, strict=True):
            by_worker[queued.worker].append(result)
        for worker, answers in by_worker.items():
            self.send(worker, BatchResults(self.table.epoch, answers))

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
            self._socket.send_multipart([worker, frame])

    def _free_idle(self, keep: int) -> int:
        freed = self.table.take_idle(self.queue.is_waiting_for, keep)
        for residency in freed:
            self.store.free(residency)
        return len(freed)

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next_status_at:
            return
        self._next_status_at = now + STATUS_INTERVAL_S
        self.table.forget_silent(now)
        self._answer_syncs()
        self._free_idle(IDLE_RESIDENCIES)
        waiting = len(self.queue)
        self._broadcast(
            Status(
                epoch=self.table.epoch,
                is_ready=self.is_ready,
                registry_revision=self.table.revision,
                registry_synced_at=self.registry_synced_at,
                queued_rows=waiting,
            )
        )
        self._emit(
            DeviceMeasured(
                queued_rows=waiting,
                resident_bundles=len(self.store.resident),
                patch_bytes=self.store.patch_bytes,
                head_bytes=self.store.head_bytes,
                backbone_bytes=self.store.backbone_bytes,
            )
        )
        moves = self.store.head_cache.take_moves()
        if moves != HeadMoves():
            self._emit(HeadsMoved(**asdict(moves)))


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
