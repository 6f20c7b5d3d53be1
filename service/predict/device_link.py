"""A worker's connection to the device process: sends rows, receives results, on the event loop."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec
import zmq

from peterrec.service.errors import (
    BundleGone,
    DeadlineExceeded,
    DeviceUnavailable,
    QueueFull,
    TooManyRows,
)
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.messages import (
    BatchResults,
    Cancel,
    FromDevice,
    Goodbye,
    Hello,
    Predict,
    RequestRows,
    Row,
    RowResult,
    Status,
    Sync,
    Synced,
    TableAck,
    TableUpdate,
    ToDevice,
    TrafficSeen,
    Validate,
    Validated,
    Welcome,
    encode,
    from_device,
    places_of,
)

HELLO_INTERVAL_S = 1.0
"""Seconds between two ``Hello`` while the device process answers."""

SEEKING_INTERVAL_S = 0.1
"""Seconds between two ``Hello`` while the device process is away."""

SILENCE_LIMIT_S = 3.0
"""Seconds without a message until the device process counts as gone; it sends one a second."""

TIMER_GRAIN_S = 0.001
"""Seconds by which the event loop's timers may fire early."""

LINGER_MS = 200
"""Milliseconds that closing waits for messages that are still to be sent."""

POLLIN = int(zmq.POLLIN)
"""A plain int: comparing with zmq's enum takes longer than reading the socket's state."""


class BoundRow(msgspec.Struct, frozen=True, gc=False):
    """A row and the digest of the bundle that it is bound to.

    The handle in the row names that bundle within one epoch only; the digest names it for ever.
    """

    row: Row
    digest: str


class _Pending:
    """A request that waits for results. Its caller waits for the first ``awaited`` rows only; the
    further ones are shadows.

    ``sent`` are the indices of the rows that the last message carried, in order.
    """

    __slots__ = ("awaited", "deadline", "future", "missing", "results", "rows", "sent")

    def __init__(
        self,
        rows: Sequence[BoundRow],
        awaited: int,
        deadline: float,
        future: "asyncio.Future[str]",
    ) -> None:
        self.rows = rows
        self.awaited = self.missing = awaited
        self.deadline = deadline
        self.future = future
        self.results: list[RowResult | None] = [None] * len(rows)
        self.sent: Sequence[int] = range(len(rows))

    def take(self, result: RowResult, at: int) -> None:
        if self.results[at] is None:
            self.results[at] = result
            if at < self.awaited:
                self.missing -= 1
                if not self.missing:
                    self.finish("")

    def finish(self, error: str) -> None:
        """Wake the caller; rows that are still missing get ``error``."""
        if not self.future.done():
            self.future.set_result(error)

    def answer(self, error: str) -> list[RowResult]:
        rows = self.results[: self.awaited]
        return [r or RowResult(0, at, b"", error=error) for at, r in enumerate(rows)]


class Results(NamedTuple):
    """One result per row. A shadow without a result when the last row had its own has None."""

    rows: list[RowResult]
    shadows: list[RowResult | None]


class RowLink(Protocol):
    """Where a predictor sends its rows: the device process, or the device of this process."""

    async def predict(
        self, rows: Sequence[BoundRow], deadline: float, shadows: Sequence[BoundRow] = ()
    ) -> Results:
        """Results of rows, in their order; everything is sent before the first await."""

    def rebind(self, row: BoundRow) -> BoundRow | None:
        """The row bound to its bundle's present residency; None if it has left the device."""

    def send_traffic(self, seen: TrafficSeen) -> None:
        """Report what was seen of a task's traffic."""


@dataclass(slots=True, eq=False)
class _Call:
    message: Validate | Sync
    future: asyncio.Future[Validated | Synced]


@dataclass(slots=True)
class LinkState:
    """What the worker knows about the device process; ``/readyz`` shows it."""

    heard_at: float = float("-inf")
    is_ready: bool = False
    status: Status | None = None
    waiting_rows: int = 0


class DeviceLink:
    """One zmq DEALER on the running loop; every method must be called on the loop's thread.

    ``on_update`` is called after the table has applied a change and before it is acknowledged.
    """

    def __init__(
        self,
        endpoint: str,
        worker: str,
        table: TaskTable,
        *,
        max_rows: int,
        on_update: Callable[[TableUpdate], None],
    ) -> None:
        self._endpoint = endpoint
        self._worker = worker
        self._table = table
        self._max_rows = max_rows
        self._on_update = on_update
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._calls: dict[int, _Call] = {}
        self._outbox: list[ToDevice] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._welcomed = asyncio.Event()
        self.state = LinkState()

    async def start(self) -> None:
        """Connect. Requests are refused until the device process has welcomed this worker."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # rows are bounded by max_rows
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing queues while nobody listens
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.connect(self._endpoint)
        self._loop.add_reader(self._socket.FD, self._drain)
        self._greeter = self._loop.create_task(self._greet())

    async def close(self) -> None:
        """Say goodbye and disconnect; requests that still wait get ``device_unavailable``."""
        self._greeter.cancel()
        await asyncio.gather(self._greeter, return_exceptions=True)
        for pending in self._pending.values():
            pending.finish(DeviceUnavailable.code)
        for call in self._calls.values():
            call.future.cancel()
        self._send(Goodbye(self._worker))
        self._flush()
        self._set_timer(math.inf)
        self._loop.remove_reader(self._socket.FD)
        self._socket.close()
        await asyncio.to_thread(self._context.term)

    @property
    def is_connected(self) -> bool:
        """True if the device process has welcomed this worker and sent a message lately."""
        return self._table.epoch > 0 and time.monotonic() - self.state.heard_at < SILENCE_LIMIT_S

    @property
    def is_busy(self) -> bool:
        """True while requests wait for their answers."""
        return bool(self._pending)

    @property
    def was_welcomed(self) -> bool:
        """True once the device process has sent this worker its table."""
        return self._welcomed.is_set()

    async def welcomed(self, timeout_s: float) -> bool:
        """Wait for the device process's welcome; False if it did not come in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._welcomed.wait()
        except TimeoutError:
            return False
        return True

    async def predict(
        self, rows: Sequence[BoundRow], deadline: float, shadows: Sequence[BoundRow] = ()
    ) -> Results:
        """Return one result per row, in order; a row without an answer carries its error's code.

        ``shadows`` run in the same batch if it has room; the call does not wait for them.
        ``deadline`` is on ``time.monotonic``. Raises DeviceUnavailable or QueueFull at once, and
        TooManyRows if the queue could not take the rows even if it were empty.
        Cancelling the call drops the rows that still wait. The rows are in the outbox before the
        first await: the caller may rely on the table that it has just read.
        """
        if not self.is_connected:
            raise DeviceUnavailable
        places = self._places(rows)
        request_id = next(self._ids)
        awaited = len(rows)
        if shadows:
            together = [*rows, *shadows]
            needed = places_of([each.row for each in together])
            if self.state.waiting_rows + needed <= self._max_rows:
                rows, places = together, needed
        count = len(rows)
        pending = _Pending(rows, awaited, deadline, self._loop.create_future())
        self._pending[request_id] = pending
        self.state.waiting_rows += places
        self._ask(RequestRows.of(request_id, deadline, [each.row for each in rows]))
        if deadline < self._timer_at:
            self._set_timer(deadline)
        try:
            answered = pending.answer(await pending.future)
            left_out: list[RowResult | None] = [None] * (awaited + len(shadows) - count)
            return Results(answered, [*pending.results[awaited:], *left_out])
        finally:
            del self._pending[request_id]
            self.state.waiting_rows -= places
            if None in pending.results:
                self._send(Cancel(request_id))

    def _places(self, rows: Sequence[BoundRow]) -> int:
        """The places in the queue that rows take; QueueFull or TooManyRows if there are too few."""
        places = places_of([each.row for each in rows])
        if places > self._max_rows:
            with_items = "" if places == len(rows) else " with the items of long histories"
            raise TooManyRows(
                f"the call needs {places} rows{with_items}, and the server's queue takes "
                f"{self._max_rows}.",
                hint="Split it, or raise PETERREC_MAX_QUEUE_ROWS.",
            )
        if self.state.waiting_rows + places > self._max_rows:
            raise QueueFull(f"{self.state.waiting_rows} rows wait already.", hint="Try again.")
        return places

    def rebind(self, row: BoundRow) -> BoundRow | None:
        """Return the row with the handle that its bundle has now; None if it is not resident."""
        bundle = self._table.resident(row.digest)
        if bundle is None:
            return None
        return BoundRow(msgspec.structs.replace(row.row, handle=bundle.handle), row.digest)

    def send_traffic(self, seen: TrafficSeen) -> None:
        """Send counts of a task's traffic; they are lost if the device process is away."""
        self._send(seen)

    async def validate(self, path: str, timeout_s: float, *, store: bool = False) -> Validated:
        """Have an uploaded bundle verified and its probes run; then, with ``store``, stored.

        Raises DeviceUnavailable immediately, and DeadlineExceeded after ``timeout_s``.
        """
        if not self.is_connected:
            raise DeviceUnavailable
        answer = await self._call(Validate(next(self._ids), path, store), timeout_s)
        assert isinstance(answer, Validated)
        return answer

    async def sync(self, revision: int, timeout_s: float) -> Synced:
        """Wait until every worker of this replica serves a registry revision.

        Also waits for a device process that is being restarted, since the registry has the change
        already. Raises DeadlineExceeded after ``timeout_s``.
        """
        answer = await self._call(Sync(next(self._ids), revision), timeout_s)
        assert isinstance(answer, Synced)
        return answer

    async def _call(self, message: Validate | Sync, timeout_s: float) -> Validated | Synced:
        call = _Call(message, self._loop.create_future())
        self._calls[message.request_id] = call
        self._send(message)
        try:
            async with asyncio.timeout(timeout_s):
                return await call.future
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the device process did not answer within {timeout_s:g} s.",
                hint="The change may still take effect; read the task again.",
            ) from error
        finally:
            del self._calls[message.request_id]

    async def _greet(self) -> None:
        while True:
            self._send(Hello(self._worker, self._table.epoch))
            await asyncio.sleep(HELLO_INTERVAL_S if self.is_connected else SEEKING_INTERVAL_S)

    def _set_timer(self, at: float) -> None:
        """Check the deadlines at this time.

        All requests share one timer, since few of them reach their deadline.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        if at < math.inf:
            self._timer = self._loop.call_later(
                max(0.0, at - time.monotonic()), self._check_deadlines
            )

    def _check_deadlines(self) -> None:
        now = time.monotonic() + TIMER_GRAIN_S
        later = math.inf
        for pending in self._pending.values():
            if pending.deadline <= now:
                pending.finish(DeadlineExceeded.code)
            else:
                later = min(later, pending.deadline)
        self._set_timer(later)

    def _ask(self, request: RequestRows) -> None:
        """Queue rows for sending, in one message with those of the requests just before."""
        last = self._outbox[-1] if self._outbox else None
        if isinstance(last, Predict) and last.epoch == self._table.epoch:
            last.requests.append(request)
        else:
            self._send(Predict(self._table.epoch, [request]))

    def _send(self, message: ToDevice) -> None:
        """Queue a message. All messages of one turn of the loop are sent together.

        Waking the other process is most of the cost of a row here, so it is done once a turn.
        """
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(message)

    def _flush(self) -> None:
        """Send the queued messages.

        While the device process is away they are dropped: rows are sent again after the next
        ``Welcome``.
        """
        frames = [encode(message) for message in self._outbox]
        self._outbox.clear()
        if not frames or self._socket.closed:
            return
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            return
        # zmq's descriptor is edge-triggered: sending may consume the edge of what has arrived
        if self._has_news:
            self._loop.call_soon(self._drain)

    @property
    def _has_news(self) -> bool:
        return not self._socket.closed and bool(int(self._socket.getsockopt(zmq.EVENTS)) & POLLIN)

    def _drain(self) -> None:
        while self._has_news:
            self.state.heard_at = time.monotonic()
            self._receive(from_device.decode(self._socket.recv(zmq.DONTWAIT)))

    def _receive(self, message: FromDevice) -> None:
        match message:
            case BatchResults():
                self._take_results(message)
            case Status():
                self.state.status = message
                self.state.is_ready = message.is_ready
            case TableUpdate():
                if message.epoch == self._table.epoch:
                    self._apply(message)
            case Welcome():
                self._begin_epoch(message)
            case Validated() | Synced():
                self._finish_call(message)

    def _take_results(self, batch: BatchResults) -> None:
        if batch.epoch != self._table.epoch:
            return
        for result in batch.rows:
            pending = self._pending.get(result.request_id)
            if pending is not None:
                pending.take(result, pending.sent[result.row])

    def _finish_call(self, answer: Validated | Synced) -> None:
        call = self._calls.get(answer.request_id)
        if call is not None and not call.future.done():
            call.future.set_result(answer)

    def _apply(self, update: TableUpdate) -> None:
        self._table.apply(update)
        self._on_update(update)
        self._send(TableAck(update.epoch, update.version))

    def _begin_epoch(self, welcome: Welcome) -> None:
        is_new = welcome.epoch != self._table.epoch
        self._apply(welcome.table)
        self.state.is_ready = welcome.is_ready
        self._welcomed.set()
        if is_new:
            for request_id, pending in list(self._pending.items()):
                self._send_again(request_id, pending)
            for call in self._calls.values():
                self._send(call.message)

    def _send_again(self, request_id: int, pending: _Pending) -> None:
        """Send the rows that have no answer again, with the handles of the new epoch."""
        rows: list[Row] = []
        sent: list[int] = []
        for at, row in enumerate(pending.rows):
            if pending.results[at] is not None:
                continue
            rebound = self.rebind(row)
            if rebound is None:
                pending.take(RowResult(request_id, at, b"", error=BundleGone.code), at)
            else:
                rows.append(rebound.row)
                sent.append(at)
        pending.sent = sent
        if rows:
            self._ask(RequestRows.of(request_id, pending.deadline, rows))
