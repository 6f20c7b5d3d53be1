"""A registry is put back from a replica's copy, which is kept up to date and never by a loss."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from peterrec.patches.backup.archive import AUDIT, KEYS, TASKS, TENANTS
from peterrec.patches.backup.copies import OLDER_INTERVAL_S, OLDER_KEPT, Copies
from peterrec.patches.backup.copying import update_copy
from peterrec.patches.backup.importing import ImportMode
from peterrec.patches.backup.restoring import restorable, restore
from peterrec.patches.errors import (
    NoCopy,
    RegistryLost,
    RegistryNotEmpty,
    SnapshotCorrupt,
)
from peterrec.patches.identity import DEFAULT_TENANT, Blob, TaskId, TenantId, digest_of
from peterrec.patches.registry.api_keys import Scope
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.records import Quotas, RegistrySnapshot, TaskOptions, TenantOptions
from peterrec.patches.registry.registry import Registry
from tests.patches.backup.test_transfer import CONTENTS, DIGESTS, fill, lasting
from tests.patches.registry.test_losses import emptied
from tests.patches.registry.test_registry import GENDER, SUMMARY

SHOP = TenantId("shop")


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    """A replica's cache with the bundles of the filled registry."""
    cache = BlobCache(tmp_path / "cache")
    for content in CONTENTS:
        cache.put(Blob(content))
    return cache


@pytest.fixture
async def filled(registry: Registry) -> str:
    """A registry with one of everything; the plain text of its key."""
    return await fill(registry)


async def copied(registry: Registry, cache: BlobCache) -> RegistrySnapshot:
    """Bring the copy up to what the registry is now."""
    snapshot = await registry.feed.snapshot()
    await update_copy(registry.store, Copies(cache.directory), snapshot)
    return snapshot


async def test_everything_comes_back_and_replicas_go_over_to_it(
    registry: Registry,
    filled: str,
    cache: BlobCache,
    redis: Redis,
) -> None:
    await registry.tenants.put(SHOP, TenantOptions("a shop", Quotas(tasks=1)), "ops")
    known = await copied(registry, cache)
    before, events = await lasting(registry), await registry.feed.events()
    quotas = (await registry.tenants.get(SHOP)).options
    await emptied(registry, redis)
    found = await restorable(registry.store, cache.directory)
    assert found.left_out == []
    assert (found.counts["tasks"], found.counts["keys"], found.counts["bundles"]) == (3, 1, 3)
    revision = await restore(registry.store, found, ImportMode.EMPTY, "ops")
    assert revision == known.revision + 1
    assert await lasting(registry) == before
    assert (await registry.tenants.get(SHOP)).options == quotas
    *trail, last = await registry.feed.events()
    assert tuple(trail) == events
    assert (last.action, last.actor) == ("restore", "ops")
    assert (await registry.feed.catch_up(known)).revision == revision
    assert [(await registry.blobs.get(digest)).data for digest in DIGESTS] == CONTENTS
    assert (await registry.rollback(DEFAULT_TENANT, GENDER, "ann")).revision == revision + 1


async def test_a_copy_is_brought_up_to_date_in_steps(
    registry: Registry,
    filled: str,
    cache: BlobCache,
) -> None:
    await copied(registry, cache)
    await registry.put_task(DEFAULT_TENANT, TaskId("late"), TaskOptions("later"), "ann")
    await registry.delete_task(DEFAULT_TENANT, TaskId("empty"), "ann")
    await registry.keys.create(DEFAULT_TENANT, [Scope("admin")], "second")
    await registry.tenants.put(SHOP, TenantOptions(), "ops")
    snapshot = await copied(registry, cache)
    copy = Copies(cache.directory).newest
    names = {line["task"]: line["record"]["description"] for line in copy.lines(TASKS)}
    assert names == {"default/gender": "", "other/age": "", "default/late": "later"}
    assert {line["key_id"] for line in copy.lines(KEYS)} == set(snapshot.keys)
    assert "shop" in {line["tenant"] for line in copy.lines(TENANTS)}
    assert [line["revision"] for line in copy.lines(AUDIT)] == [
        event.revision for event in await registry.feed.events()
    ]
    await registry.delete_task(DEFAULT_TENANT, TaskId("late"), "ann")
    await copied(registry, cache)
    assert len(Copies(cache.directory).older()) == 1, "the next one is due in an hour"


async def test_a_lost_registry_never_reaches_the_copy(
    registry: Registry,
    filled: str,
    cache: BlobCache,
    redis: Redis,
) -> None:
    known = await copied(registry, cache)
    await emptied(registry, redis)
    await registry.put_task(DEFAULT_TENANT, TaskId("new"), TaskOptions(), "eve")
    stale = RegistrySnapshot(known.revision + 1, {}, {}, "x", {}, None, known.identity)
    with pytest.raises(RegistryLost):
        await update_copy(registry.store, Copies(cache.directory), stale)
    state = Copies(cache.directory).newest.state()
    assert state is not None
    assert state.position == known.position


async def test_an_accepted_state_leaves_the_copy_of_the_one_before(
    registry: Registry,
    filled: str,
    cache: BlobCache,
    redis: Redis,
) -> None:
    """So an acceptance by mistake can be made good."""
    known, before = await copied(registry, cache), await lasting(registry)
    await emptied(registry, redis)
    await registry.accept(known.position, await registry.feed.position(), "ops")
    accepted = await copied(registry, cache)
    assert accepted.tasks == {}
    newest = await restorable(registry.store, cache.directory)
    older = await restorable(registry.store, cache.directory, 1)
    assert (newest.counts["tasks"], older.counts["tasks"]) == (0, 3)
    with pytest.raises(RegistryNotEmpty):
        await restore(registry.store, older, ImportMode.EMPTY, "ops")
    await restore(registry.store, older, ImportMode.REPLACE, "ops")
    assert await lasting(registry) == before
    assert (await registry.feed.catch_up(accepted)).tasks.keys() == known.tasks.keys()


async def test_older_copies_and_the_bundles_that_they_name_are_bounded(
    registry: Registry, cache: BlobCache, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await registry.blobs.put(Blob(b"a"))
    copies = Copies(cache.directory)
    for number in range(OLDER_KEPT + 3):
        await registry.add_version(DEFAULT_TENANT, TaskId("t"), digest, SUMMARY, "ann")
        known = await copied(registry, cache)
        assert known.revision
        await emptied(registry, redis)
        digest = await registry.blobs.put(Blob(b"%d" % number))
    assert OLDER_INTERVAL_S > 60
    sizes = {digest_of(b"a"): 1, digest_of(b"%d" % OLDER_KEPT): 1, digest_of(b"unnamed"): 1}
    assert len(copies.older()) == OLDER_KEPT + 2
    assert copies.bundles(sizes) == {digest_of(b"%d" % OLDER_KEPT)}
    assert len(copies.older()) == OLDER_KEPT
    room = 2 * copies.older()[0].path.stat().st_size + 1
    monkeypatch.setattr("peterrec.patches.backup.copies.OLDER_BYTES", room)
    assert Copies(cache.directory).bundles(sizes) == {digest_of(b"%d" % OLDER_KEPT)}
    assert len(copies.older()) == 2


async def test_what_has_no_bundle_is_left_out_and_named(
    registry: Registry,
    filled: str,
    cache: BlobCache,
    redis: Redis,
) -> None:
    await copied(registry, cache)
    damaged = cache.path_of(DIGESTS[1])
    damaged.write_bytes(b"other")
    cache.path_of(DIGESTS[2]).unlink()
    await emptied(registry, redis)
    found = await restorable(registry.store, cache.directory)
    assert found.left_out == [
        "default/gender: version 2",
        "default/gender: version 3",
        "default/gender: alias prod",
        "default/gender: its traffic",
        "default/gender: 3 earlier states",
    ]
    await restore(registry.store, found, ImportMode.EMPTY, "ops")
    detail = await registry.get_task(DEFAULT_TENANT, GENDER)
    assert [version.version for version in detail.versions] == [1]
    assert dict(detail.record.aliases).keys() == {"next"}
    assert detail.record.traffic is None


async def test_bundles_that_redis_still_has_need_no_copy(
    registry: Registry,
    filled: str,
    cache: BlobCache,
    redis: Redis,
) -> None:
    before = await lasting(registry)
    await copied(registry, cache)
    for digest in DIGESTS:
        cache.path_of(digest).unlink()
    await redis.delete(registry.store.key("tasks"))
    found = await restorable(registry.store, cache.directory)
    assert (found.left_out, found.counts["bundles"]) == ([], 0)
    await restore(registry.store, found, ImportMode.REPLACE, "ops")
    assert await lasting(registry) == before


async def test_a_replica_that_knows_more_than_the_copy_says_so_until_it_is_accepted(
    registry: Registry,
    filled: str,
    cache: BlobCache,
    redis: Redis,
) -> None:
    await copied(registry, cache)
    await registry.put_task(DEFAULT_TENANT, TaskId("late"), TaskOptions(), "ann")
    ahead = await registry.feed.snapshot()
    await emptied(registry, redis)
    found = await restorable(registry.store, cache.directory)
    await restore(registry.store, found, ImportMode.EMPTY, "ops")
    with pytest.raises(RegistryLost):
        await registry.feed.catch_up(ahead)
    await registry.accept(ahead.position, await registry.feed.position(), "ops")
    assert TaskId("late") not in {ref.task for ref in (await registry.feed.catch_up(ahead)).tasks}


async def test_a_deleted_tenant_is_erased_from_every_copy(
    registry: Registry, cache: BlobCache
) -> None:
    await registry.tenants.put(SHOP, TenantOptions(), "ops")
    await registry.put_task(SHOP, GENDER, TaskOptions("secret of the shop"), "eve")
    _, record, _ = await registry.keys.create(SHOP, [Scope("predict")], "eve")
    await copied(registry, cache)
    copies = Copies(cache.directory)
    copies._keep_older(is_other=True)
    await registry.tenants.delete(SHOP, "ops")
    await copied(registry, cache)
    copies.erase([SHOP])
    for copy in (copies.newest, *copies.older()):
        assert copy.lines(TASKS) == copy.lines(KEYS) == []
        data = copy.path.read_bytes()
        assert b'"task":"shop/gender"' not in data
        assert record.secret_digest.encode() not in data


async def test_every_damaged_line_of_a_copy_is_found(
    registry: Registry,
    filled: str,
    cache: BlobCache,
) -> None:
    await copied(registry, cache)
    copy = Copies(cache.directory).newest
    data = copy.path.read_bytes()
    whole = {kind: copy.lines(kind) for kind in (TASKS, KEYS, TENANTS, AUDIT)}
    for at in range(0, len(data), 97):
        copy.path.write_bytes(data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :])
        try:
            found = {kind: copy.lines(kind) for kind in whole}
        except SnapshotCorrupt:
            continue
        except Exception as error:
            raise AssertionError(f"byte {at}") from error
        assert found == whole, at


async def test_a_folder_without_a_copy_and_a_number_without_one_are_told(
    registry: Registry,
    filled: str,
    cache: BlobCache,
    tmp_path: Path,
) -> None:
    with pytest.raises(NoCopy, match="no copy of a registry"):
        await restorable(registry.store, tmp_path)
    await copied(registry, cache)
    with pytest.raises(NoCopy, match="no copy 1, only 1"):
        await restorable(registry.store, cache.directory, 1)
    assert (cache.directory / "registry" / "newest.db").stat().st_mode & 0o077 == 0
