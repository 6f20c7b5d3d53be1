"""The time of a worker's event loop, shared among the tenants whose calls it works on.

The device is shared by work (``service/device/fair_order.py``), but a call also takes the worker's
time: to parse its body, map its histories, and encode its answers. Where the device is fast, that
is most of a call. Without an order of its own the loop works on all calls at once, and a small
request waits for a step of each of another tenant's sixteen large calls, several times.

Each sender has an account of the time that its calls took, divided by its weight (start-time fair
queueing, as on the device). In one turn of the loop, calls may begin and go on for ``TURN_S``; what
does not fit waits, and the sender with the smallest account is next. Nothing waits while one sender
alone sends calls.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from heapq import heappop, heappush
from itertools import count
from math import inf

from peterrec.service.errors import DeadlineExceeded
from peterrec.service.protocol.sender import INTERACTIVE, PRIORITY_WEIGHTS, Sender

SHARED_STEP_S = 0.0005
"""Seconds of one step of a long call while tenants share the loop, and of a stream: a small part of
what an interactive call takes."""

TURN_S = 0.001
"""Seconds of work on calls in one turn of the loop, after which those that come have to wait."""

SHARED_FOR_S = 1.0
"""Seconds for which the loop counts as shared after calls of two senders."""

GAP_TURNS = 3
"""Turns of the loop without a step of those that wait, while others send calls that do not: from
its arrival to the device, a small call takes three turns."""

LIGHT_FOR_S = 0.1
"""Seconds for which a call that did not have to wait makes such gaps."""

LONGEST_STEP_S = 0.01
"""Most seconds that one step counts for: what takes longer has waited for something."""

MAX_ACCOUNTS = 1024
"""Senders whose accounts are remembered, beyond those that wait."""

_numbers = count()


class Account:
    """What one sender's calls took: ``used_s`` in seconds divided by ``weight``.

    ``step_s`` is the mean length of its steps of late, by which steps are planned.
    """

    __slots__ = ("sender", "step_s", "used_s", "waiting", "weight")

    def __init__(self, sender: Sender, weight: float, used_s: float) -> None:
        self.sender = sender
        self.weight = weight
        self.used_s = used_s
        self.step_s = SHARED_STEP_S
        self.waiting: deque[asyncio.Future[float]] = deque()


class LoopShares:
    """Shares the event loop on which it lives. ``weight`` says those of tenants."""

    def __init__(
        self,
        weight: Callable[[str], float] = lambda tenant: 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._weight = weight
        self._accounts: dict[Sender, Account] = {}
        self._waiting: list[tuple[float, int, Account]] = []
        self._now = 0.0  # virtual time: the account of the one that worked last, when it began
        self._turn_s = 0.0  # seconds of work in this turn of the loop
        self._gap = 0  # turns since one of those that waited was chosen
        self._gap_s = 0.0  # seconds of work of others since
        self._light_at = -inf  # when a call last began without waiting, while another one waited
        self._has_turn = False  # its end is scheduled
        self._last: Account | None = None
        self._shared_until = -inf

    def call(self, sender: Sender, deadline: float = inf) -> "LoopCall":
        """Return a call of a sender, which the tasks of this context work on from now on."""
        account = self._accounts.get(sender) or self._open(sender)
        now = self.clock()
        if account is not self._last:
            if self._last is not None:
                self._shared_until = now + SHARED_FOR_S
            self._last = account
        call = LoopCall(self, account, deadline, now)
        CALL.set(call)
        return call

    def is_shared(self, now: float) -> bool:
        """Whether several senders have sent calls of late."""
        return now < self._shared_until

    def may_work(self, account: Account, now: float) -> bool:
        """Whether a call may begin or go on in this turn of the loop; if so, it has begun."""
        if self._waiting or now < self._shared_until:
            account.used_s = max(account.used_s, self._now)
            is_first = not self._waiting or account.used_s <= self._waiting[0][0]
            if not is_first or self._turn_s >= TURN_S:
                return False
            if self._waiting:
                self._light_at = now
        self._now = max(self._now, account.used_s)
        return True

    def charge(self, account: Account, seconds: float, paid_s: float) -> None:
        """Enter the seconds of a step, of which ``paid_s`` were entered before."""
        account.used_s += (seconds - paid_s) / account.weight
        self._turn_s += seconds
        if not paid_s:
            self._gap_s += seconds
        self._schedule_end()

    async def wait(self, account: Account, deadline: float) -> float:
        """Wait for the turn of an account; return the seconds that were entered for it.

        Raises DeadlineExceeded if it does not come in time.
        """
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        account.waiting.append(turn)
        if len(account.waiting) == 1:
            account.weight = self._weight_of(account.sender)  # it may have been set anew
            account.used_s = max(account.used_s, self._now)
            heappush(self._waiting, (account.used_s, next(_numbers), account))
        self._schedule_end()
        try:
            async with until(deadline):
                return await turn
        except TimeoutError as error:
            raise DeadlineExceeded("its turn did not come in time.") from error

    def _end_turn(self) -> None:
        """Choose who works in the next turn of the loop."""
        self._turn_s, self._has_turn = 0.0, False
        if self._waiting and not self._is_gap():
            self._gap, self._gap_s = 0, 0.0
            self._choose()
        if self._waiting:
            self._schedule_end()

    def _schedule_end(self) -> None:
        if not self._has_turn:
            self._has_turn = True
            asyncio.get_running_loop().call_soon(self._end_turn)

    def _is_gap(self) -> bool:
        """Whether those that wait leave one more turn to others, who may take as much time."""
        self._gap += 1
        return (
            self._gap <= GAP_TURNS
            and self._gap_s < self._waiting[0][2].step_s
            and self.clock() - self._light_at < LIGHT_FOR_S
        )

    def _choose(self) -> None:
        """Let the first of those that wait work, for about one step."""
        planned_s = 0.0
        while self._waiting and planned_s < SHARED_STEP_S:
            used_s, _, account = heappop(self._waiting)
            if account.used_s > used_s:  # its other calls have taken time since
                heappush(self._waiting, (account.used_s, next(_numbers), account))
                continue
            turn = self._first(account)
            if turn is None:
                continue
            self._now = max(self._now, used_s)
            planned_s += account.step_s
            account.used_s += account.step_s / account.weight
            if account.waiting:
                heappush(self._waiting, (account.used_s, next(_numbers), account))
            turn.set_result(account.step_s)

    @staticmethod
    def _first(account: Account) -> "asyncio.Future[float] | None":
        while account.waiting:
            turn = account.waiting.popleft()
            if not turn.done():  # else its call was given up
                return turn
        return None

    def _open(self, sender: Sender) -> Account:
        if len(self._accounts) >= MAX_ACCOUNTS:
            self._accounts = {each.sender: each for each in self._accounts.values() if each.waiting}
        account = self._accounts[sender] = Account(sender, self._weight_of(sender), self._now)
        return account

    def _weight_of(self, sender: Sender) -> float:
        part = PRIORITY_WEIGHTS[sender.priority] / PRIORITY_WEIGHTS[INTERACTIVE]
        return part * self._weight(sender.tenant)


class LoopCall:
    """A call that the event loop works on, in steps. ``deadline`` is on ``time.monotonic``."""

    __slots__ = (
        "_account", "_began_at", "_deadline", "_is_working", "_paid_s", "_shares", "is_over",
    )  # fmt: skip

    def __init__(
        self, shares: LoopShares, account: Account, deadline: float, began_at: float
    ) -> None:
        self._shares = shares
        self._account = account
        self._deadline = deadline
        self._began_at = began_at
        self._paid_s = 0.0  # of this step; 0 if it began without waiting
        self._is_working = True
        self.is_over = False

    @property
    def is_shared(self) -> bool:
        """Whether calls of others may wait for this one."""
        return self._shares.is_shared(self._shares.clock())

    @property
    def may_work(self) -> bool:
        """Whether the call may begin at once; if not, ``turn`` has to be awaited."""
        return self._shares.may_work(self._account, self._began_at)

    async def turn(self) -> None:
        """Wait until the sender is due; raise DeadlineExceeded if that takes too long."""
        self._is_working = False
        self._paid_s = await self._shares.wait(self._account, self._deadline)
        self.resume()

    async def rest(self) -> None:
        """End a step, and go on when the sender is due again."""
        self.pause()
        if self.is_shared:
            await self.turn()
        else:
            await asyncio.sleep(0)
            self.resume()

    def pause(self) -> None:
        """End a step: the call waits for something else."""
        if not self._is_working:
            return
        self._is_working = False
        taken_s = min(LONGEST_STEP_S, self._shares.clock() - self._began_at)
        if self._paid_s:
            self._account.step_s += (taken_s - self._account.step_s) / 8
        self._shares.charge(self._account, taken_s, self._paid_s)
        self._paid_s = 0.0

    def resume(self) -> None:
        """Begin a step without waiting."""
        self._began_at = self._shares.clock()
        self._is_working = True

    def end(self) -> None:
        """End the call."""
        self.pause()
        self.is_over = True


CALL: ContextVar[LoopCall | None] = ContextVar("call", default=None)
"""The call that the running task works on, for functions deep below its route."""


def current_call() -> LoopCall | None:
    """Return the call that the running task works on, if there is one.

    The context of a pipelined request has the call of the one before it, which is over.
    """
    call = CALL.get()
    return None if call is None or call.is_over else call


def until(deadline: float) -> asyncio.Timeout:
    """Return what raises TimeoutError at a time on ``time.monotonic``, which may be infinite."""
    return asyncio.timeout(None if deadline == inf else max(0.0, deadline - time.monotonic()))


@contextmanager
def waiting() -> Iterator[None]:
    """Count nothing in the block as work of the running task's call: it waits for others."""
    call = current_call()
    if call is None:
        yield
        return
    call.pause()
    try:
        yield
    finally:
        call.resume()
