"""The follower's part of quotas: slots, rates and leases, with a real Redis and without one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from peterrec.patches.identity import TenantId
from peterrec.patches.registry.records import Quotas, TenantEntry
from peterrec.patches.registry.registry import Registry, open_redis
from peterrec.patches.registry.shares import LEAST_SHARE, RESERVE
from peterrec.service.errors import RateExceeded
from peterrec.service.http.bound_tenant import BoundTenant
from peterrec.service.protocol.quota_table import (
    Bucket,
    Leased,
    QuotaTable,
    ServedTenant,
    name_number,
)
from peterrec.service.sync.quotas import QuotaKeeper
from peterrec.service.telemetry.events import Event, TenantAsked
from tests.waiting import soon

ACME, SHOP = TenantId("acme"), TenantId("shop")
NOWHERE = "redis://127.0.0.1:1"


class Replica:
    """A keeper with its table, and the events that it sends."""

    def __init__(self, folder: Path, url: str, prefix: str) -> None:
        folder.mkdir(exist_ok=True)
        self.registry = Registry(open_redis(url, retries=0), prefix)
        self.table = QuotaTable.open(folder / "quotas", worker_count=1)
        self.events: list[Event] = []
        self.keeper = QuotaKeeper(self.table, self.registry.shares, self.events.append)

    def place(self, **tenants: Quotas) -> dict[str, ServedTenant]:
        named = {TenantId(name): quotas for name, quotas in tenants.items()}
        entries = {name: TenantEntry(name, quotas=quotas) for name, quotas in named.items()}
        return dict(self.keeper.place(entries))

    def streams_in_use(self, tenant: TenantId) -> float:
        use = self.keeper.use_of(tenant)
        assert use is not None
        return use.streams

    def rate(self, served: ServedTenant, bucket: Bucket) -> float:
        assert served.slot is not None
        return 1 / self.table.numbers[self.table.start_of(served.slot) + bucket]

    def worker(self, served: ServedTenant) -> BoundTenant:
        return BoundTenant(self.table, self.table.own_cell(), served)


@asynccontextmanager
async def running(*replicas: Replica) -> AsyncIterator[None]:
    for replica in replicas:
        await replica.keeper.join()
    tasks = [asyncio.create_task(each.keeper.exchange_regularly()) for each in replicas]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for replica in replicas:
            await replica.keeper.leave()
            await replica.registry.close()
            replica.table.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]  # a coroutine function


def test_a_tenant_has_a_slot_as_long_as_it_has_quotas_for_requests(tmp_path):
    replica = Replica(tmp_path, NOWHERE, "test")
    placed = replica.place(acme=Quotas(rows_per_s=5), shop=Quotas(tasks=3))
    assert placed == {"acme": ServedTenant("acme", 1, rows_per_s=5)}
    both = replica.place(acme=Quotas(rows_per_s=6), shop=Quotas(streams=0))
    assert (both["acme"].slot, both["shop"].slot) == (1, 2)
    assert replica.rate(both["acme"], Bucket.ROWS) == pytest.approx(6)
    assert replica.place() == {}
    again = replica.place(acme=Quotas(rows_per_s=7))
    assert again["acme"].slot == 3  # calls of before may still write to the others
    replica.table.close()


def test_a_new_quota_keeps_what_is_lacking_and_a_deleted_tenant_begins_anew(tmp_path):
    replica = Replica(tmp_path, NOWHERE, "test")
    served = replica.place(acme=Quotas(rows_per_s=10))["acme"]
    replica.worker(served).draw_rows(1000)
    served = replica.place(acme=Quotas(rows_per_s=20))["acme"]
    assert b";r=0;t=" in dict(replica.worker(served).predict_fields())[b"ratelimit"]
    replica.place()
    served = replica.place(acme=Quotas(rows_per_s=20))["acme"]
    assert dict(replica.worker(served).predict_fields())[b"ratelimit"] == b'"rows";r=20;t=1'
    replica.table.close()


def test_replicas_share_by_what_they_are_asked_for_and_tell_each_other_what_is_used(
    redis_url, tmp_path
):
    async def work() -> None:
        prefix = f"test-{uuid4().hex}"
        one, other = (Replica(tmp_path / name, redis_url, prefix) for name in ("a", "b"))
        async with running(one, other):
            quotas = Quotas(requests_per_s=100, waiting_rows=100, streams=5)
            here, there = one.place(acme=quotas)["acme"], other.place(acme=quotas)["acme"]
            busy, idle = one.worker(here), other.worker(there)

            def is_shifted() -> bool:
                with suppress(RateExceeded):
                    while True:
                        busy.draw_request()
                shares = [one.keeper.shares_of(ACME), other.keeper.shares_of(ACME)]
                return [each["requests"] for each in shares] == pytest.approx(
                    [1 - RESERVE / 2, RESERVE / 2]
                )

            await soon(is_shifted, 20)
            assert one.rate(here, Bucket.REQUESTS) == pytest.approx(100 * (1 - RESERVE / 2))
            assert other.rate(there, Bucket.REQUESTS) == pytest.approx(100 * RESERVE / 2)
            with idle.stream():
                await soon(lambda: one.streams_in_use(ACME) == 1, 20)
                place = one.table.start_of(1) + Leased.STREAMS_ELSEWHERE
                assert one.table.numbers[place] == 1
            assert any(isinstance(e, TenantAsked) and e.admitted["requests"] for e in one.events)

    run(work)


def test_a_replica_that_comes_late_begins_with_little(redis_url, tmp_path):
    async def work() -> None:
        prefix = f"test-{uuid4().hex}"
        one, late = (Replica(tmp_path / name, redis_url, prefix) for name in ("a", "b"))
        one.place(acme=Quotas(requests_per_s=1000))
        async with running(one):
            await soon(lambda: one.keeper.shares_of(ACME)["requests"] == 1, 20)
            await late.keeper.join()
            served = late.place(acme=Quotas(requests_per_s=1000))["acme"]
            assert late.rate(served, Bucket.REQUESTS) == pytest.approx(1000 * LEAST_SHARE)
        await late.registry.close()
        late.table.close()

    run(work)


def test_while_redis_is_away_the_last_shares_hold(tmp_path):
    async def work() -> None:
        replica = Replica(tmp_path, NOWHERE, "test")
        served = replica.place(acme=Quotas(requests_per_s=10))["acme"]
        async with running(replica):
            worker = replica.worker(served)
            worker.draw_request()
            await soon(lambda: bool(replica.events), 20)  # it looks all the same
            assert replica.rate(served, Bucket.REQUESTS) == pytest.approx(10)
            assert replica.events == [TenantAsked("acme", {"requests": 1}, {})]

    run(work)


def test_a_new_device_process_finds_the_slots_and_shares_of_the_one_before(tmp_path):
    before = Replica(tmp_path, NOWHERE, "test")
    served = before.place(shop=Quotas(streams=1), acme=Quotas(rows_per_s=10))["acme"]
    before.worker(served).draw_rows(500)
    before.table.numbers[before.table.start_of(2) + Leased.SHARES + 2] = 0.5
    after = Replica(tmp_path, NOWHERE, "test")
    again = after.place(acme=Quotas(rows_per_s=10))["acme"]
    assert again == served
    assert after.keeper.shares_of(ACME)["rows"] == 0.5
    assert after.rate(again, Bucket.ROWS) == pytest.approx(5)
    assert b";r=0;t=" in dict(after.worker(again).predict_fields())[b"ratelimit"]
    assert name_number(SHOP) in after.table.known()
    for replica in (before, after):
        replica.table.close()
