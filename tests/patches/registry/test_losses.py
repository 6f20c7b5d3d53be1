"""Redis that goes back, is emptied or is another one: whoever knows better is told so."""

from pathlib import Path
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from peterrec.patches.backup.exporting import export_archive
from peterrec.patches.backup.importing import ImportMode, import_archive
from peterrec.patches.errors import RegistryChanged, RegistryLost
from peterrec.patches.identity import DEFAULT_TENANT, Blob, TaskId, TaskRef, TenantId
from peterrec.patches.registry.api_keys import Scope
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.losses import Knowledge
from peterrec.patches.registry.records import (
    Position,
    RegistrySnapshot,
    TaskOptions,
    TenantOptions,
)
from peterrec.patches.registry.registry import Registry
from tests.patches.registry.test_registry_properties import dump, restore

AGE, GENDER, SHOP = TaskId("age"), TaskId("gender"), TenantId("shop")


async def describe(registry: Registry, task: TaskId, description: str) -> int:
    put = await registry.put_task(DEFAULT_TENANT, task, TaskOptions(description), "ann")
    return put.revision


async def emptied(registry: Registry, redis: Redis) -> None:
    """As FLUSHALL does, but of this test's keys."""
    await restore(redis, registry.store.prefix, {})


@pytest.fixture
async def known(registry: Registry) -> RegistrySnapshot:
    """What a replica knows of a registry with two tasks and a key."""
    await describe(registry, AGE, "a")
    await describe(registry, GENDER, "g")
    await registry.keys.create(DEFAULT_TENANT, [Scope("predict")], "shop")
    return await registry.feed.snapshot()


@pytest.fixture
async def other(registry: Registry) -> Registry:
    """Another registry in the same Redis."""
    return Registry(registry.store.redis, f"test-{uuid4().hex}")


async def test_a_new_registry_is_no_loss_to_one_that_knows_of_none(registry: Registry) -> None:
    empty = await registry.feed.catch_up(None)
    assert (empty.revision, empty.identity) == (0, "")
    await describe(registry, AGE, "a")
    first = await registry.feed.catch_up(empty)
    assert (first.revision, len(first.identity)) == (1, 32)


async def test_the_identity_stays_as_long_as_only_changes_are_made(
    registry: Registry, known: RegistrySnapshot
) -> None:
    await registry.delete_task(DEFAULT_TENANT, AGE, "ann")
    later = await registry.feed.catch_up(known)
    assert later.identity == known.identity
    assert later.tasks.keys() == {TaskRef(DEFAULT_TENANT, GENDER)}


async def test_an_emptied_registry_is_lost(
    registry: Registry, known: RegistrySnapshot, redis: Redis
) -> None:
    await emptied(registry, redis)
    for _ in range(2):
        with pytest.raises(RegistryLost, match=r"holds none .* it was known at revision 3"):
            await registry.feed.catch_up(known)
    with pytest.raises(RegistryLost):
        await registry.feed.snapshot(known)


async def test_an_older_state_is_lost_and_also_after_it_has_gone_on(
    registry: Registry, redis: Redis, redis_prefix: str
) -> None:
    await describe(registry, AGE, "a")
    older = await dump(redis, redis_prefix)
    await describe(registry, AGE, "lost")
    known = await registry.feed.snapshot()
    await restore(redis, redis_prefix, older)
    with pytest.raises(RegistryLost, match="gone back to revision 1"):
        await registry.feed.catch_up(known)
    assert await describe(registry, GENDER, "other") == known.revision
    with pytest.raises(RegistryLost, match="went back and went on"):
        await registry.feed.catch_up(known)
    await describe(registry, GENDER, "more")
    with pytest.raises(RegistryLost, match="went back and went on"):
        await registry.feed.changes(known.position)


async def test_another_registry_is_noticed_also_once_its_revision_is_higher(
    registry: Registry, known: RegistrySnapshot, redis: Redis
) -> None:
    await emptied(registry, redis)
    for number in range(known.revision + 3):
        await describe(registry, GENDER, f"{number}")
        with pytest.raises(RegistryLost, match="holds another one"):
            await registry.feed.catch_up(known)
    await redis.xtrim(registry.store.key("changes"), maxlen=0, approximate=False)
    with pytest.raises(RegistryLost, match="holds another one"):
        await registry.feed.catch_up(known)


async def test_a_trail_that_is_not_kept_that_far_is_no_loss(
    registry: Registry, known: RegistrySnapshot, redis: Redis
) -> None:
    await describe(registry, GENDER, "more")
    await redis.xtrim(registry.store.key("changes"), maxlen=0, approximate=False)
    found = await registry.feed.catch_up(known)
    assert found.revision == known.revision + 1
    assert await registry.feed.catch_up(found) == found


@pytest.mark.parametrize("name", ["tasks", "keys"])
async def test_what_is_gone_without_a_change_is_a_loss(
    registry: Registry, known: RegistrySnapshot, redis: Redis, name: str
) -> None:
    """As an eviction does, or somebody's DEL: the revision stays, and later rises."""
    await redis.delete(registry.store.key(name))
    with pytest.raises(RegistryLost, match="gone, and no change has removed them"):
        await registry.feed.catch_up(known)
    await registry.tenants.put(SHOP, TenantOptions(), "ops")
    with pytest.raises(RegistryLost, match="gone, and no change has removed them"):
        await registry.feed.catch_up(known)


async def test_what_changes_have_removed_is_no_loss_also_if_all_is_read(
    registry: Registry, known: RegistrySnapshot
) -> None:
    await registry.tenants.put(SHOP, TenantOptions(), "ops")
    await registry.put_task(SHOP, AGE, TaskOptions(), "eve")
    created = await registry.keys.create(SHOP, [Scope("predict")], "shop")
    await registry.feed.catch_up(known)
    known = await registry.feed.snapshot(known)
    await registry.delete_task(DEFAULT_TENANT, AGE, "ann")
    await registry.tenants.delete(SHOP, "ops")
    found = await registry.feed.catch_up(known)
    assert created.record.key_id not in found.keys
    assert [ref.task for ref in found.tasks] == [GENDER]
    (key_id,) = found.keys
    await registry.keys.revoke(DEFAULT_TENANT, key_id)
    assert (await registry.feed.snapshot(found)).keys == {}


async def test_an_accepted_state_is_gone_over_to_and_numbers_go_on(
    registry: Registry, known: RegistrySnapshot, redis: Redis
) -> None:
    await emptied(registry, redis)
    await describe(registry, AGE, "new")
    seen = await registry.feed.position()
    revision = await registry.accept(known.position, seen, "ops")
    assert revision == known.revision + 1
    found = await registry.feed.catch_up(known)
    assert found == await registry.feed.snapshot()
    assert (found.revision, found.keys) == (revision, {})
    (*_, event) = await registry.feed.events()
    assert (event.action, event.actor, event.note) == (
        "accept",
        "ops",
        "in place of a registry at revision 3",
    )


async def test_accepting_is_for_this_loss_only(
    registry: Registry, known: RegistrySnapshot, redis: Redis
) -> None:
    await emptied(registry, redis)
    seen = await registry.feed.position()
    await registry.accept(known.position, seen, "ops")
    accepted = await registry.feed.catch_up(known)
    await emptied(registry, redis)
    await describe(registry, AGE, "again")
    for before in (known, accepted):
        with pytest.raises(RegistryLost):
            await registry.feed.catch_up(before)


async def test_only_what_the_operator_has_seen_is_accepted(
    registry: Registry, known: RegistrySnapshot, redis: Redis
) -> None:
    await emptied(registry, redis)
    seen = await registry.feed.position()
    await describe(registry, AGE, "meanwhile")
    with pytest.raises(RegistryChanged):
        await registry.accept(known.position, seen, "ops")
    with pytest.raises(RegistryLost):
        await registry.feed.catch_up(known)


async def test_an_import_over_a_registry_is_a_recorded_change(
    registry: Registry, known: RegistrySnapshot, other: Registry, tmp_path: Path
) -> None:
    await describe(other, TaskId("other"), "o")
    await export_archive(other.store, tmp_path / "x.tar")
    await describe(registry, AGE, "later than the reader knows")
    await import_archive(registry.store, tmp_path / "x.tar", ImportMode.REPLACE, "ops")
    found = await registry.feed.catch_up(known)
    assert [ref.task for ref in found.tasks] == ["other"]


async def test_a_registry_that_moves_with_its_whole_trail_is_no_loss(
    registry: Registry, known: RegistrySnapshot, other: Registry, tmp_path: Path
) -> None:
    await export_archive(registry.store, tmp_path / "x.tar")
    await import_archive(other.store, tmp_path / "x.tar", ImportMode.EMPTY, "ops")
    found = await other.feed.catch_up(known)
    assert found.tasks.keys() == known.tasks.keys()
    await describe(other, AGE, "goes on there")
    assert (await other.feed.catch_up(found)).revision == found.revision + 1


async def test_an_archive_without_the_last_changes_is_a_loss_until_accepted(
    registry: Registry, other: Registry, tmp_path: Path
) -> None:
    await describe(registry, AGE, "a")
    await export_archive(registry.store, tmp_path / "x.tar")
    await describe(registry, GENDER, "after the backup")
    known = await registry.feed.snapshot()
    await import_archive(other.store, tmp_path / "x.tar", ImportMode.EMPTY, "ops")
    with pytest.raises(RegistryLost):
        await other.feed.catch_up(known)
    await other.accept(known.position, await other.feed.position(), "ops")
    assert [ref.task for ref in (await other.feed.catch_up(known)).tasks] == [AGE]


async def test_a_registry_without_an_identity_gets_one_and_is_no_other(
    registry: Registry, known: RegistrySnapshot, redis: Redis
) -> None:
    """As older versions have left it."""
    await redis.delete(registry.store.key("identity"))
    before = await registry.feed.snapshot()
    assert before.identity == ""
    await describe(registry, AGE, "b")
    for reader in (before, known):
        found = await registry.feed.catch_up(reader)
        assert found == await registry.feed.snapshot()
        assert len(found.identity) == 32


async def test_the_copy_on_disk_knows_which_registry_it_is_of(
    registry: Registry, known: RegistrySnapshot, redis: Redis, tmp_path: Path
) -> None:
    BlobCache(tmp_path).save_snapshot(known)
    await emptied(registry, redis)
    await describe(registry, AGE, "new")
    recalled = BlobCache(tmp_path).load_snapshot()
    assert recalled is not None
    assert recalled.position == known.position
    with pytest.raises(RegistryLost, match="holds another one"):
        await registry.feed.snapshot(recalled)


async def test_nobody_who_knows_better_changes_a_lost_registry(
    registry: Registry, known: RegistrySnapshot, redis: Redis
) -> None:
    careful = Registry(registry.store.redis, registry.store.prefix, Knowledge(known.position))
    await describe(careful, AGE, "before")
    await emptied(registry, redis)
    for change in (
        describe(careful, AGE, "x"),
        careful.keys.create(DEFAULT_TENANT, [Scope("predict")], "x"),
        careful.tenants.put(SHOP, TenantOptions(), "x"),
        careful.blobs.put(Blob(b"x")),
    ):
        with pytest.raises(RegistryLost, match="holds none"):
            await change
    assert await registry.feed.position() == Position(0, "")
    assert [key async for key in redis.scan_iter(f"*{registry.store.prefix}*")] == []


async def test_a_lost_registry_is_not_read_but_by_those_who_look_whether_it_is_back(
    registry: Registry, known: RegistrySnapshot
) -> None:
    knowledge = Knowledge(known.position, "the registry is lost.")
    careful = Registry(registry.store.redis, registry.store.prefix, knowledge)
    for read in (
        careful.list_tasks(DEFAULT_TENANT),
        careful.get_task(DEFAULT_TENANT, AGE),
        careful.keys.of_tenant(DEFAULT_TENANT),
        careful.tenants.list(),
        careful.feed.events(),
        careful.blobs.totals(),
    ):
        with pytest.raises(RegistryLost, match="is lost"):
            await read
    assert await careful.feed.catch_up(known) is known
    knowledge.loss = ""
    assert len(await careful.list_tasks(DEFAULT_TENANT)) == 2
