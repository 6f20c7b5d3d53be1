"""A worker's connection to the device process: sends rows, receives results, on the event loop."""

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from peterrec.patches.registry.losses import Knowledge
from peterrec.service.errors import (
    BundleGone,
    DeadlineExceeded,
    DeviceUnavailable,
    QueueFull,
    TooManyRows,
)
from peterrec.service.predict.loop_shares import waiting
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.frames import FrameReader, join_frames
from peterrec.service.protocol.messages import (
    PLAIN,
    BatchResults,
    Cancel,
    FromDevice,
    Hello,
    Predict,
    ProdBundles,
    Profile,
    Profiled,
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
from peterrec.service.protocol.sender import NOBODY, Sender
from peterrec.service.protocol.waiting import WaitingPlaces
from peterrec.service.system.pulse import Pulse
from peterrec.service.telemetry.timeline import TIMELINE, Round

HELLO_INTERVAL_S = 1.0
"""Seconds between two ``Hello`` while the device process answers."""

SEEKING_INTERVAL_S = 0.1
"""Seconds between two ``Hello`` while the device process is away."""

SILENCE_LIMIT_S = 3.0
"""Seconds without a message until the device process counts as gone; it sends one a second.
While a batch runs longer, its pulse shows that it lives."""

TIMER_GRAIN_S = 0.001
"""Seconds by which the event loop's timers may fire early."""


class BoundRow(msgspec.Struct, frozen=True, gc=False):
    """A row and the digest of the bundle that it is bound to.

    The handle in the row names that bundle within one epoch only; the digest names it for ever.
    """

    row: Row
    digest: str


class _Pending:
    """A request that waits for results. Its caller waits for the first ``awaited`` rows only; the
    further ones are shadows.

    ``sent`` are the indices of the rows that the last message carried, in order. ``round`` notes
    the batches that ran the rows, if the request has a timeline.
    """

    __slots__ = (
        "awaited",
        "deadline",
        "future",
        "missing",
        "results",
        "round",
        "rows",
        "sender",
        "sent",
    )

    def __init__(
        self,
        rows: Sequence[BoundRow],
        awaited: int,
        deadline: float,
        future: "asyncio.Future[str]",
        sender: Sender,
    ) -> None:
        self.rows = rows
        self.awaited = self.missing = awaited
        self.deadline = deadline
        self.future = future
        self.sender = sender
        self.results: list[RowResult | None] = [None] * len(rows)
        self.sent: Sequence[int] = range(len(rows))
        self.round: Round | None = None

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
        self,
        rows: Sequence[BoundRow],
        deadline: float,
        shadows: Sequence[BoundRow] = (),
        sender: Sender = NOBODY,
    ) -> Results:
        """Results of rows, in their order; everything is sent before the first await."""

    def rebind(self, row: BoundRow) -> BoundRow | None:
        """The row bound to its bundle's present residency; None if it has left the device."""

    def send_traffic(self, seen: TrafficSeen) -> None:
        """Report what was seen of a task's traffic."""


@dataclass(slots=True, eq=False)
class _Call:
    message: Validate | Sync | Profile
    future: asyncio.Future[Validated | Synced | Profiled]


@dataclass(slots=True)
class LinkState:
    """What the worker knows about the device process; ``/readyz`` shows it."""

    heard_at: float = float("-inf")
    is_ready: bool = False
    unready: str = ""
    prod: ProdBundles = field(default_factory=ProdBundles)
    status: Status | None = None


class _Stream(asyncio.Protocol):
    """One connection to the device process."""

    def __init__(self, receive: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._reader = FrameReader()
        self._receive = receive
        self._lost = lost

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()


class DeviceLink:
    """A connection on the running loop; every method must be called on the loop's thread.

    It is made again whenever the device process has gone, and rows without an answer are sent
    again to the next one.

    ``on_update`` is called after the table has applied a change and before it is acknowledged.
    ``pulse`` is the device process's, which shows that it lives while a batch runs.
    ``knowledge`` is what the device process knows of the registry, as of its last second.
    """

    def __init__(
        self,
        endpoint: Path,
        table: TaskTable,
        *,
        max_rows: int,
        on_update: Callable[[TableUpdate], None],
        pulse: Pulse | None = None,
    ) -> None:
        self._pulse = pulse or Pulse()
        self._endpoint = endpoint
        self._table = table
        self.places = WaitingPlaces(max_rows)
        self._on_update = on_update
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._calls: dict[int, _Call] = {}
        self._outbox: list[ToDevice] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._transport: asyncio.WriteTransport | None = None
        self._cut = asyncio.Event()
        self._has_lost_rows = False
        self._welcomed = asyncio.Event()
        self.state = LinkState()
        self.knowledge = Knowledge()

    async def start(self) -> None:
        """Connect. Requests are refused until the device process has welcomed this worker."""
        self._loop = asyncio.get_running_loop()
        self._greeter = self._loop.create_task(self._greet())

    async def close(self) -> None:
        """Hang up; requests that still wait get ``device_unavailable``."""
        self._greeter.cancel()
        await asyncio.gather(self._greeter, return_exceptions=True)
        for pending in self._pending.values():
            pending.finish(DeviceUnavailable.code)
        for call in self._calls.values():
            call.future.cancel()
        self._flush()
        self._set_timer(math.inf)
        if self._transport is not None:
            self._transport.close()  # sends what is still to be sent

    @property
    def is_connected(self) -> bool:
        """True if the device process has welcomed this worker and shown lately that it lives."""
        since = time.monotonic() - SILENCE_LIMIT_S
        is_heard = self.state.heard_at > since or self._pulse.lives(self._table.epoch, since)
        return is_heard and self._table.epoch > 0

    @property
    def is_stuck(self) -> bool:
        """True if the device process lives and has not made progress lately."""
        since = time.monotonic() - SILENCE_LIMIT_S
        return self.is_connected and self._pulse.is_stuck(self._table.epoch, since)

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
        self,
        rows: Sequence[BoundRow],
        deadline: float,
        shadows: Sequence[BoundRow] = (),
        sender: Sender = NOBODY,
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
        places = self._places(rows, sender)
        request_id = next(self._ids)
        awaited = len(rows)
        if shadows:
            together = [*rows, *shadows]
            needed = places_of([each.row for each in together])
            if self.places.has_room(sender, needed):
                rows, places = together, needed
        count = len(rows)
        pending = _Pending(rows, awaited, deadline, self._loop.create_future(), sender)
        self._pending[request_id] = pending
        timeline, sent_at = TIMELINE.get(), 0.0
        if timeline is not None:
            sent_at = time.monotonic()
            pending.round = Round(sent_at)
            timeline.rounds.append(pending.round)
        self.places.take(sender, places)
        plain = [each.row for each in rows]
        self._ask(RequestRows.of(request_id, deadline, plain, sender, sent_at))
        if deadline < self._timer_at:
            self._set_timer(deadline)
        try:
            with waiting():
                answered = pending.answer(await pending.future)
            left_out: list[RowResult | None] = [None] * (awaited + len(shadows) - count)
            return Results(answered, [*pending.results[awaited:], *left_out])
        finally:
            del self._pending[request_id]
            if pending.round is not None:
                pending.round.returned_at = time.monotonic()
            self.places.leave(sender.tenant, places)
            if None in pending.results:
                self._send(Cancel(request_id))

    def _places(self, rows: Sequence[BoundRow], sender: Sender) -> int:
        """The places in the queue that rows take; QueueFull or TooManyRows if there are too few."""
        places = places_of([each.row for each in rows])
        if places > self.places.max_places:
            with_items = "" if places == len(rows) else " with long histories and filters"
            raise TooManyRows(
                f"the call needs {places} rows{with_items}, and the server's queue takes "
                f"{self.places.max_places}.",
                hint="Split it, or raise PETERREC_MAX_QUEUE_ROWS.",
            )
        if not self.places.has_room(sender, places):
            raise QueueFull(f"{self.places.total} rows wait already.", hint="Try again.")
        return places

    def rebind(self, row: BoundRow) -> BoundRow | None:
        """Return the row with the handle that its bundle has now; None if it is not resident."""
        if row.row.handle <= PLAIN:
            return row
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

    async def profile(self, path: str, seconds: int, timeout_s: float) -> str:
        """Have what the device computes recorded into a file; return the problem, if there is one.

        Raises DeviceUnavailable immediately, and DeadlineExceeded after ``timeout_s``.
        """
        if not self.is_connected:
            raise DeviceUnavailable
        answer = await self._call(Profile(next(self._ids), path, seconds), timeout_s)
        assert isinstance(answer, Profiled)
        return answer.problem

    async def _call(
        self, message: Validate | Sync | Profile, timeout_s: float
    ) -> Validated | Synced | Profiled:
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
            if self._transport is None:
                await self._connect()
            self._send(Hello(self._table.epoch))
            is_content = self.is_connected and self._transport is not None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HELLO_INTERVAL_S if is_content else SEEKING_INTERVAL_S):
                    await self._cut.wait()
            self._cut.clear()

    async def _connect(self) -> None:
        """Connect to the device process, if there is one."""
        with contextlib.suppress(OSError):
            self._transport, _ = await self._loop.create_unix_connection(
                lambda: _Stream(self._hear, self._lose), str(self._endpoint)
            )

    def _lose(self) -> None:
        """Note that the connection has ended: what was sent on it will not be answered."""
        self._transport = None
        self._has_lost_rows = True
        self._cut.set()

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
        messages = [encode(message) for message in self._outbox]
        self._outbox.clear()
        if messages and self._transport is not None:
            self._transport.write(join_frames(messages))

    def _hear(self, message: bytes) -> None:
        self.state.heard_at = time.monotonic()
        self._receive(from_device.decode(message))

    def _receive(self, message: FromDevice) -> None:
        match message:
            case BatchResults():
                self._take_results(message)
            case Status():
                self.state.status = message
                self.state.is_ready = message.is_ready
                self.state.unready, self.state.prod = message.unready, message.prod
                self._note_queue(message.queued_rows, 0)
                self.knowledge.position, self.knowledge.loss = message.position, message.loss
            case TableUpdate():
                if message.epoch == self._table.epoch:
                    self._apply(message)
            case Welcome():
                self._begin_epoch(message)
            case Validated() | Synced() | Profiled():
                self._finish_call(message)

    def _take_results(self, batch: BatchResults) -> None:
        if batch.epoch != self._table.epoch:
            return
        self._note_queue(batch.queued_rows, len(batch.rows))
        for place, result in enumerate(batch.rows):
            pending = self._pending.get(result.request_id)
            if pending is not None:
                at = pending.sent[result.row]
                if pending.round is not None and batch.times is not None and at < pending.awaited:
                    pending.round.note(batch.epoch, batch.times, place)
                pending.take(result, at)

    def _note_queue(self, queued_places: int, answered_rows: int) -> None:
        """Note how full the queue is with rows of other workers."""
        own = self.places.total - answered_rows
        self.places.others = max(0, queued_places - own)

    def _finish_call(self, answer: Validated | Synced | Profiled) -> None:
        call = self._calls.get(answer.request_id)
        if call is not None and not call.future.done():
            call.future.set_result(answer)

    def _apply(self, update: TableUpdate) -> None:
        self._table.apply(update)
        if update.weights is not None:
            self.places.set_weights(update.weights)
        self._on_update(update)
        self._send(TableAck(update.epoch, update.version))

    def _begin_epoch(self, welcome: Welcome) -> None:
        is_new = welcome.epoch != self._table.epoch or self._has_lost_rows
        self._has_lost_rows = False
        self._apply(welcome.table)
        self.state.is_ready = welcome.is_ready
        self.state.unready, self.state.prod = welcome.unready, welcome.prod
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
            sent_at = 0.0 if pending.round is None else pending.round.sent_at
            asked = RequestRows.of(request_id, pending.deadline, rows, pending.sender, sent_at)
            self._ask(asked)
