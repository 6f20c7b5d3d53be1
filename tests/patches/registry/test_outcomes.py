"""What replicas share of outcomes, in a real Redis: bounded, and gone with its tenant."""

import asyncio

from peterrec.patches.identity import TaskId, TaskRef, TenantId
from peterrec.patches.registry import outcomes as module
from peterrec.patches.registry.outcomes import PROD, Hits
from peterrec.patches.registry.records import TaskOptions
from peterrec.patches.registry.registry import Registry
from tests.waiting import soon

ACME, OTHER = TenantId("acme"), TenantId("other")
FILMS = TaskRef(ACME, TaskId("films"))


async def test_there_is_one_secret_for_all_replicas(registry: Registry):
    first = await registry.outcomes.secret(b"a" * 32)
    assert first == b"a" * 32
    assert await registry.outcomes.secret(b"b" * 32) == first


async def test_a_mark_is_taken_once_also_within_a_call(registry: Registry):
    assert await registry.outcomes.claim(ACME, ["a", "b", "a"]) == [True, True, False]
    assert await registry.outcomes.claim(ACME, ["b", "c"]) == [False, True]
    assert await registry.outcomes.claim(OTHER, ["a"]) == [True]


async def test_marks_are_bounded_and_the_newest_are_remembered(registry, monkeypatch):
    monkeypatch.setattr(module, "MOST_MARKS", 10)
    for number in range(95):
        await registry.outcomes.claim(ACME, [f"mark-{number}"])
    newest = [f"mark-{number}" for number in range(85, 95)]
    assert not any(await registry.outcomes.claim(ACME, newest))
    assert await registry.outcomes.claim(ACME, ["mark-0"]) == [True]
    assert await _count(registry, "scard", "told") <= 20


async def test_the_last_answer_to_a_user_is_recalled(registry: Registry):
    await registry.outcomes.remember(ACME, {"u1": "one", "u2": "two"})
    await registry.outcomes.remember(ACME, {"u1": "three"})
    assert await registry.outcomes.recall(ACME, ["u1", "u2", "u3"]) == ["three", "two", None]
    assert await registry.outcomes.recall(OTHER, ["u1"]) == [None]


async def test_remembered_answers_are_bounded_and_newer_ones_win(registry, monkeypatch):
    monkeypatch.setattr(module, "MOST_USERS", 10)
    await registry.outcomes.remember(ACME, {"again": "old"})
    for number in range(95):
        await registry.outcomes.remember(ACME, {f"u{number}": "x"})
    assert await registry.outcomes.recall(ACME, ["again", "u0", "u94"]) == [None, None, "x"]
    await registry.outcomes.remember(ACME, {"u94": "newer"})
    assert await registry.outcomes.recall(ACME, ["u94"]) == ["newer"]
    assert await _count(registry, "hlen", "answered") <= 2 * 11


async def test_remembered_answers_end_with_their_time(registry, monkeypatch):
    monkeypatch.setattr(module, "ANSWERS_KEPT_S", 0.2)
    await registry.outcomes.remember(ACME, {"u1": "one"})
    async with asyncio.timeout(10):
        while await registry.outcomes.recall(ACME, ["u1"]) != [None]:
            await registry.outcomes.remember(ACME, {"u2": "kept up to date"})


async def test_hits_of_all_replicas_are_summed_within_the_window(registry: Registry):
    canary = "c" * 64
    await registry.outcomes.count_hits(FILMS, 7, 300, {PROD: Hits(4, 2.5), canary: Hits(1, 1.0)})
    found = await registry.outcomes.count_hits(FILMS, 7, 300, {canary: Hits(2, 0.0)})
    assert found == {PROD: Hits(4, 2.5), canary: Hits(3, 1.0)}
    assert await registry.outcomes.count_hits(FILMS, 8, 300, {}) == {}


async def test_hits_leave_the_window(registry: Registry):
    await registry.outcomes.count_hits(FILMS, 7, 1, {PROD: Hits(4, 2.5)})

    async def has_left() -> bool:
        return PROD not in await registry.outcomes.count_hits(FILMS, 7, 1, {"c": Hits(1, 1.0)})

    await soon(has_left)


async def _count(registry: Registry, command: str, name: str) -> int:
    redis, key = registry.store.redis, registry.store.key
    keys = (key(f"{name}_{age}", ACME) for age in ("newest", "older"))
    return sum([await getattr(redis, command)(each) for each in keys])


async def test_a_tenant_s_outcomes_are_forgotten_with_it(registry: Registry):
    await registry.put_task(ACME, TaskId("films"), TaskOptions(), "ann")
    await registry.outcomes.claim(ACME, ["a"])
    await registry.outcomes.remember(ACME, {"u1": "one"})
    await registry.tenants.delete(ACME, "ann")
    assert await registry.outcomes.recall(ACME, ["u1"]) == [None]
    assert await registry.outcomes.claim(ACME, ["a"]) == [True]
