"""What the registry promises, on a real Redis."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from peterrec.model.errors import Category
from peterrec.patches.bundle.verify import verify_bundle
from peterrec.patches.errors import (
    AliasNotFound,
    BlobCorrupt,
    BlobMissing,
    InvalidName,
    NothingToRollBack,
    RegistryFailed,
    RegistryFull,
    RegistryReadOnly,
    RegistryUnavailable,
    StaleRevision,
    TaskNotFound,
    VersionInUse,
    VersionNotFound,
)
from peterrec.patches.identity import (
    DEFAULT_TENANT,
    Blob,
    Digest,
    TaskId,
    TaskRef,
    TenantId,
    digest_of,
)
from peterrec.patches.redis.embedded import EmbeddedRedis
from peterrec.patches.registry.api_keys import Scope
from peterrec.patches.registry.blobs import PIECE_BYTES, BlobLocation
from peterrec.patches.registry.records import (
    AliasTarget,
    Collected,
    EventAction,
    TaskOptions,
    VersionAdded,
    VersionSummary,
)
from peterrec.patches.registry.registry import Registry
from peterrec.patches.registry.serialization import event_document
from peterrec.patches.registry.traffic import Traffic
from tests.patches.bundles import LIMITS, TINY, make_bundle
from tests.patches.redis_servers import connect, is_stored
from tests.patches.script_limits import EVENTS_KEPT, STATES_KEPT

GENDER = TaskId("gender")
AGE = TaskId("age")
OTHER_TENANT = TenantId("other")
SUMMARY = VersionSummary(
    name="gender",
    kind="classification",
    outputs=2,
    backbone="a" * 64,
    size_bytes=100,
    patch_bytes=60,
    head_bytes=30,
    metrics={"accuracy": 0.75},
    outputs_digest="0" * 32,
)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis that the test may break."""
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


async def add(
    registry: Registry, content: str, task: TaskId = GENDER, alias: str | None = "prod"
) -> tuple[Digest, VersionAdded]:
    digest = await registry.blobs.put(Blob(content.encode()))
    added = await registry.add_version(DEFAULT_TENANT, task, digest, SUMMARY, "ann", alias)
    return digest, added


async def test_an_empty_registry_is_at_revision_zero(registry: Registry) -> None:
    snapshot = await registry.feed.snapshot()
    assert (snapshot.revision, snapshot.tasks, snapshot.keys) == (0, {}, {})
    assert await registry.feed.events() == ()


async def test_versions_of_a_task_count_from_one(registry: Registry) -> None:
    assert (await add(registry, "a"))[1] == VersionAdded(1, 1, True)
    assert (await add(registry, "b"))[1] == VersionAdded(2, 2, True)
    assert (await add(registry, "a", AGE))[1] == VersionAdded(3, 1, True)


async def test_the_same_bundle_again_keeps_its_number_and_changes_nothing(
    registry: Registry,
) -> None:
    await add(registry, "a")
    assert (await add(registry, "a"))[1] == VersionAdded(1, 1, False)
    assert await registry.feed.revision() == 1
    assert len(await registry.feed.events()) == 1


async def test_an_older_bundle_registered_again_becomes_prod_under_its_old_number(
    registry: Registry,
) -> None:
    first, _ = await add(registry, "a")
    await add(registry, "b")
    assert (await add(registry, "a"))[1] == VersionAdded(3, 1, False)
    detail = await registry.get_task(DEFAULT_TENANT, GENDER)
    assert detail.record.aliases["prod"].digest == first


async def test_a_version_without_an_alias_is_registered_only(registry: Registry) -> None:
    _, added = await add(registry, "a", alias=None)
    detail = await registry.get_task(DEFAULT_TENANT, GENDER)
    assert added.was_created
    assert detail.record.aliases == {}
    assert [version.version for version in detail.versions] == [1]


async def test_a_task_shows_its_versions_as_they_were_registered(registry: Registry) -> None:
    first, _ = await add(registry, "a")
    second, _ = await add(registry, "b")
    detail = await registry.get_task(DEFAULT_TENANT, GENDER)
    assert [(v.version, v.digest, v.actor) for v in detail.versions] == [
        (1, first, "ann"),
        (2, second, "ann"),
    ]
    assert detail.versions[0].summary == SUMMARY
    assert detail.record.revision == 2
    assert detail.record.created_at <= detail.versions[1].created_at == detail.record.updated_at


async def test_the_summary_of_a_verified_bundle_survives_the_registry(registry: Registry) -> None:
    bundle = verify_bundle(make_bundle("ranking"), backbone=TINY, limits=LIMITS)
    summary = VersionSummary.of(bundle)
    await registry.blobs.put(Blob(make_bundle("ranking")))
    await registry.add_version(DEFAULT_TENANT, GENDER, bundle.digest, summary, "ann")
    detail = await registry.get_task(DEFAULT_TENANT, GENDER)
    assert detail.versions[0].summary == summary


async def test_a_bundle_that_was_not_stored_cannot_be_registered(registry: Registry) -> None:
    with pytest.raises(BlobMissing):
        await registry.add_version(DEFAULT_TENANT, GENDER, digest_of(b"?"), SUMMARY, "ann")
    assert await registry.feed.revision() == 0


async def test_a_task_is_created_and_changed_by_its_options(registry: Registry) -> None:
    options = TaskOptions("who", is_sensitive=True)
    assert await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions(), "ann") == (1, True)
    assert await registry.put_task(DEFAULT_TENANT, GENDER, options, "ann") == (2, False)
    assert await registry.put_task(DEFAULT_TENANT, GENDER, options, "ann") == (2, False)
    detail = await registry.get_task(DEFAULT_TENANT, GENDER)
    assert (detail.record.options, detail.versions) == (options, ())


async def test_new_options_leave_versions_and_aliases_alone(registry: Registry) -> None:
    await add(registry, "a")
    before = await registry.get_task(DEFAULT_TENANT, GENDER)
    await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions("new"), "ann")
    after = await registry.get_task(DEFAULT_TENANT, GENDER)
    assert after.versions == before.versions
    assert after.record.aliases == before.record.aliases


async def test_an_alias_moves_between_versions(registry: Registry) -> None:
    first, _ = await add(registry, "a")
    second, _ = await add(registry, "b")
    moved = await registry.set_alias(DEFAULT_TENANT, GENDER, "prod", first, "ann")
    assert (moved.current.digest, moved.current.version, moved.previous) == (first, 1, second)
    again = await registry.set_alias(DEFAULT_TENANT, GENDER, "prod", first, "ann")
    assert (again.revision, again.previous) == (moved.revision, first)


async def test_a_new_alias_has_no_previous_version(registry: Registry) -> None:
    digest, _ = await add(registry, "a")
    moved = await registry.set_alias(DEFAULT_TENANT, GENDER, "canary", digest, "ann")
    assert moved.previous is None
    with pytest.raises(NothingToRollBack):
        await registry.rollback(DEFAULT_TENANT, GENDER, "ann", "canary")


async def test_an_alias_names_registered_versions_only(registry: Registry) -> None:
    await add(registry, "a")
    stored = await registry.blobs.put(Blob(b"stored but not registered"))
    with pytest.raises(VersionNotFound):
        await registry.set_alias(DEFAULT_TENANT, GENDER, "prod", stored, "ann")


async def test_each_rollback_goes_one_step_further_back(registry: Registry) -> None:
    first, _ = await add(registry, "a")
    second, _ = await add(registry, "b")
    third, _ = await add(registry, "c")
    back = await registry.rollback(DEFAULT_TENANT, GENDER, "ann")
    assert (back.previous, back.current.digest, back.current.version) == (third, second, 2)
    back = await registry.rollback(DEFAULT_TENANT, GENDER, "ann")
    assert (back.previous, back.current.digest, back.current.version) == (second, first, 1)
    with pytest.raises(NothingToRollBack, match="'gender' has no earlier state"):
        await registry.rollback(DEFAULT_TENANT, GENDER, "ann")


async def test_a_rollback_skips_versions_that_were_deleted(registry: Registry) -> None:
    first, _ = await add(registry, "a")
    second, _ = await add(registry, "b")
    await registry.set_alias(DEFAULT_TENANT, GENDER, "prod", first, "ann")
    await registry.delete_version(DEFAULT_TENANT, GENDER, second, "ann")
    with pytest.raises(NothingToRollBack):
        await registry.rollback(DEFAULT_TENANT, GENDER, "ann")


async def test_a_version_that_an_alias_names_cannot_be_deleted(registry: Registry) -> None:
    first, _ = await add(registry, "a")
    await registry.set_alias(DEFAULT_TENANT, GENDER, "canary", first, "ann")
    with pytest.raises(VersionInUse, match="canary, prod") as refused:
        await registry.delete_version(DEFAULT_TENANT, GENDER, first, "ann")
    assert refused.value.category is Category.CONFLICT


async def test_the_number_of_a_deleted_version_is_not_used_again(registry: Registry) -> None:
    first, _ = await add(registry, "a")
    await add(registry, "b")
    await registry.delete_version(DEFAULT_TENANT, GENDER, first, "ann")
    assert (await add(registry, "a"))[1].version == 3
    with pytest.raises(VersionNotFound):
        await registry.delete_version(DEFAULT_TENANT, GENDER, digest_of(b"never"), "ann")


async def test_a_deleted_task_is_gone_and_starts_anew(registry: Registry) -> None:
    await add(registry, "a")
    await add(registry, "b")
    assert await registry.delete_task(DEFAULT_TENANT, GENDER, "ann") == 3
    with pytest.raises(TaskNotFound):
        await registry.get_task(DEFAULT_TENANT, GENDER)
    assert (await add(registry, "b"))[1] == VersionAdded(4, 1, True)
    with pytest.raises(NothingToRollBack):
        await registry.rollback(DEFAULT_TENANT, GENDER, "ann")


async def test_changes_of_a_task_that_does_not_exist_are_refused(registry: Registry) -> None:
    digest = digest_of(b"x")
    changes = [
        registry.set_alias(DEFAULT_TENANT, GENDER, "prod", digest, "ann"),
        registry.rollback(DEFAULT_TENANT, GENDER, "ann"),
        registry.delete_version(DEFAULT_TENANT, GENDER, digest, "ann"),
        registry.delete_task(DEFAULT_TENANT, GENDER, "ann"),
        registry.delete_alias(DEFAULT_TENANT, GENDER, "prod", "ann"),
        registry.put_traffic(DEFAULT_TENANT, GENDER, Traffic(1, shadow=(digest,)), "ann"),
        registry.clear_traffic(DEFAULT_TENANT, GENDER, "ann"),
    ]
    for change in changes:
        with pytest.raises(TaskNotFound):
            await change
    assert await registry.feed.revision() == 0


async def test_a_change_of_what_somebody_else_changed_meanwhile_is_refused(
    registry: Registry,
) -> None:
    first, added = await add(registry, "a")
    await add(registry, "b", alias="canary")
    seen = added.revision
    changes = [
        registry.add_version(DEFAULT_TENANT, GENDER, first, SUMMARY, "bob", "prod", seen),
        registry.set_alias(DEFAULT_TENANT, GENDER, "prod", first, "bob", seen),
        registry.rollback(DEFAULT_TENANT, GENDER, "bob", "prod", seen),
        registry.delete_version(DEFAULT_TENANT, GENDER, first, "bob", seen),
        registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions("x"), "bob", seen),
        registry.delete_task(DEFAULT_TENANT, GENDER, "bob", seen),
        registry.delete_alias(DEFAULT_TENANT, GENDER, "canary", "bob", seen),
        registry.put_traffic(DEFAULT_TENANT, GENDER, Traffic(1, shadow=(first,)), "bob", seen),
        registry.clear_traffic(DEFAULT_TENANT, GENDER, "bob", seen),
    ]
    for change in changes:
        with pytest.raises(StaleRevision, match="revision 2, the caller expected 1") as refused:
            await change
        assert refused.value.category is Category.STALE
    assert await registry.feed.revision() == 2


async def test_a_change_with_the_right_revision_is_made(registry: Registry) -> None:
    _, added = await add(registry, "a")
    await add(registry, "other task", AGE)
    put = await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions("x"), "ann", added.revision)
    assert put.revision == 3


async def test_if_match_zero_creates_but_never_replaces(registry: Registry) -> None:
    assert (await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions(), "ann", 0)).was_created
    with pytest.raises(StaleRevision):
        await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions("x"), "ann", 0)
    with pytest.raises(StaleRevision):
        await registry.put_task(DEFAULT_TENANT, AGE, TaskOptions(), "ann", 7)


async def test_a_rollback_restores_all_aliases_of_the_previous_state(registry: Registry) -> None:
    first, _ = await add(registry, "a")
    await registry.set_alias(DEFAULT_TENANT, GENDER, "canary", first, "ann")
    second, _ = await add(registry, "b")
    await registry.delete_alias(DEFAULT_TENANT, GENDER, "canary", "ann")
    back = await registry.rollback(DEFAULT_TENANT, GENDER, "ann")
    found = {alias: target.digest for alias, target in back.aliases.items()}
    assert found == {"prod": second, "canary": first}
    assert (back.current.digest, back.previous) == (second, second)


async def test_a_rollback_never_leaves_the_alias_without_a_version(registry: Registry) -> None:
    await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions(), "ann")
    await add(registry, "a", alias="staging")
    first, _ = await add(registry, "a")
    with pytest.raises(NothingToRollBack):
        await registry.rollback(DEFAULT_TENANT, GENDER, "ann")
    await registry.delete_alias(DEFAULT_TENANT, GENDER, "prod", "ann")
    await add(registry, "b")
    back = await registry.rollback(DEFAULT_TENANT, GENDER, "ann")
    assert back.current.digest == first


async def test_only_the_last_states_are_remembered(registry: Registry) -> None:
    digests = [(await add(registry, str(index)))[0] for index in range(STATES_KEPT + 5)]
    for expected in reversed(digests[4:-1]):
        back = await registry.rollback(DEFAULT_TENANT, GENDER, "ann")
        assert back.current.digest == expected
    with pytest.raises(NothingToRollBack):
        await registry.rollback(DEFAULT_TENANT, GENDER, "ann")


async def test_a_deleted_alias_names_nothing(registry: Registry) -> None:
    first, _ = await add(registry, "a")
    await registry.set_alias(DEFAULT_TENANT, GENDER, "canary", first, "ann")
    assert await registry.delete_alias(DEFAULT_TENANT, GENDER, "canary", "ann") == 3
    detail = await registry.get_task(DEFAULT_TENANT, GENDER)
    assert detail.record.aliases.keys() == {"prod"}
    with pytest.raises(AliasNotFound, match="'canary'") as refused:
        await registry.delete_alias(DEFAULT_TENANT, GENDER, "canary", "ann")
    assert refused.value.category is Category.NOT_FOUND


async def test_tenants_do_not_see_each_other(registry: Registry) -> None:
    await add(registry, "a")
    with pytest.raises(TaskNotFound):
        await registry.get_task(OTHER_TENANT, GENDER)
    with pytest.raises(TaskNotFound):
        await registry.delete_task(OTHER_TENANT, GENDER, "eve")
    assert await registry.list_tasks(OTHER_TENANT) == ()
    assert [record.task for record in await registry.list_tasks(DEFAULT_TENANT)] == [GENDER]


async def test_tasks_are_listed_by_name(registry: Registry) -> None:
    for name in ("b", "a", "c"):
        await registry.put_task(DEFAULT_TENANT, TaskId(name), TaskOptions(), "ann")
    assert [r.task for r in await registry.list_tasks(DEFAULT_TENANT)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name", ["", "a/b", "-a", ".a", "a b", "a" * 129, "é", "a\n", "{x}", "a:b", "*"]
)
async def test_names_that_do_not_fit_a_url_or_a_key_are_refused(
    registry: Registry, name: str
) -> None:
    digest = digest_of(b"x")
    calls = [
        registry.put_task(DEFAULT_TENANT, TaskId(name), TaskOptions(), "ann"),
        registry.put_task(TenantId(name), GENDER, TaskOptions(), "ann"),
        registry.add_version(DEFAULT_TENANT, GENDER, digest, SUMMARY, "ann", name),
        registry.set_alias(DEFAULT_TENANT, GENDER, name, digest, "ann"),
        registry.rollback(DEFAULT_TENANT, GENDER, "ann", name),
        registry.get_task(TenantId(name), GENDER),
    ]
    for call in calls:
        with pytest.raises(InvalidName):
            await call


async def test_a_snapshot_holds_everything_that_replicas_serve_by(registry: Registry) -> None:
    digest, _ = await add(registry, "a")
    await registry.put_task(OTHER_TENANT, AGE, TaskOptions("empty"), "ann")
    _, key, _ = await registry.keys.create(DEFAULT_TENANT, [Scope("predict")], "shop")
    snapshot = await registry.feed.snapshot()
    assert snapshot.revision == 3
    assert snapshot.keys == {key.key_id: key}
    gender = snapshot.tasks[TaskRef(DEFAULT_TENANT, GENDER)]
    assert gender.digest_of(gender.aliases["prod"]) == digest
    assert snapshot.tasks[TaskRef(OTHER_TENANT, AGE)].aliases == {}


async def test_a_snapshot_of_thousands_of_tasks_is_one_revision(registry: Registry) -> None:
    await asyncio.gather(
        *(
            registry.put_task(DEFAULT_TENANT, TaskId(f"t{index}"), TaskOptions(), "ann")
            for index in range(2000)
        )
    )
    snapshot = await registry.feed.snapshot()
    assert snapshot.revision == 2000
    assert sorted(record.revision for record in snapshot.tasks.values()) == [*range(1, 2001)]


async def test_a_snapshot_between_writers_is_never_half_of_a_change(registry: Registry) -> None:
    async def write(task: TaskId) -> None:
        for index in range(40):
            await registry.put_task(DEFAULT_TENANT, task, TaskOptions(str(index)), "ann")

    writers = [asyncio.create_task(write(TaskId(f"t{index}"))) for index in range(8)]
    while not all(writer.done() for writer in writers):
        snapshot = await registry.feed.snapshot()
        newest = max((record.revision for record in snapshot.tasks.values()), default=0)
        assert newest == snapshot.revision
    await asyncio.gather(*writers)
    assert await registry.feed.revision() == 320


async def test_many_writers_on_one_task_end_in_a_serial_history(registry: Registry) -> None:
    digests = [await registry.blobs.put(Blob(str(index).encode())) for index in range(60)]
    added = await asyncio.gather(
        *(registry.add_version(DEFAULT_TENANT, GENDER, d, SUMMARY, "ann") for d in digests)
    )
    assert sorted(result.version for result in added) == [*range(1, 61)]
    events = await registry.feed.events()
    assert [event.revision for event in events] == [*range(1, 61)]
    assert [event.version for event in events] == [*range(1, 61)]
    currents = [event.current for event in events]
    assert [event.previous for event in events] == [None, *currents[:-1]]
    detail = await registry.get_task(DEFAULT_TENANT, GENDER)
    assert detail.record.aliases["prod"].digest == currents[-1]


async def test_of_many_writers_that_saw_the_same_revision_one_wins(registry: Registry) -> None:
    _, added = await add(registry, "a")
    results = await asyncio.gather(
        *(
            registry.put_task(
                DEFAULT_TENANT, GENDER, TaskOptions(str(index)), "ann", added.revision
            )
            for index in range(30)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(result, StaleRevision) for result in results) == 29
    assert await registry.feed.revision() == 2


async def test_many_pushes_of_the_same_bundle_are_one_version(registry: Registry) -> None:
    added = await asyncio.gather(*(add(registry, "same") for _ in range(20)))
    assert {result.version for _, result in added} == {1}
    assert [result.was_created for _, result in added].count(True) == 1
    assert await registry.feed.revision() == 1


async def test_a_wait_ends_with_the_next_change(registry: Registry) -> None:
    waiting = asyncio.create_task(registry.feed.wait_for_change(0, timeout_s=20))
    await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions(), "ann")
    assert await asyncio.wait_for(waiting, 5) == 1


async def test_a_wait_for_a_revision_that_passed_ends_at_once(registry: Registry) -> None:
    await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions(), "ann")
    assert await asyncio.wait_for(registry.feed.wait_for_change(0, timeout_s=20), 5) == 1


async def test_a_wait_ahead_of_a_registry_that_was_restored_ends_at_once(
    registry: Registry,
) -> None:
    assert await asyncio.wait_for(registry.feed.wait_for_change(99, timeout_s=20), 5) == 0


async def test_a_wait_without_a_change_ends_at_its_deadline(registry: Registry) -> None:
    assert await asyncio.wait_for(registry.feed.wait_for_change(0, timeout_s=0.05), 5) == 0


async def test_the_audit_trail_says_who_did_what_from_which_version_to_which(
    registry: Registry,
) -> None:
    first, _ = await add(registry, "a")
    second, _ = await add(registry, "b")
    await registry.rollback(DEFAULT_TENANT, GENDER, "bob")
    event = (await registry.feed.events(since=2))[0]
    assert (event.revision, event.action, event.actor) == (3, EventAction.ROLLBACK, "bob")
    assert (event.tenant, event.task, event.alias) == (DEFAULT_TENANT, GENDER, "prod")
    assert (event.previous, event.current, event.version) == (second, first, 1)
    record = (await registry.get_task(DEFAULT_TENANT, GENDER)).record
    assert event.at == record.updated_at


async def test_the_audit_trail_says_what_the_options_were_and_are(registry: Registry) -> None:
    await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions("a"), "ann")
    await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions("a", is_sensitive=True), "bob")
    created, changed = await registry.feed.events()
    assert (created.previous_options, created.options) == (None, TaskOptions("a"))
    assert changed.previous_options == TaskOptions("a")
    assert changed.options == TaskOptions("a", is_sensitive=True)


async def test_the_audit_trail_says_what_a_deleted_task_served(registry: Registry) -> None:
    digest, _ = await add(registry, "a")
    await registry.delete_task(DEFAULT_TENANT, GENDER, "ann")
    event = (await registry.feed.events(since=1))[0]
    assert event.previous_aliases == {"prod": AliasTarget(digest, 1)}


async def test_an_event_as_a_document_has_only_what_concerns_it(registry: Registry) -> None:
    await registry.keys.create(DEFAULT_TENANT, [Scope("predict")], "shop", "ann")
    document = event_document((await registry.feed.events())[0])
    assert document.keys() == {"revision", "action", "actor", "at", "tenant", "key_id"}


@pytest.mark.slow
async def test_the_oldest_events_are_dropped(registry: Registry) -> None:
    for start in range(0, EVENTS_KEPT + 500, 500):
        options = [TaskOptions(str(start + index)) for index in range(500)]
        puts = (registry.put_task(DEFAULT_TENANT, GENDER, each, "ann") for each in options)
        await asyncio.gather(*puts)
    oldest = await registry.feed.oldest_event()
    assert 1 < oldest <= 501
    assert (await registry.feed.events(limit=1))[0].revision == oldest


async def test_events_are_read_in_pages(registry: Registry) -> None:
    for index in range(5):
        await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions(str(index)), "ann")
    page = await registry.feed.events(since=1, limit=2)
    assert [event.revision for event in page] == [2, 3]


async def test_a_blob_comes_back_as_it_was_stored(registry: Registry) -> None:
    digest = await registry.blobs.put(Blob(b"bytes"))
    assert digest == digest_of(b"bytes")
    assert (await registry.blobs.get(digest)).data == b"bytes"
    assert await is_stored(registry, digest)
    assert not await is_stored(registry, digest_of(b"others"))


async def test_a_blob_of_several_pieces_comes_back_whole(registry: Registry) -> None:
    data = bytes(range(256)) * (PIECE_BYTES // 256) + b"the rest"
    assert (await registry.blobs.get(await registry.blobs.put(Blob(data)))).data == data


async def test_several_blobs_come_together_each_by_itself_whole_missing_or_damaged(
    registry: Registry, redis: Redis, redis_prefix: str
) -> None:
    damaged = await registry.blobs.put(Blob(b"damaged"))
    await redis.set((await blob_keys(redis, redis_prefix))[0], b"other")
    large = bytes(PIECE_BYTES) + b"the rest"
    whole = [await registry.blobs.put(Blob(data)) for data in (b"a", large)]
    found = await registry.blobs.get_some([whole[0], digest_of(b"?"), damaged, whole[1]], 1 << 30)
    assert found[whole[0]] == Blob(b"a")
    assert found[whole[1]] == Blob(large)
    assert isinstance(found[damaged], BlobCorrupt)
    assert isinstance(found[digest_of(b"?")], BlobMissing)


@pytest.mark.parametrize(("max_bytes", "count"), [(0, 1), (25, 2), (30, 3), (1000, 3)])
async def test_only_as_many_blobs_come_together_as_there_is_room_for(
    registry: Registry, max_bytes: int, count: int
) -> None:
    digests = [await registry.blobs.put(Blob(bytes([n]) * 10)) for n in range(3)]
    assert list(await registry.blobs.get_some(digests, max_bytes)) == digests[:count]


async def test_a_blob_that_nobody_stored_is_missing(registry: Registry) -> None:
    with pytest.raises(BlobMissing, match="sha256:"):
        await registry.blobs.get(digest_of(b"?"))


async def blob_keys(redis: Redis, prefix: str) -> list[bytes]:
    return [key async for key in redis.scan_iter(f"{prefix}:blob:*", 1000) if key]


async def test_a_blob_changed_inside_redis_is_noticed(
    registry: Registry, redis: Redis, redis_prefix: str
) -> None:
    digest = await registry.blobs.put(Blob(b"bytes"))
    await redis.set((await blob_keys(redis, redis_prefix))[0], b"other")
    with pytest.raises(BlobCorrupt, match=digest):
        await registry.blobs.get(digest)


async def test_a_blob_evicted_by_redis_is_missing(
    registry: Registry, redis: Redis, redis_prefix: str
) -> None:
    digest = await registry.blobs.put(Blob(b"bytes"))
    await redis.delete((await blob_keys(redis, redis_prefix))[0])
    with pytest.raises(BlobMissing):
        await registry.blobs.get(digest)


@pytest.mark.parametrize("damage", [b"other", None])
async def test_storing_a_blob_again_mends_what_redis_has_of_it(
    registry: Registry, redis: Redis, redis_prefix: str, damage: bytes | None
) -> None:
    data = bytes(range(256)) * (PIECE_BYTES // 128)
    digest = await registry.blobs.put(Blob(data))
    before = set(await blob_keys(redis, redis_prefix))
    for key in before:
        await (redis.set(key, damage) if damage else redis.delete(key))
    assert await registry.blobs.put(Blob(data)) == digest
    assert (await registry.blobs.get(digest)).data == data
    assert set(await blob_keys(redis, redis_prefix)) == before


async def test_many_uploads_of_one_blob_leave_one_copy(
    registry: Registry, redis: Redis, redis_prefix: str
) -> None:
    digests = await asyncio.gather(*(registry.blobs.put(Blob(b"same")) for _ in range(20)))
    assert set(digests) == {digest_of(b"same")}
    await registry.blobs.collect(dry_run=False)
    assert len(await blob_keys(redis, redis_prefix)) == 1
    assert (await registry.blobs.get(digests[0])).data == b"same"


async def test_only_blobs_that_no_version_names_are_collected(
    registry: Registry, redis: Redis, redis_prefix: str
) -> None:
    shared, _ = await add(registry, "shared")
    await add(registry, "shared", AGE)
    unused = await registry.blobs.put(Blob(b"never registered"))
    await registry.delete_task(DEFAULT_TENANT, GENDER, "ann")
    assert (await registry.blobs.collect(dry_run=False, grace_s=0)).blobs == 1
    assert await is_stored(registry, shared)
    assert not await is_stored(registry, unused)
    await registry.delete_task(DEFAULT_TENANT, AGE, "ann")
    assert (await registry.blobs.collect(dry_run=False, grace_s=0)).blobs == 1
    assert await blob_keys(redis, redis_prefix) == []
    assert (await registry.blobs.collect(dry_run=False, grace_s=0)).blobs == 0


async def test_a_blob_is_kept_for_a_while_after_its_last_version(registry: Registry) -> None:
    digest, _ = await add(registry, "a")
    await registry.delete_task(DEFAULT_TENANT, GENDER, "ann")
    assert (await registry.blobs.collect(dry_run=False, grace_s=60)).blobs == 0
    assert (await registry.blobs.get(digest)).data == b"a"


async def test_a_collected_blob_can_be_stored_again(registry: Registry) -> None:
    digest = await registry.blobs.put(Blob(b"again"))
    await registry.blobs.collect(dry_run=False, grace_s=0)
    await registry.blobs.put(Blob(b"again"))
    assert (await registry.blobs.get(digest)).data == b"again"


async def test_a_dry_run_counts_what_would_be_freed_and_frees_nothing(
    registry: Registry, redis: Redis, redis_prefix: str
) -> None:
    await add(registry, "kept")
    await registry.blobs.put(Blob(bytes(PIECE_BYTES + 7)))
    await registry.blobs.put(Blob(b"young"))
    before = await blob_keys(redis, redis_prefix)
    assert await registry.blobs.collect(dry_run=True) == Collected(0, 0)
    expected = Collected(2, PIECE_BYTES + 7 + len(b"young"))
    assert await registry.blobs.collect(dry_run=True, grace_s=0) == expected
    assert await blob_keys(redis, redis_prefix) == before
    assert await registry.blobs.collect(dry_run=False, grace_s=0) == expected
    assert await registry.blobs.collect(dry_run=True, grace_s=0) == Collected(0, 0)
    assert await registry.blobs.totals() == Collected(1, len(b"kept"))


@pytest.mark.slow
async def test_more_blobs_than_one_script_frees_are_all_collected(registry: Registry) -> None:
    for index in range(230):
        await registry.blobs.put(Blob(str(index).encode()))
    assert (await registry.blobs.collect(dry_run=False, grace_s=0)).blobs == 230


async def test_pushing_while_blobs_are_collected_never_registers_a_lost_one(
    registry: Registry,
) -> None:
    async def push(round_number: int) -> Digest | None:
        try:
            return (await add(registry, f"content {round_number % 5}", TaskId(f"t{round_number}")))[
                0
            ]
        except BlobMissing:
            return None

    async def collect() -> None:
        for _ in range(30):
            await registry.blobs.collect(dry_run=False, grace_s=0)

    *pushed, _ = await asyncio.gather(*(push(index) for index in range(60)), collect())
    for digest in filter(None, pushed):
        assert digest_of((await registry.blobs.get(digest)).data) == digest


async def test_metadata_lies_in_one_hash_slot_and_blobs_are_spread(
    registry: Registry, redis: Redis, redis_prefix: str
) -> None:
    await add(registry, "a")
    await registry.keys.ensure_first(DEFAULT_TENANT, "first")
    keys = [key async for key in redis.scan_iter(f"*{redis_prefix}*", 1000)]
    blobs = [key for key in keys if b":blob:" in key]
    metadata = [key for key in keys if key not in blobs]
    assert all(key.startswith(f"{{{redis_prefix}}}:".encode()) for key in metadata)
    assert [key.count(b"{") for key in blobs] == [1]
    assert digest_of(b"a").encode() in blobs[0].partition(b"{")[2]


async def test_a_record_written_by_something_else_is_an_error_of_ours(
    registry: Registry, redis: Redis, redis_prefix: str
) -> None:
    await redis.hset(f"{{{redis_prefix}}}:tasks", "default/gender", "no JSON")
    with pytest.raises(RegistryFailed, match="task default/gender is unreadable"):
        await registry.feed.snapshot()


async def test_a_redis_that_is_not_there_makes_the_registry_unavailable(tmp_path: Path) -> None:
    redis = connect(f"unix://{tmp_path}/nobody.sock", retries=0)
    registry = Registry(redis)
    calls = [
        registry.feed.snapshot(),
        registry.feed.revision(),
        registry.blobs.put(Blob(b"x")),
        registry.blobs.get(digest_of(b"x")),
        registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions(), "ann"),
        registry.feed.wait_for_change(0, 1),
    ]
    for call in calls:
        with pytest.raises(RegistryUnavailable) as refused:
            await call
        assert refused.value.is_retryable
    await redis.aclose()


async def test_a_read_only_replica_is_named_as_such(own_redis: EmbeddedRedis) -> None:
    redis = connect(own_redis.url)
    registry = Registry(redis)
    await add(registry, "a")
    await redis.replicaof("127.0.0.1", "1")
    with pytest.raises(RegistryReadOnly, match="read-only replica"):
        await registry.put_task(DEFAULT_TENANT, AGE, TaskOptions(), "ann")
    with pytest.raises(RegistryReadOnly):
        await registry.blobs.put(Blob(b"b"))
    assert (await registry.feed.snapshot()).revision == 1
    await redis.aclose()


async def test_a_full_redis_refuses_changes_and_is_left_unchanged(
    own_redis: EmbeddedRedis,
) -> None:
    redis = connect(own_redis.url)
    registry = Registry(redis)
    first, _ = await add(registry, "a")
    second, _ = await add(registry, "b")
    before = await registry.feed.snapshot()
    await redis.config_set("maxmemory", "1")
    changes = [
        registry.add_version(DEFAULT_TENANT, GENDER, first, SUMMARY, "ann"),
        registry.rollback(DEFAULT_TENANT, GENDER, "ann"),
        registry.delete_version(DEFAULT_TENANT, GENDER, first, "ann"),
        registry.delete_task(DEFAULT_TENANT, GENDER, "ann"),
        registry.put_task(DEFAULT_TENANT, AGE, TaskOptions(), "ann"),
        registry.blobs.put(Blob(b"c")),
    ]
    for change in changes:
        with pytest.raises(RegistryFull, match="maxmemory") as refused:
            await change
        assert refused.value.category is Category.NO_ROOM
    assert await registry.feed.snapshot() == before
    assert len(await registry.feed.events()) == 2
    assert (await registry.blobs.get(second)).data == b"b"
    await redis.aclose()


async def test_a_redis_that_fills_up_during_an_upload_keeps_nothing_of_it(
    own_redis: EmbeddedRedis,
) -> None:
    redis = connect(own_redis.url)
    registry = Registry(redis)
    used = int((await redis.info("memory"))["used_memory"])
    await redis.config_set("maxmemory", str(used + 5 * PIECE_BYTES // 2))
    with pytest.raises(RegistryFull):
        await registry.blobs.put(Blob(bytes(8 * PIECE_BYTES)))
    assert await blob_keys(redis, "peterrec") == []
    await redis.aclose()


async def test_a_redis_without_the_replicas_it_demands_is_unavailable(
    own_redis: EmbeddedRedis,
) -> None:
    redis = connect(own_redis.url)
    await redis.config_set("min-replicas-to-write", "1")
    with pytest.raises(RegistryUnavailable, match="NOREPLICAS"):
        await Registry(redis).put_task(DEFAULT_TENANT, GENDER, TaskOptions(), "ann")
    await redis.aclose()


async def test_keys_of_another_kind_under_our_prefix_are_an_error_of_ours(
    registry: Registry, redis: Redis, redis_prefix: str
) -> None:
    await redis.set(f"{{{redis_prefix}}}:tasks", "not ours")
    with pytest.raises(RegistryFailed, match="WRONGTYPE"):
        await registry.list_tasks(DEFAULT_TENANT)


async def test_an_upload_that_took_too_long_is_not_taken_for_complete(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peterrec.patches.registry.blobs.UPLOAD_TIMEOUT_S", 0)
    uploading = asyncio.create_task(registry.blobs.put(Blob(bytes(4 * PIECE_BYTES))))
    while not uploading.done():
        await registry.blobs.collect(dry_run=False)
    with pytest.raises(RegistryUnavailable, match="took longer"):
        await uploading
    assert not await is_stored(registry, digest_of(bytes(4 * PIECE_BYTES)))


async def test_unused_blobs_are_collected_even_when_redis_is_full(own_redis: EmbeddedRedis) -> None:
    redis = connect(own_redis.url)
    registry = Registry(redis)
    await registry.blobs.put(Blob(b"unused"))
    await redis.config_set("maxmemory", "1")
    assert (await registry.blobs.collect(dry_run=False, grace_s=0)).blobs == 1
    assert await blob_keys(redis, "peterrec") == []
    await redis.aclose()


def test_a_location_is_read_back_from_its_text() -> None:
    location = BlobLocation.fresh(digest_of(b"x"), 3 * PIECE_BYTES + 1)
    assert BlobLocation.parse(str(location)) == location
    assert len(location.keys("p")) == 4
    assert len(BlobLocation.fresh(digest_of(b""), 0).keys("p")) == 1
