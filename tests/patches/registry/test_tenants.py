"""Tenants: what they use is counted in the step that changes it, and all of one can be erased."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from peterrec.patches.errors import (
    BlobMissing,
    BundleQuotaExceeded,
    InvalidQuota,
    InvalidWeight,
    KeyNotFound,
    QuotaExceeded,
    StaleTenant,
    TaskNotFound,
    TenantNotFound,
    TenantProtected,
)
from peterrec.patches.identity import DEFAULT_TENANT, Blob, Digest, TaskId, TenantId
from peterrec.patches.registry.api_keys import Scope
from peterrec.patches.registry.records import (
    MAX_QUOTA,
    EventAction,
    Quotas,
    TaskOptions,
    TenantOptions,
    Usage,
)
from peterrec.patches.registry.registry import Registry
from tests.patches.redis_servers import is_stored
from tests.patches.registry.test_registry import SUMMARY

ACME, RIVAL = TenantId("acme"), TenantId("rival")
FILMS, BOOKS = TaskId("films"), TaskId("books")
CONTENTS = [b"one", b"two", b"three"]
DIGESTS = [Blob(content).digest for content in CONTENTS]
ONE = replace(SUMMARY, size_bytes=100, head_bytes=10)


async def store(registry: Registry) -> None:
    for content in CONTENTS:
        await registry.blobs.put(Blob(content))


async def add(
    registry: Registry, tenant: TenantId, task: TaskId, digest: Digest, alias: str | None = "prod"
) -> None:
    await registry.add_version(tenant, task, digest, ONE, "ann", alias, allow_new_outputs=True)


async def bound(registry: Registry, tenant: TenantId, **quotas: int) -> None:
    await registry.tenants.put(tenant, TenantOptions("", Quotas(**quotas)), "ops")


async def usage(registry: Registry, tenant: TenantId) -> Usage:
    return (await registry.tenants.get(tenant)).usage


async def test_every_change_counts_what_it_adds_and_removes(registry: Registry) -> None:
    await store(registry)
    await registry.put_task(ACME, FILMS, TaskOptions(), "ann")
    await add(registry, ACME, FILMS, DIGESTS[0])
    await add(registry, ACME, FILMS, DIGESTS[1])
    await add(registry, ACME, FILMS, DIGESTS[1], "next")  # registered already
    await add(registry, ACME, BOOKS, DIGESTS[0])
    created = await registry.keys.create(ACME, [Scope("predict")], "shop")
    assert await usage(registry, ACME) == Usage(2, 3, 300, 30, 180, 1)
    await registry.delete_version(ACME, FILMS, DIGESTS[0], "ann")
    assert await usage(registry, ACME) == Usage(2, 2, 200, 20, 120, 1)
    await registry.delete_task(ACME, FILMS, "ann")
    await registry.keys.revoke(ACME, created.record.key_id)
    assert await usage(registry, ACME) == Usage(1, 1, 100, 10, 60, 0)
    await registry.delete_task(ACME, BOOKS, "ann")
    with pytest.raises(TenantNotFound):  # nothing is left, and nobody has put it
        await registry.tenants.get(ACME)


async def test_a_registry_without_counts_is_counted_at_the_first_change(
    registry: Registry, redis: Redis
) -> None:
    await store(registry)
    await add(registry, ACME, FILMS, DIGESTS[0])
    await registry.keys.create(ACME, [Scope("predict")], "shop")
    await redis.delete(registry.store.key("tenants"))
    assert await usage(registry, ACME) == Usage(1, 1, 100, 10, 60, 1)
    assert [record.tenant for record in await registry.tenants.list()] == [ACME, DEFAULT_TENANT]
    await bound(registry, ACME, versions=1)
    with pytest.raises(QuotaExceeded, match="may have 1 versions and has 1; 1 more"):
        await add(registry, ACME, FILMS, DIGESTS[1])
    await registry.delete_task(ACME, FILMS, "ann")
    assert await usage(registry, ACME) == Usage(0, 0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    "quotas",
    [
        {"tasks": 1},
        {"versions": 2},
        {"bundle_bytes": 299},
        {"head_bytes": 29},
        {"patch_bytes": 179},
    ],
    ids=lambda quotas: next(iter(quotas)),
)
async def test_what_would_exceed_a_quota_changes_nothing(
    registry: Registry, quotas: dict[str, int]
) -> None:
    await store(registry)
    await bound(registry, ACME, **quotas)
    await add(registry, ACME, FILMS, DIGESTS[0])
    if "tasks" not in quotas:
        await add(registry, ACME, BOOKS, DIGESTS[1])
    before, used = await registry.feed.revision(), await usage(registry, ACME)
    with pytest.raises(QuotaExceeded) as refused:
        await add(registry, ACME, TaskId("games"), DIGESTS[2])
    assert (refused.value.code, refused.value.category) == ("quota_exceeded", "no_room")
    assert await registry.feed.revision() == before
    assert await usage(registry, ACME) == used
    await add(registry, ACME, FILMS, DIGESTS[0], "next")  # what is there can still be used
    await add(registry, RIVAL, FILMS, DIGESTS[2])


@pytest.mark.parametrize("quota", ["outputs", "row_work", "answer_bytes"])
async def test_a_bundle_that_costs_more_than_the_tenants_may_is_refused(
    registry: Registry, quota: str
) -> None:
    await store(registry)
    costly = replace(ONE, outputs=9, row_work=8.5, answer_bytes=9)
    await bound(registry, ACME, **{quota: 8})
    await add(registry, ACME, FILMS, DIGESTS[0])
    match = f"may have 8 {quota.replace('_', ' ')}; this one has 9"
    with pytest.raises(BundleQuotaExceeded, match=match):
        await registry.add_version(ACME, FILMS, DIGESTS[1], costly, "ann", "prod")
    await bound(registry, ACME, **{quota: 9})
    await registry.add_version(ACME, FILMS, DIGESTS[1], costly, "ann", "prod")
    await bound(registry, ACME, **{quota: 0})
    await add(registry, ACME, FILMS, DIGESTS[1], "next")  # what is there can still be used


async def test_keys_and_empty_tasks_have_quotas_too(registry: Registry) -> None:
    await bound(registry, ACME, keys=1, tasks=0)
    await registry.keys.create(ACME, [Scope("predict")], "shop")
    with pytest.raises(QuotaExceeded, match="may have 1 keys"):
        await registry.keys.create(ACME, [Scope("predict")], "shop")
    with pytest.raises(QuotaExceeded, match="may have 0 tasks"):
        await registry.put_task(ACME, FILMS, TaskOptions(), "ann")


async def test_of_many_registrations_at_once_no_more_pass_than_the_quota_allows(
    registry: Registry,
) -> None:
    await bound(registry, ACME, tasks=5)
    made = await asyncio.gather(
        *(registry.put_task(ACME, TaskId(f"t{n}"), TaskOptions(), "ann") for n in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(each, QuotaExceeded) for each in made) == 15
    assert (await usage(registry, ACME)).tasks == 5


async def test_a_quota_below_what_is_used_only_prevents_more(registry: Registry) -> None:
    await store(registry)
    await add(registry, ACME, FILMS, DIGESTS[0])
    await add(registry, ACME, BOOKS, DIGESTS[1])
    await bound(registry, ACME, versions=1)
    assert (await usage(registry, ACME)).versions == 2
    await registry.delete_task(ACME, BOOKS, "ann")
    assert not await registry.tenants.has_room(ACME, 1)
    await registry.delete_task(ACME, FILMS, "ann")
    assert await registry.tenants.has_room(ACME, 1)
    await add(registry, ACME, BOOKS, DIGESTS[1])


async def test_a_tenant_is_put_once_and_changed_by_who_has_seen_it(registry: Registry) -> None:
    options = TenantOptions("films", Quotas(tasks=3))
    assert await registry.tenants.put(ACME, options, "ops", if_match=0) == (1, True)
    assert await registry.tenants.put(ACME, options, "ops") == (1, False)
    with pytest.raises(StaleTenant):
        await registry.tenants.put(ACME, TenantOptions(), "ops", if_match=0)
    assert await registry.tenants.put(ACME, TenantOptions(), "ops", if_match=1) == (2, False)
    assert (await registry.tenants.get(ACME)).options == TenantOptions()
    events = await registry.feed.events()
    assert [(event.action, event.tenant, event.quotas) for event in events] == [
        (EventAction.PUT_TENANT, ACME, Quotas(tasks=3)),
        (EventAction.PUT_TENANT, ACME, Quotas()),
    ]


async def test_a_tenants_weight_is_kept_told_to_replicas_and_in_the_trail(
    registry: Registry,
) -> None:
    await registry.tenants.put(ACME, TenantOptions(weight=2.5), "ops")
    await registry.tenants.put(RIVAL, TenantOptions(), "ops")
    assert (await registry.tenants.get(ACME)).options.weight == 2.5
    snapshot = await registry.feed.snapshot()
    assert {name: each.weight for name, each in snapshot.tenants.items()} == {ACME: 2.5, RIVAL: 1}
    assert (await registry.tenants.put(ACME, TenantOptions(weight=2.5), "ops")).revision == 1
    assert (await registry.tenants.put(ACME, TenantOptions(weight=3), "ops")).revision == 3
    assert [event.weight for event in await registry.feed.events()] == [2.5, 1, 3]


@pytest.mark.parametrize("weight", [0.0, -1.0, 0.001, 1000.0, float("nan"), float("inf")])
async def test_a_weight_outside_its_bounds_is_refused(registry: Registry, weight: float) -> None:
    with pytest.raises(InvalidWeight):
        await registry.tenants.put(ACME, TenantOptions(weight=weight), "ops")


@pytest.mark.parametrize("limit", [-1, MAX_QUOTA + 1])
async def test_a_quota_that_redis_could_not_count_is_refused(
    registry: Registry, limit: int
) -> None:
    with pytest.raises(InvalidQuota):
        await bound(registry, ACME, tasks=limit)


async def test_a_deleted_tenant_leaves_nothing_but_the_trail(
    registry: Registry, redis: Redis, redis_prefix: str
) -> None:
    await store(registry)
    await bound(registry, ACME, tasks=5)
    await add(registry, ACME, FILMS, DIGESTS[0])
    await add(registry, ACME, BOOKS, DIGESTS[0])
    await add(registry, ACME, BOOKS, DIGESTS[1])
    await add(registry, RIVAL, FILMS, DIGESTS[1])
    _, record, _ = await registry.keys.create(ACME, [Scope("admin")], "boss")
    deleted = await registry.tenants.delete(ACME, "ops")
    assert deleted.erased == (2, 3, 1, 1)
    await registry.blobs.collect(dry_run=False)
    assert not await is_stored(registry, DIGESTS[0])
    assert await is_stored(registry, DIGESTS[1])
    snapshot = await registry.feed.snapshot()
    assert {ref.tenant for ref in snapshot.tasks} == {RIVAL}
    assert snapshot.keys == {}
    assert snapshot.last_deletion == deleted.revision
    left = [key async for key in redis.scan_iter(f"*{redis_prefix}*", 1000) if b"acme" in key]
    assert left == []
    last = (await registry.feed.events())[-1]
    assert (last.action, last.tenant, last.actor) == (EventAction.DELETE_TENANT, ACME, "ops")
    assert last.note == "2 tasks, 3 versions, 1 keys, 1 bundles erased"
    assert await usage(registry, RIVAL) == Usage(1, 1, 100, 10, 60, 0)
    with pytest.raises(TenantNotFound):
        await registry.tenants.delete(ACME, "ops")
    with pytest.raises(KeyNotFound):
        await registry.keys.revoke(ACME, record.key_id)


async def test_a_late_change_does_not_bring_a_deleted_tenant_back(registry: Registry) -> None:
    await store(registry)
    await add(registry, ACME, FILMS, DIGESTS[0])
    await registry.tenants.delete(ACME, "ops")
    with pytest.raises(TenantNotFound):
        await add(registry, ACME, FILMS, DIGESTS[1])
    with pytest.raises(TenantNotFound):
        await registry.put_task(ACME, FILMS, TaskOptions(), "ann")
    with pytest.raises(TenantNotFound):
        await registry.keys.create(ACME, [Scope("predict")], "shop")
    with pytest.raises(TaskNotFound):
        await registry.rollback(ACME, FILMS, "ann")


async def test_a_deleted_tenant_can_be_made_again_and_begins_empty(registry: Registry) -> None:
    await store(registry)
    await bound(registry, ACME, versions=1)
    await add(registry, ACME, FILMS, DIGESTS[0])
    await registry.tenants.delete(ACME, "ops")
    known = await registry.feed.snapshot()
    assert (await registry.tenants.put(ACME, TenantOptions(), "ops")).was_created
    assert await usage(registry, ACME) == Usage()
    await add(registry, ACME, FILMS, DIGESTS[1])
    now = await registry.feed.catch_up(known)
    assert now.last_deletion == known.last_deletion > 0
    assert not now.tenants[ACME].is_deleted
    assert replace(now, touched=None) == await registry.feed.snapshot()


async def test_a_bundle_of_the_deleted_tenant_has_to_be_stored_again(registry: Registry) -> None:
    await store(registry)
    await add(registry, ACME, FILMS, DIGESTS[0])
    await registry.tenants.delete(ACME, "ops")
    with pytest.raises(BlobMissing):
        await add(registry, RIVAL, FILMS, DIGESTS[0])
    await registry.blobs.put(Blob(CONTENTS[0]))
    await add(registry, RIVAL, FILMS, DIGESTS[0])
    await registry.blobs.collect(dry_run=False)
    assert await is_stored(registry, DIGESTS[0])


async def test_the_operators_own_tenant_is_not_deleted(registry: Registry) -> None:
    with pytest.raises(TenantProtected):
        await registry.tenants.delete(DEFAULT_TENANT, "ops")


async def test_an_unknown_tenant_is_not_found(registry: Registry) -> None:
    with pytest.raises(TenantNotFound):
        await registry.tenants.get(ACME)
    with pytest.raises(TenantNotFound):
        await registry.tenants.delete(ACME, "ops")
    with pytest.raises(TenantNotFound):
        await registry.keys.create(ACME, [Scope("predict")], "shop", must_exist=True)
    assert [record.tenant for record in await registry.tenants.list()] == [DEFAULT_TENANT]
    assert await registry.feed.revision() == 0


async def test_changes_that_go_on_do_not_keep_a_tenant_from_being_deleted(
    registry: Registry,
) -> None:
    async def write() -> None:
        for number in range(60):
            await registry.put_task(RIVAL, TaskId(f"t{number % 5}"), TaskOptions(str(number)), "x")

    await registry.put_task(ACME, FILMS, TaskOptions(), "ann")
    writers = [asyncio.create_task(write()) for _ in range(4)]
    deleted = await registry.tenants.delete(ACME, "ops")
    await asyncio.gather(*writers)
    assert deleted.erased.tasks == 1
    assert (await usage(registry, RIVAL)).tasks == 5
