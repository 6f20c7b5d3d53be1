"""Which calls a worker takes: decided before their bodies are read, and again before decoding.

What a refused call costs is what decides how a server behaves under overload: clients come back.
"""

import time
from collections.abc import Callable
from typing import Protocol

from peterrec.service.errors import DeadlineExceeded, QueueFull
from peterrec.service.predict.schemas import MAX_BODY_BYTES, MAX_INSTANCES
from peterrec.service.protocol.sender import INTERACTIVE, Sender

WINDOW_S = 2.0
"""Seconds of waiting over which a sender's rate is measured."""

STALL_S = 0.5
"""Seconds without an answer that count towards a rate: a device process that restarts says nothing
about how fast the next one is."""

KNOWN_ROWS = 64
"""Rows answered of late from which on a rate is known well enough to refuse by it."""

LIKELY_GROWTH = 2.0
"""How many times the rows that waited of late the rate is taken to hold for: more rows together are
computed faster, so the rate of single rows says nothing about a peak."""

USED_SHARE = 0.75
"""Share of the time that a call has left which it may be expected to wait.

Under overload every call is admitted at this bound, and waits vary: with the whole time, half of
the calls would be computed in vain.
"""

LONGEST_RETRY_S = 10
"""Seconds of the longest ``Retry-After``."""

LATELY_S = 10.0
"""Seconds in which the calls of other tenants say whether a refusal concerns one tenant alone."""

MAX_FLOWS = 1024
"""Senders whose rates are remembered, beyond those with waiting calls."""


class Places(Protocol):
    """The places of the queue, as far as this worker knows them."""

    max_places: int
    """Places of the whole queue: a call that needs more is never taken."""

    def has_room(self, sender: Sender, places: int) -> bool:
        """Return whether so many more rows of a sender may wait."""

    def of(self, tenant: str) -> int:
        """Return how many rows of a tenant this worker has sent that have no answer yet."""


class Rows:
    """How many rows of a tenant wait, of all its senders."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting = 0


class Flow:
    """The waiting rows of one sender, and how fast they are answered.

    The rate is the number of answered rows divided by the time in which rows waited. So waiting
    rows divided by the rate is the mean wait (Little's law), in whatever order the queue runs them.
    Times and rows of long ago count less.
    """

    __slots__ = (
        "_answered", "_answered_at", "_at", "_promised_at", "_row_s", "_waiting_s", "of_tenant",
        "row_bytes", "waiting",
    )  # fmt: skip

    def __init__(self, now: float, of_tenant: Rows) -> None:
        self.of_tenant = of_tenant
        self.waiting = 0
        self.row_bytes = float(MAX_BODY_BYTES)  # of the bodies of late: a mean
        self._at = self._answered_at = now
        self._answered = 0.0
        self._waiting_s = 0.0
        self._row_s = 0.0  # the sum of the rows' waits; by the time, it is how many waited
        self._promised_at = 0.0

    def change(self, now: float, rows: int, answered: int = 0) -> None:
        """Add waiting rows, or remove them, of which some were answered."""
        if self.waiting:
            elapsed = max(0.0, min(now, self._answered_at + STALL_S) - self._at)
            kept = 1 - elapsed / WINDOW_S
            self._answered = self._answered * kept + answered
            self._waiting_s = self._waiting_s * kept + elapsed
            self._row_s = self._row_s * kept + elapsed * self.waiting
            if answered:
                self._answered_at = now
        else:
            self._answered_at = now
        self._at = now
        self.waiting += rows
        self.of_tenant.waiting += rows

    @property
    def wait_s(self) -> float:
        """The expected wait of the next row; 0 if the rate is not known."""
        if self._answered < KNOWN_ROWS:
            return 0.0
        ahead = min(self.waiting * self._waiting_s, LIKELY_GROWTH * self._row_s)
        return ahead / self._answered

    def note_size(self, size_bytes: int, rows: int) -> None:
        """Learn from a body how many rows to expect of one whose size alone is known."""
        self.row_bytes += (size_bytes / rows - self.row_bytes) / (8 if self._answered else 1)

    def expected_rows(self, size_bytes: int) -> int:
        """Return how many rows a body of this size has."""
        return min(MAX_INSTANCES, max(1, round(size_bytes / self.row_bytes)))

    def retry_after_s(self, now: float, rows: int) -> int:
        """Return when a refused call should come back: in its turn after those refused before it.

        Calls that come back as promised arrive as fast as the queue drains.
        """
        row_s = self._waiting_s / self._answered if self._answered else 0.0
        earliest = max(self._promised_at, now + row_s * min(rows, self.waiting))
        self._promised_at = min(earliest + row_s * rows, now + LONGEST_RETRY_S)
        return min(LONGEST_RETRY_S, 1 + int(earliest - now))


class Lately:
    """When a tenant was last seen, and when another one was: of two tenants, whatever their number.

    A refusal concerns one tenant alone if others were taken of late, and none of them was refused.
    """

    __slots__ = ("_at", "_other_at", "_tenant")

    def __init__(self) -> None:
        self._tenant = ""
        self._at = self._other_at = float("-inf")

    def note(self, tenant: str, now: float) -> None:
        """See a tenant."""
        if tenant != self._tenant:
            self._tenant, self._other_at = tenant, self._at
        self._at = now

    def has_other(self, tenant: str, now: float) -> bool:
        """Whether a tenant other than this one was seen of late."""
        other_at = self._other_at if tenant == self._tenant else self._at
        return now - other_at < LATELY_S


class Stay:
    """The time in which a call's rows count as waiting; a context manager.

    ``answered`` is how many of them were answered, unless the block raises.
    """

    __slots__ = ("_admission", "_flow", "_rows", "answered")

    def __init__(self, admission: "Admission", flow: Flow, rows: int) -> None:
        self._admission = admission
        self._flow = flow
        self._rows = self.answered = rows

    def __enter__(self) -> "Stay":
        self._flow.change(self._admission.clock(), self._rows)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        answered = self.answered if error is None else 0
        self._flow.change(self._admission.clock(), -self._rows, answered)


class Admission:
    """Takes the calls that find a place and can be answered in time. Lives on the event loop.

    A call is checked when its head is here, by the rows that bodies of its size had, and again when
    its body is, by the histories that are counted in it. From then on its rows have their places.
    Each sender is checked by its own rows: one that floods does not make another one wait.
    """

    def __init__(self, places: Places, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = places
        self.clock = clock
        self._flows: dict[Sender, Flow] = {}
        self._tenants: dict[str, Rows] = {}
        self._taken, self._refused = Lately(), Lately()
        self._waited_for_at = float("-inf")

    def check(self, sender: Sender, size_bytes: int, deadline: float) -> None:
        """Raise QueueFull if a call with a body of this size would be refused now."""
        flow = self._flow(sender)
        rows = min(flow.expected_rows(size_bytes), self._places.max_places)
        self._require_place(sender, flow, rows, deadline)

    def admit(self, sender: Sender, rows: int, deadline: float, size_bytes: int = 0) -> Stay:
        """Take a call of so many rows for the time of a ``with`` block, or raise QueueFull.

        ``size_bytes`` is the size of its body, if that depends on the rows.
        """
        flow = self._flow(sender)
        self._require_place(sender, flow, rows, deadline)
        if size_bytes:
            flow.note_size(size_bytes, rows)
        return Stay(self, flow, rows)

    def _require_place(self, sender: Sender, flow: Flow, rows: int, deadline: float) -> None:
        now = self.clock()
        if now >= deadline:
            raise DeadlineExceeded("the request's time ran out while it arrived.")
        is_possible = rows <= self._places.max_places  # else the link refuses it, as too large
        preparing = max(0, flow.of_tenant.waiting - self._places.of(sender.tenant))
        if is_possible and not self._places.has_room(sender, preparing + rows):
            raise QueueFull(
                f"there is no room for {rows} rows; {flow.waiting} of this sender wait already.",
                hint="Try again after the seconds of Retry-After.",
                retry_after_s=flow.retry_after_s(now, rows),
                is_own=self._is_own(sender, now),
            )
        if flow.waiting:
            wait_s = flow.wait_s
            if wait_s > USED_SHARE * (deadline - now):
                raise QueueFull(
                    f"{flow.waiting} rows wait already, which takes about {wait_s:.2g} s: too long "
                    f"for the {max(0.0, deadline - now):.2g} s that the call has left.",
                    hint="Try again after the seconds of Retry-After, or allow more time with "
                    "X-Request-Timeout-Ms.",
                    retry_after_s=flow.retry_after_s(now, rows),
                    is_own=self._is_own(sender, now),
                )
        self._taken.note(sender.tenant, now)
        if sender.priority == INTERACTIVE:
            self._waited_for_at = now

    @property
    def is_waited_for(self) -> bool:
        """Whether an interactive call has come of late, so that another one may."""
        return self.clock() - self._waited_for_at < LATELY_S

    def _is_own(self, sender: Sender, now: float) -> bool:
        """Note a refusal; True if others were taken of late, and none of them refused."""
        tenant = sender.tenant
        self._refused.note(tenant, now)
        return self._taken.has_other(tenant, now) and not self._refused.has_other(tenant, now)

    def _flow(self, sender: Sender) -> Flow:
        flow = self._flows.get(sender)
        if flow is None:
            if len(self._flows) >= MAX_FLOWS:
                self._flows = {each: flow for each, flow in self._flows.items() if flow.waiting}
                self._tenants = {each.tenant: flow.of_tenant for each, flow in self._flows.items()}
            of_tenant = self._tenants.setdefault(sender.tenant, Rows())
            flow = self._flows[sender] = Flow(self.clock(), of_tenant)
        return flow


def count_rows(body: bytes) -> int:
    """Guess how many rows a predict body has, in less than 0.1 ms per 100 KB."""
    return min(MAX_INSTANCES, max(1, body.count(b'"history"')))
