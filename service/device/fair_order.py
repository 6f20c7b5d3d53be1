"""The order in which waiting requests are served: fair between tenants by work, not by rows.

This is weighted deficit round robin by virtual time (start-time fair queueing: Goyal, Vin and
Cheng, 1996). Each tenant has an account, its *tag*: the work that it was given, divided by its
weight. The tenant with the smallest tag is next, so a tenant that has asked for little does not
wait behind one that asks for much. A tenant that comes back starts at the present virtual time:
it saves nothing up, but what it was given too much of stays in its account.

The same rule shares the device between the two priorities, of which interactive has most of the
weight, so batch rows take what it leaves and a tenth in any case. Within a tenant a request is due
at the virtual time at which it would end if nothing else of the tenant waited. So a small one
overtakes a large one that has just come, and none waits for ever.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from itertools import count

import msgspec

from peterrec.service.protocol.listener import Peer
from peterrec.service.protocol.messages import Row
from peterrec.service.protocol.sender import BATCH, PRIORITY_WEIGHTS, Sender

Worker = Peer
"""A worker's connection to the device process."""

FEWEST_TURNS = 4
"""Turns from which on it is known whether a flow is heavy."""

WINDOW_S = 0.5
"""Seconds after which a new window begins."""

MEMORY_S = 3.0
"""Seconds for which a flow is remembered after its last request."""

_numbers = count()


class QueuedRow(msgspec.Struct, eq=False, gc=False):
    """A row that waits. ``number`` is its index in its request; times are in monotonic seconds.

    ``work`` is in positions of the backbone, ``size`` the bytes that it takes while it runs.
    ``sent_at`` is 0 if nobody asks where the time of its request went.
    """

    worker: Worker
    request_id: int
    number: int
    row: Row
    deadline: float
    enqueued_at: float
    work: float = 1.0
    size: int = 0
    sent_at: float = 0.0


class Request(msgspec.Struct, eq=False, gc=False):
    """The rows of one request that were not taken yet: ``rows[at:]``.

    ``left`` counts those that have not been taken, with those that wait for their heads, and
    ``places`` are those that its older items take besides one for each row.
    """

    flow: "Flow"
    key: tuple[Worker, int]
    rows: list[QueuedRow]
    places: int
    left: int
    at: int = 0
    is_dropped: bool = False


@dataclass(slots=True, eq=False)
class Flow:
    """The requests of one sender, the one that is due first at the top of a heap.

    ``tag`` is the sender's account. ``given`` is its own virtual time: the work that it was given.
    ``use`` is what is known of how much it asks for.
    """

    sender: Sender
    lane: "Lane"
    weight: float
    tag: float = 0.0
    given: float = 0.0
    requests: list[tuple[float, int, Request]] = field(default_factory=list)
    use: "Use" = field(default_factory=lambda: Use())

    def first(self) -> Request | None:
        """Return the request that is due first; forget those that are done or were dropped."""
        requests = self.requests
        while requests:
            request = requests[0][2]
            if request.at < len(request.rows) and not request.is_dropped:
                return request
            heappop(requests)
        return None


@dataclass(slots=True)
class Use:
    """How much a flow asks for, by its turns in batches that were full, or as long as short ones.

    A small turn is one in which it got all that it had waiting, and that was less than its part of
    a short batch. A flow is heavy if most of its turns are not small. Times are in seconds.
    """

    is_heavy: bool = False
    pushed_at: float = float("-inf")
    turns: int = 0
    small_turns: int = 0

    def note(self, *, is_small: bool) -> None:
        """Note a turn."""
        self.turns += 1
        self.small_turns += is_small
        if self.turns >= FEWEST_TURNS:
            self.is_heavy = 2 * self.small_turns <= self.turns


@dataclass(slots=True, eq=False)
class Lane:
    """The flows of one priority; those with requests are in a heap by their tags."""

    share: float
    tag: float = 0.0
    now: float = 0.0  # virtual time: the largest tag at which a flow was given work
    waiting: list[tuple[float, int, Flow]] = field(default_factory=list)


class FairOrder:
    """The waiting requests of all senders. Used by one thread."""

    def __init__(self) -> None:
        self._weights: Mapping[str, float] = {}
        self._lanes = {priority: Lane(share) for priority, share in PRIORITY_WEIGHTS.items()}
        self._flows: dict[Sender, Flow] = {}
        self._now = 0.0  # virtual time of the lanes
        self._has_light = self._has_heavy = False
        self._window_at = 0.0

    @property
    def is_empty(self) -> bool:
        """True if no flow waits."""
        return not any(lane.waiting for lane in self._lanes.values())

    @property
    def waiting_flows(self) -> int:
        """The number of flows that wait."""
        return sum([len(lane.waiting) for lane in self._lanes.values()])

    def flow(self, sender: Sender) -> Flow:
        """Return the flow of a sender."""
        found = self._flows.get(sender)
        if found is None:
            weight = self._weights.get(sender.tenant, 1.0)
            lane = self._lanes.get(sender.priority, self._lanes[BATCH])
            found = self._flows[sender] = Flow(sender, lane, weight)
        return found

    def push(self, request: Request, work: float, now: float) -> None:
        """Add a request with so much work."""
        flow = request.flow
        heappush(flow.requests, (flow.given + work, next(_numbers), request))
        if len(flow.requests) == 1:
            self._wake(flow)
        flow.use.pushed_at = now
        self._has_light |= not flow.use.is_heavy

    def restore(self, request: Request, rows: list[QueuedRow]) -> None:
        """Make rows that were taken from a request its next ones again; it is due at once."""
        flow, at = request.flow, request.at - len(rows)
        request.rows[at : request.at] = rows
        request.at = at
        was_waiting = bool(flow.requests)
        heappush(flow.requests, (0.0, next(_numbers), request))  # twice, perhaps: it ends once
        if not was_waiting:
            self._wake(flow)

    def next(self) -> Flow | None:
        """Return the flow whose turn it is, None if none waits."""
        while (lane := self._next_lane()) is not None:
            flow = lane.waiting[0][2]
            if flow.first() is not None:
                return flow
            heappop(lane.waiting)
        return None

    def charge(self, flow: Flow, work: float) -> None:
        """Enter work that was given to the flow whose turn it was; the next one's turn comes."""
        lane = flow.lane
        if work:
            lane.now = max(lane.now, flow.tag)
        flow.given += work
        flow.tag += work / flow.weight
        lane.tag += work / lane.share
        if flow.requests:
            heapreplace(lane.waiting, (flow.tag, next(_numbers), flow))
        else:
            heappop(lane.waiting)

    def is_shared(self, now: float) -> bool:
        """Return whether one flow asks for little while another one is heavy.

        The one waits for the batch that is running, so batches should be short. If all flows are
        heavy, or none is, short batches help nobody.
        """
        if now - self._window_at >= WINDOW_S:
            self._begin_window(now)
        return self._has_light and self._has_heavy

    def note_turns(self, turns: Sequence[tuple[Flow, float]], part: float) -> None:
        """Note what flows were given in a batch, and what is a flow's part of a short one."""
        for flow, work in turns:
            flow.use.note(is_small=work < part and not flow.requests)
            self._has_heavy |= flow.use.is_heavy

    def _begin_window(self, now: float) -> None:
        """Begin a new window: see which flows are heavy, and forget what they did before."""
        self._window_at = now
        self._has_light = self._has_heavy = False
        for flow in self._flows.values():
            use = flow.use
            use.turns = use.small_turns = 0
            if flow.requests or now - use.pushed_at < MEMORY_S:
                self._has_heavy |= use.is_heavy
                self._has_light |= not use.is_heavy
            else:
                use.is_heavy = False

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Replace the tenants' weights, and forget flows that do not wait and owe nothing."""
        self._weights = weights
        for sender, flow in list(self._flows.items()):
            flow.weight = weights.get(sender.tenant, 1.0)
            if not flow.requests and flow.tag <= flow.lane.now:
                del self._flows[sender]

    def given(self) -> dict[str, float]:
        """Return the work that each tenant was given so far."""
        given: dict[str, float] = {}
        for sender, flow in self._flows.items():
            given[sender.tenant] = given.get(sender.tenant, 0.0) + flow.given
        return given

    def _wake(self, flow: Flow) -> None:
        """Let a flow wait that did not."""
        lane = flow.lane
        if not lane.waiting:
            lane.tag = max(lane.tag, self._now)
        flow.tag = max(flow.tag, lane.now)
        heappush(lane.waiting, (flow.tag, next(_numbers), flow))

    def _next_lane(self) -> Lane | None:
        first, second = self._lanes.values()
        if first.waiting and not (second.waiting and second.tag < first.tag):
            chosen = first
        elif second.waiting:
            chosen = second
        else:
            return None
        self._now = chosen.tag
        return chosen
