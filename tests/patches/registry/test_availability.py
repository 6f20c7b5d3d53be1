"""The list of a task's items: replaced as a whole, followed by replicas, erased with the task."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from peterrec.patches.backup.copies import Copies
from peterrec.patches.backup.copying import update_copy
from peterrec.patches.backup.exporting import export_archive
from peterrec.patches.backup.importing import ImportMode, import_archive
from peterrec.patches.backup.restoring import restorable, restore
from peterrec.patches.errors import QuotaExceeded, StaleRevision, TaskNotFound
from peterrec.patches.identity import DEFAULT_TENANT, TaskId, TaskRef, TenantId
from peterrec.patches.registry.availability import (
    MAX_ITEMS,
    Availability,
    AvailabilityTooLarge,
)
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.records import EventAction, Quotas, TaskOptions, TenantOptions
from peterrec.patches.registry.registry import Registry
from tests.patches.registry.test_losses import emptied

TASK = TaskId("shop")
REF = TaskRef(DEFAULT_TENANT, TASK)
OTHER = TenantId("other")
GONE = Availability.of("unavailable", ["b", "ü", "a", "a"])
KEPT = Availability.of("available", ["c"])


@pytest.fixture
async def shop(registry: Registry) -> Registry:
    """A registry at revision 1 with a task without versions."""
    await registry.put_task(DEFAULT_TENANT, TASK, TaskOptions(), "ann")
    return registry


def test_equal_sets_make_equal_lists() -> None:
    assert Availability.of("unavailable", ["a", "ü", "b"]) == GONE
    assert GONE.items == ("a", "b", "ü")
    assert GONE.digest != Availability.of("available", ["a", "b", "ü"]).digest
    assert Availability.parse(GONE.stored) == GONE


@pytest.mark.parametrize(
    "items", [["x"] * (MAX_ITEMS + 1), ["x" * 257], [f"{n:040}" for n in range(60_000)]]
)
def test_a_list_that_workers_would_not_keep_is_refused(items: list[str]) -> None:
    with pytest.raises(AvailabilityTooLarge):
        Availability.of("unavailable", items)


async def test_replicas_read_the_list_with_the_task(shop: Registry) -> None:
    before = await shop.feed.snapshot()
    changed = await shop.put_availability(DEFAULT_TENANT, TASK, GONE, "ann")
    assert (changed.revision, changed.was_changed) == (2, True)
    after = await shop.feed.catch_up(before)
    assert after.tasks[REF].availability == GONE
    assert after.tasks[REF].revision == 2
    assert (await shop.feed.snapshot()).tasks == after.tasks
    assert await shop.get_availability(DEFAULT_TENANT, TASK) == GONE
    await shop.clear_availability(DEFAULT_TENANT, TASK, "ann")
    assert (await shop.feed.catch_up(after)).tasks[REF].availability is None


async def test_the_same_list_again_is_no_change(shop: Registry) -> None:
    await shop.put_availability(DEFAULT_TENANT, TASK, GONE, "ann")
    again = await shop.put_availability(DEFAULT_TENANT, TASK, GONE, "bob")
    assert (again.revision, again.was_changed) == (2, False)
    await shop.clear_availability(DEFAULT_TENANT, TASK, "ann")
    nothing = await shop.clear_availability(DEFAULT_TENANT, TASK, "ann")
    assert (nothing.revision, nothing.was_changed) == (3, False)
    events = await shop.feed.events()
    assert [each.action for each in events[1:]] == [
        EventAction.PUT_AVAILABILITY,
        EventAction.CLEAR_AVAILABILITY,
    ]
    assert events[1].note == "3 unavailable"


async def test_a_change_names_the_revision_that_its_author_saw(shop: Registry) -> None:
    await shop.put_availability(DEFAULT_TENANT, TASK, GONE, "ann", if_match=1)
    with pytest.raises(StaleRevision):
        await shop.put_availability(DEFAULT_TENANT, TASK, KEPT, "bob", if_match=1)
    with pytest.raises(StaleRevision):
        await shop.clear_availability(DEFAULT_TENANT, TASK, "bob", if_match=1)
    with pytest.raises(TaskNotFound):
        await shop.put_availability(DEFAULT_TENANT, TaskId("nothing"), KEPT, "bob")


async def test_lists_count_as_bytes_of_bundles_until_the_task_goes(registry: Registry) -> None:
    size = len(GONE.stored.encode())
    options = TenantOptions(quotas=Quotas(bundle_bytes=size))
    await registry.tenants.put(OTHER, options, "op")
    for task in (TASK, TaskId("second")):
        await registry.put_task(OTHER, task, TaskOptions(), "ann")
    await registry.put_availability(OTHER, TASK, GONE, "ann")
    assert (await registry.tenants.get(OTHER)).usage.bundle_bytes == size
    with pytest.raises(QuotaExceeded):
        await registry.put_availability(OTHER, TaskId("second"), KEPT, "ann")
    await registry.put_availability(OTHER, TASK, KEPT, "ann")  # a shorter one
    await registry.put_availability(OTHER, TASK, GONE, "ann")
    await registry.delete_task(OTHER, TASK, "ann")
    assert (await registry.tenants.get(OTHER)).usage.bundle_bytes == 0
    await registry.put_task(OTHER, TASK, TaskOptions(), "ann")
    assert await registry.get_availability(OTHER, TASK) is None


async def test_a_deleted_tenant_leaves_no_list(registry: Registry) -> None:
    await registry.tenants.put(OTHER, TenantOptions(), "op")
    await registry.put_task(OTHER, TASK, TaskOptions(), "ann")
    await registry.put_availability(OTHER, TASK, GONE, "ann")
    await registry.tenants.delete(OTHER, "op")
    assert await registry.get_availability(OTHER, TASK) is None


async def test_an_archive_carries_lists_and_their_bytes_are_counted_again(
    shop: Registry, tmp_path: Path
) -> None:
    await shop.put_availability(DEFAULT_TENANT, TASK, GONE, "ann")
    await export_archive(shop.store, tmp_path / "all.tar")
    await shop.put_availability(DEFAULT_TENANT, TASK, KEPT, "ann")
    await import_archive(shop.store, tmp_path / "all.tar", ImportMode.REPLACE, "ann")
    assert (await shop.feed.snapshot()).tasks[REF].availability == GONE
    usage = (await shop.tenants.get(DEFAULT_TENANT)).usage
    assert usage.bundle_bytes == len(GONE.stored.encode())
    await shop.clear_availability(DEFAULT_TENANT, TASK, "ann")
    await export_archive(shop.store, tmp_path / "none.tar")
    await shop.put_availability(DEFAULT_TENANT, TASK, KEPT, "ann")
    await import_archive(shop.store, tmp_path / "none.tar", ImportMode.REPLACE, "ann")
    assert await shop.get_availability(DEFAULT_TENANT, TASK) is None


async def test_the_local_copy_has_the_list(shop: Registry, tmp_path: Path) -> None:
    await shop.put_availability(DEFAULT_TENANT, TASK, GONE, "ann")
    cache = BlobCache(tmp_path)
    cache.save_snapshot(await shop.feed.snapshot())
    recalled = cache.load_snapshot()
    assert recalled is not None
    assert recalled.tasks[REF].availability == GONE


async def test_a_lost_registry_gets_its_lists_back_from_a_replica(
    shop: Registry, redis: Redis, tmp_path: Path
) -> None:
    await shop.put_availability(DEFAULT_TENANT, TASK, GONE, "ann")
    cache = BlobCache(tmp_path / "cache")
    await update_copy(shop.store, Copies(cache.directory), await shop.feed.snapshot())
    await emptied(shop, redis)
    found = await restorable(shop.store, cache.directory)
    await restore(shop.store, found, ImportMode.EMPTY, "ops")
    assert await shop.get_availability(DEFAULT_TENANT, TASK) == GONE
