"""One part of work at a time, and tenants take turns whatever each of them asks for."""

import asyncio
import time
from itertools import pairwise

import pytest

from peterrec.service.errors import DeadlineExceeded
from peterrec.service.predict.turns import Turns

PATIENCE_S = 20.0


def later() -> float:
    return time.monotonic() + PATIENCE_S


async def work(turns: Turns, tenant: str, parts: int, seen: list[str]) -> None:
    for _ in range(parts):
        async with turns.turn(tenant, later()):
            seen.append(tenant)
            await asyncio.sleep(0)


async def test_a_tenant_with_one_call_is_not_kept_waiting_by_one_with_many():
    turns, seen = Turns(), list[str]()
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(work(turns, "greedy", 5, seen))
        await asyncio.sleep(0)
        group.create_task(work(turns, "neighbour", 5, seen))
    places = [at for at, tenant in enumerate(seen) if tenant == "neighbour"]
    assert len(seen) == 105
    assert [after - before for before, after in pairwise(places)] == [2] * 4
    assert places[0] <= 3


async def test_only_one_part_runs_at_a_time():
    turns, running, most = Turns(), 0, 0

    async def part() -> None:
        nonlocal running, most
        async with turns.turn("a", later()):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    await asyncio.gather(*(part() for _ in range(20)))
    assert most == 1


async def test_a_turn_that_does_not_come_in_time_is_an_error_and_the_next_one_comes():
    turns = Turns()
    async with turns.turn("a", later()):
        with pytest.raises(DeadlineExceeded):
            async with turns.turn("b", time.monotonic()):
                pass
    async with turns.turn("b", later()):
        pass


async def test_a_client_that_leaves_does_not_take_its_turn_along():
    turns = Turns()
    async with turns.turn("a", later()):
        left = asyncio.create_task(work(turns, "b", 1, []))
        stays = asyncio.create_task(work(turns, "c", 1, []))
        await asyncio.sleep(0)
        left.cancel()
    await asyncio.wait_for(stays, PATIENCE_S)


async def test_a_turn_that_comes_in_the_moment_of_leaving_goes_to_the_next_one():
    turns = Turns()
    stays: asyncio.Task[None]
    async with turns.turn("a", later()):
        left = asyncio.create_task(work(turns, "b", 1, []))
        stays = asyncio.create_task(work(turns, "c", 1, []))
        await asyncio.sleep(0)
    left.cancel()  # it has the turn already, but has not run since
    await asyncio.wait_for(stays, PATIENCE_S)


async def test_a_part_that_fails_gives_its_turn_back():
    turns = Turns()
    with pytest.raises(ValueError, match="no"):
        async with turns.turn("a", later()):
            raise ValueError("no")
    async with turns.turn("a", later()):
        pass
