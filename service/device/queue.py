"""The queue of the device process: bounded, fair between tenants, without cancelled rows."""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop

from peterrec.service.device.fair_order import FairOrder, Flow, QueuedRow, Request, Worker
from peterrec.service.protocol.messages import Handle, places_of
from peterrec.service.protocol.sender import NOBODY, Sender
from peterrec.service.protocol.waiting import WaitingPlaces

__all__ = ["BatchBounds", "QueuedRow", "RowQueue", "Taken", "Worker"]

EXPIRY_INTERVAL_S = 0.02
"""Seconds between two searches for pending rows whose deadline has passed."""

UNBOUNDED = float("inf")


@dataclass(frozen=True, slots=True)
class BatchBounds:
    """The most that one batch may have: rows, their work, and the bytes that they take.

    Of these, only the rows bound a batch of one. ``work_beside`` bounds the work of a batch that
    has all waiting rows of some sender: others only fill it up to that. ``short_work`` is the work
    of a short batch.
    """

    rows: int
    work: float = UNBOUNDED
    size: float = UNBOUNDED
    work_beside: float = UNBOUNDED
    short_work: float = UNBOUNDED


@dataclass(slots=True)
class Taken:
    """A batch while it is filled: rows to run, and rows whose deadline has passed.

    ``until`` is the work, and ``until_rows`` the number of rows, at which the present turn ends.
    """

    bounds: BatchBounds
    now: float
    evicted: Collection[Handle] = ()
    rows: list[QueuedRow] = field(default_factory=list)
    expired: list[QueuedRow] = field(default_factory=list)
    work: float = 0.0
    size: int = 0
    until: float = 0.0
    until_rows: int = 0
    is_full: bool = False

    def begin_turn(self, flows: int) -> None:
        """Let one of so many flows have its part of the batch."""
        self.until = self.work + self.bounds.work / flows
        self.until_rows = len(self.rows) + max(1, self.bounds.rows // flows)


class RowQueue:
    """Waiting rows in the order of ``FairOrder``. Used by the device thread only.

    Rows whose head is evicted are pending until it is reloaded; they count towards the bound. So do
    long histories (``places_of``), as a row may carry 40 KB of older tokens.
    """

    def __init__(self, max_places: int) -> None:
        self.places = WaitingPlaces(max_places)
        self._order = FairOrder()
        self._by_request: dict[tuple[Worker, int], Request] = {}
        self._count = 0
        self._pending: dict[Handle, deque[tuple[Request, QueuedRow]]] = {}
        self._expired_at = float("-inf")

    @property
    def is_runnable(self) -> bool:
        """True if rows wait that are not pending."""
        return not self._order.is_empty

    @property
    def pending(self) -> Iterator[Handle]:
        """The residencies whose heads rows are pending for, in the order of their first row.

        Leaves out those whose rows were all cancelled, since these may have been freed meanwhile.
        """
        for handle, rows in self._pending.items():
            if not all(request.is_dropped for request, _ in rows):
                yield handle

    def __len__(self) -> int:
        return self._count

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Replace the weights of the tenants; all others have 1."""
        self.places.set_weights(weights)
        self._order.set_weights(weights)

    def push(self, rows: list[QueuedRow], sender: Sender = NOBODY) -> bool:
        """Queue all rows of a request; return False, with none queued, if they do not fit."""
        count = len(rows)
        places = count if count == 1 and not _is_large(rows[0]) else _places(rows)
        if not self.places.take(sender, places):
            return False
        first, self._count = rows[0], self._count + count
        key = first.worker, first.request_id
        request = Request(self._order.flow(sender), key, rows, places - count, count)
        self._by_request[key] = request
        work = first.work if count == 1 else sum([row.work for row in rows])
        self._order.push(request, work, first.enqueued_at)
        return True

    def is_shared(self, now: float) -> bool:
        """Return whether batches should be short, for a sender that asks for little."""
        return self._order.is_shared(now)

    def take(self, bounds: BatchBounds, now: float, evicted: Collection[Handle] = ()) -> Taken:
        """Take the rows whose turn it is, within the bounds of a batch.

        Rows of residencies whose heads are ``evicted`` become pending instead.
        """
        taken = Taken(bounds, now, evicted, expired=self._expired(now))
        turns: list[tuple[Flow, float]] = []
        while not taken.is_full and (flow := self._order.next()) is not None:
            given = taken.work
            taken.begin_turn(self._order.waiting_flows)
            self._take_turn(flow, taken)
            self._order.charge(flow, taken.work - given)
            turns.append((flow, taken.work - given))
            if not flow.requests and taken.bounds.work > bounds.work_beside:
                taken.bounds = replace(bounds, work=max(taken.work, bounds.work_beside))
                taken.is_full |= taken.work >= bounds.work_beside
        if turns and (taken.is_full or taken.work >= bounds.short_work):
            self._order.note_turns(turns, bounds.short_work / len(turns))
        return taken

    def resume(self, handle: Handle) -> None:
        """Make the pending rows of a reloaded head the next of their senders to run."""
        by_request: dict[int, tuple[Request, list[QueuedRow]]] = {}
        for request, row in self._pending.pop(handle, ()):
            if not request.is_dropped:
                by_request.setdefault(id(request), (request, []))[1].append(row)
        for request, rows in by_request.values():
            self._order.restore(request, rows)

    def drop_pending(self, handle: Handle) -> list[QueuedRow]:
        """Take out and return the rows that are pending for a head which can't be reloaded."""
        waiting = [each for each in self._pending.pop(handle, ()) if not each[0].is_dropped]
        for request, _ in waiting:
            self._forget(request, 1)
        return [row for _, row in waiting]

    def cancel(self, worker: Worker, request_id: int) -> int:
        """Drop the waiting rows of a request whose client left; return how many they were."""
        request = self._by_request.get((worker, request_id))
        if request is None:
            return 0
        request.is_dropped = True
        dropped = request.left
        self._forget(request, dropped)
        return dropped

    def cancel_all(self, worker: Worker) -> int:
        """Drop all waiting rows of a worker; return how many they were."""
        of_worker = [request_id for each, request_id in self._by_request if each == worker]
        return sum([self.cancel(worker, request_id) for request_id in of_worker])

    def waited_for(self) -> set[Handle]:
        """Return the residencies that the rows of waiting requests are bound to.

        Some of a request's rows may have run already.
        """
        requests = self._by_request.values()
        return {row.row.handle for request in requests for row in request.rows}

    def given_work(self) -> dict[str, float]:
        """Return the work that each tenant was given so far, in positions of the backbone."""
        return self._order.given()

    def _take_turn(self, flow: Flow, taken: Taken) -> None:
        """Take the rows of one flow's turn. Each costs little, so this loop calls nothing."""
        bounds, chosen, evicted, requests = taken.bounds, taken.rows, taken.evicted, flow.requests
        most_rows, work, size = min(bounds.rows, taken.until_rows), taken.work, taken.size
        left, places = 0, 0
        while requests and work < taken.until and len(chosen) < most_rows and not taken.is_full:
            request = requests[0][2]
            rows, at, before = request.rows, request.at, len(chosen)
            if at == len(rows) or request.is_dropped:
                heappop(requests)
                continue
            if rows[at].deadline < taken.now:
                self._expire(request, taken)
                continue
            for row in rows[at:] if at else rows:
                if evicted and row.row.handle in evicted:
                    self._pending.setdefault(row.row.handle, deque()).append((request, row))
                    at += 1
                    continue
                if chosen and (work + row.work > bounds.work or size + row.size > bounds.size):
                    taken.is_full = True
                    break
                chosen.append(row)
                at, work, size = at + 1, work + row.work, size + row.size
                if work >= taken.until or len(chosen) >= most_rows:
                    break
            request.at = at
            count = len(chosen) - before
            left, request.left = left + count, request.left - count
            if not request.left:
                places += request.places
                self._by_request.pop(request.key, None)
        taken.work, taken.size = work, size
        taken.is_full |= len(chosen) >= bounds.rows or work >= bounds.work
        flow.first()
        if left:
            self._count -= left
            self.places.leave(flow.sender.tenant, left + places)

    def _expire(self, request: Request, taken: Taken) -> None:
        """Take the rest of a request whose deadline has passed."""
        rows = request.rows[request.at :]
        taken.expired += rows
        request.at = len(request.rows)
        self._forget(request, len(rows))

    def _expired(self, now: float) -> list[QueuedRow]:
        """Take out and return the pending rows whose deadline has passed."""
        if not self._pending or now < self._expired_at + EXPIRY_INTERVAL_S:
            return []
        self._expired_at = now
        expired: list[QueuedRow] = []
        for handle, rows in list(self._pending.items()):
            waiting = [each for each in rows if not each[0].is_dropped]
            kept = deque(each for each in waiting if each[1].deadline >= now)
            for request, row in waiting:
                if row.deadline < now:
                    self._forget(request, 1)
                    expired.append(row)
            if kept:
                self._pending[handle] = kept
            else:
                del self._pending[handle]
        return expired

    def _forget(self, request: Request, count: int) -> None:
        """Count rows of a request that wait no longer; with the last one, forget the request."""
        request.left -= count
        self._count -= count
        if request.left:
            self.places.leave(request.flow.sender.tenant, count)
            return
        self.places.leave(request.flow.sender.tenant, count + request.places)
        self._by_request.pop(request.key, None)


def _is_large(queued: QueuedRow) -> bool:
    """True if a row may take more than one place."""
    return bool(queued.row.older or queued.row.allowed)


def _places(rows: Sequence[QueuedRow]) -> int:
    return places_of([each.row for each in rows])
