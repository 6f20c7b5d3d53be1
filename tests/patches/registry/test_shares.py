"""Replicas lease shares of a tenant's quotas from each other."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest

from peterrec.patches.errors import RegistryUnavailable
from peterrec.patches.identity import TenantId
from peterrec.patches.registry.registry import Registry, open_redis
from peterrec.patches.registry.shares import LEAST_SHARE, RESERVE, Lease, Report, ShareStore, Use

ACME, SHOP = TenantId("acme"), TenantId("shop")


def run(redis_url: str, work: Callable[[ShareStore], Awaitable[None]]) -> None:
    async def with_store() -> None:
        registry = Registry(open_redis(redis_url), f"test-{uuid4().hex}")
        try:
            await work(registry.shares)
        finally:
            await registry.close()

    asyncio.run(with_store())


async def tell(
    store: ShareStore, replica: str, asked: float, used: Use = Use(), tenant: TenantId = ACME
) -> Lease:
    _, (lease,) = await store.exchange(replica, [Report(tenant, (asked, 0.0, asked), used)])
    return lease


def test_a_replica_alone_has_all_of_every_quota(redis_url):
    async def work(store: ShareStore) -> None:
        assert (await tell(store, "a", 0.0)).shares == (1, 1, 1)
        assert (await tell(store, "a", 5.0)).shares == (1, 1, 1)
        assert await store.exchange("a", []) == (1, ())
        assert await store.exchange("b", []) == (2, ())

    run(redis_url, work)


def test_nothing_is_leased_twice_and_a_newcomer_waits_until_something_is_given_back(redis_url):
    async def work(store: ShareStore) -> None:
        await tell(store, "a", 10.0)
        assert (await tell(store, "b", 10.0)).shares[0] == LEAST_SHARE
        assert (await tell(store, "a", 10.0)).shares[0] == pytest.approx(0.5)
        assert (await tell(store, "b", 10.0)).shares[0] == pytest.approx(0.5)

    run(redis_url, work)


def test_shares_follow_what_replicas_are_asked_for_and_an_idle_one_keeps_a_little(redis_url):
    async def work(store: ShareStore) -> None:
        for _ in range(3):
            busy = await tell(store, "a", 30.0)
            less = await tell(store, "b", 10.0)
            idle = await tell(store, "c", 0.0)
        assert busy.shares[0] == pytest.approx(0.75 * (1 - RESERVE) + RESERVE / 3)
        assert less.shares[0] == pytest.approx(0.25 * (1 - RESERVE) + RESERVE / 3)
        assert idle.shares[0] == pytest.approx(RESERVE / 3)
        assert busy.shares[0] + less.shares[0] + idle.shares[0] == pytest.approx(1)
        assert idle.shares[1] == pytest.approx(1 / 3)  # nobody asks for that

    run(redis_url, work)


def test_what_nobody_asks_for_is_shared_equally(redis_url):
    async def work(store: ShareStore) -> None:
        for _ in range(3):
            some = await tell(store, "a", 0.2)
            less = await tell(store, "b", 0.1)
        assert some.shares[0] == pytest.approx(0.2 + 0.7 / 2)
        assert less.shares[0] == pytest.approx(0.1 + 0.7 / 2)

    run(redis_url, work)


def test_a_replica_that_leaves_gives_everything_back(redis_url):
    async def work(store: ShareStore) -> None:
        for replica in ("a", "b", "a", "b"):
            await tell(store, replica, 10.0, Use(streams=2))
        await store.leave("b")
        alone = await tell(store, "a", 10.0)
        assert alone.shares[0] == 1
        assert alone.elsewhere == Use()

    run(redis_url, work)


def test_each_replica_learns_what_the_others_use_and_all_of_it_can_be_read(redis_url):
    async def work(store: ShareStore) -> None:
        await tell(store, "a", 1.0, Use(1.5, 0, 2, 3, 4))
        await tell(store, "a", 1.0, Use(9, 9, 9, 9, 9), SHOP)
        assert (await tell(store, "b", 1.0, Use(streams=1))).elsewhere == Use(1.5, 0, 2, 3, 4)
        assert await store.use_of(ACME) == Use(1.5, 0, 2, 3, 5)
        assert await store.use_of(TenantId("nobody")) == Use()

    run(redis_url, work)


def test_without_redis_the_caller_is_told(redis_url):
    async def work() -> None:
        registry = Registry(open_redis("redis://127.0.0.1:1", retries=0), "test")
        with pytest.raises(RegistryUnavailable):
            await registry.shares.exchange("a", [])
        await registry.close()

    asyncio.run(work())
