"""Tenants share an event loop by the time that their calls take, one short step after another."""

import asyncio
import time
from collections.abc import Callable
from contextvars import Context

import pytest

from peterrec.service.errors import DeadlineExceeded
from peterrec.service.predict.loop_shares import (
    LONGEST_STEP_S,
    MAX_ACCOUNTS,
    SHARED_FOR_S,
    SHARED_STEP_S,
    LoopShares,
    current_call,
    waiting,
)
from peterrec.service.predict.pace import Pace
from peterrec.service.protocol.sender import BATCH, Sender

GREEDY, POLITE = Sender("greedy"), Sender("polite")


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


class Loop:
    """Calls that work on one loop, and the senders of their steps in order."""

    def __init__(self, weight: Callable[[str], float] = lambda tenant: 1.0) -> None:
        self.clock = Clock()
        self.shares = LoopShares(weight, self.clock)
        self.steps: list[str] = []

    async def work(self, sender: Sender, steps: int, step_s: float = SHARED_STEP_S) -> None:
        """Begin a call and work on it."""
        call = self.shares.call(sender)
        if not call.may_work:
            await call.turn()
        for step in range(steps):
            if step:
                await call.rest()
            self.clock.now += step_s
            self.steps.append(sender.tenant)
        call.end()

    def start(
        self, sender: Sender, steps: int, step_s: float = SHARED_STEP_S
    ) -> asyncio.Task[None]:
        """Work on a call in a task and a context of its own, as requests do."""
        return asyncio.create_task(self.work(sender, steps, step_s), context=Context())

    def used_s(self, sender: Sender) -> float:
        return self.shares._accounts[sender].used_s


async def test_a_call_of_a_lone_sender_never_waits():
    loop = Loop()
    for _ in range(100):
        call = loop.shares.call(GREEDY)
        assert call.may_work
        loop.clock.now += 0.004
        call.end()


async def test_a_small_call_waits_for_few_steps_of_another_tenants_many_large_ones():
    loop = Loop()
    others = [loop.start(GREEDY, 50) for _ in range(16)]
    await asyncio.sleep(0)
    await loop.start(POLITE, 1)
    for _ in range(20):  # while large calls of the other one are in progress
        before = len(loop.steps)
        await loop.start(POLITE, 1)
        assert loop.steps.index("polite", before) - before <= 2
    await asyncio.gather(*others)
    assert loop.steps.count("greedy") == 16 * 50


async def test_two_that_ask_for_much_get_the_same_time_whatever_their_number_of_calls():
    loop = Loop()
    tasks = [loop.start(GREEDY, 40) for _ in range(10)] + [loop.start(POLITE, 40)]
    await tasks[-1]
    assert 38 <= loop.steps.count("greedy") <= 60  # before the first two were known, ten began
    await asyncio.gather(*tasks)


async def test_shares_are_by_time_and_not_by_steps():
    loop = Loop()
    short = [loop.start(GREEDY, 40, 0.25 * SHARED_STEP_S) for _ in range(16)]
    await loop.start(POLITE, 80)
    assert loop.steps.count("greedy") == pytest.approx(320, rel=0.15)
    await asyncio.gather(*short)


async def test_a_weight_says_how_much_time_a_tenant_gets():
    loop = Loop(lambda tenant: 3.0 if tenant == "greedy" else 1.0)
    tasks = [loop.start(GREEDY, 400), loop.start(POLITE, 60)]
    await tasks[1]
    assert loop.steps.count("greedy") == pytest.approx(180, rel=0.15)
    await tasks[0]


async def test_batch_calls_get_a_tenth_beside_interactive_ones():
    loop = Loop()
    tasks = [loop.start(Sender("polite"), 180), loop.start(Sender("greedy", BATCH), 200)]
    await tasks[0]
    assert loop.steps.count("greedy") == pytest.approx(20, abs=6)
    await tasks[1]


async def test_who_was_away_saves_nothing_up():
    loop = Loop()
    await loop.start(GREEDY, 1)
    await loop.start(POLITE, 400)
    tasks = [loop.start(GREEDY, 100), loop.start(POLITE, 100)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert loop.steps[401:].count("polite") >= 90
    await asyncio.gather(*tasks)


async def test_time_in_which_a_call_waits_for_the_device_is_not_its_own():
    loop = Loop()
    call = loop.shares.call(GREEDY)
    assert call.may_work
    loop.clock.now += 0.001
    call.pause()
    loop.clock.now += 5
    call.resume()
    loop.clock.now += 0.002
    call.end()
    call.end()
    assert loop.used_s(GREEDY) == pytest.approx(0.003)


async def test_time_in_which_a_call_waits_for_others_is_not_its_own():
    loop = Loop()
    call = loop.shares.call(GREEDY)
    assert call.may_work
    loop.clock.now += 0.001
    with waiting():
        loop.clock.now += 5
    loop.clock.now += 0.002
    call.end()
    assert loop.used_s(GREEDY) == pytest.approx(0.003)
    with waiting():
        pass  # in tasks without a call, too


async def test_a_step_that_waited_for_something_counts_for_little():
    loop = Loop()
    call = loop.shares.call(GREEDY)
    assert call.may_work
    loop.clock.now += 60
    call.end()
    assert loop.used_s(GREEDY) == pytest.approx(LONGEST_STEP_S)


async def test_the_loop_is_not_shared_any_more_once_the_others_are_gone():
    loop = Loop()
    await loop.start(GREEDY, 1)
    await loop.start(POLITE, 1)
    call = loop.shares.call(POLITE)
    assert call.is_shared
    loop.clock.now += SHARED_FOR_S
    assert not call.is_shared


async def test_a_turn_that_does_not_come_in_time_ends_the_call_alone():
    shares = LoopShares()
    await asyncio.create_task(_begin(shares, POLITE), context=Context())
    first = shares.call(GREEDY)
    assert first.may_work
    _work(0.003)  # more than one turn of the loop has room for
    first.pause()
    late = shares.call(POLITE, time.monotonic() - 1)
    assert not late.may_work
    with pytest.raises(DeadlineExceeded):
        await late.turn()
    other = shares.call(GREEDY, time.monotonic() + 20)
    if not other.may_work:
        await other.turn()


async def test_a_call_that_is_given_up_leaves_its_place_to_the_next():
    loop = Loop()
    tasks = [loop.start(GREEDY, 5) for _ in range(4)] + [loop.start(POLITE, 5) for _ in range(4)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[6].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(task.cancelled() for task in tasks) == 2
    assert len(loop.steps) >= 30


async def test_accounts_of_senders_that_come_once_are_forgotten():
    loop = Loop()
    for number in range(3 * MAX_ACCOUNTS):
        await loop.start(Sender(f"tenant-{number}"), 1)
    assert len(loop.shares._accounts) <= MAX_ACCOUNTS + 1


async def test_long_work_rests_when_its_sender_is_due_and_not_just_for_a_moment():
    loop = Loop()
    await loop.start(POLITE, 1)
    loop.shares.call(GREEDY)
    pace = Pace()
    assert not pace.is_due
    _work(2 * SHARED_STEP_S)
    assert pace.is_due, "the loop is shared, so half a millisecond is enough"
    assert current_call() is not None
    await pace.rest()
    assert not pace.is_due


async def test_a_later_request_of_a_connection_does_not_work_on_the_account_of_an_earlier_one():
    loop = Loop()
    call = loop.shares.call(GREEDY)
    assert current_call() is call
    call.end()
    assert current_call() is None


async def _begin(shares: LoopShares, sender: Sender) -> None:
    shares.call(sender).end()


def _work(seconds: float) -> None:
    """Keep the loop busy."""
    time.sleep(seconds)
