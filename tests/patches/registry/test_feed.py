"""Reading what changed instead of everything, and noticing when that is not enough."""

import asyncio
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from peterrec.patches.identity import DEFAULT_TENANT, TaskId, TaskRef
from peterrec.patches.registry.api_keys import Scope
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.records import Position, TaskOptions
from peterrec.patches.registry.registry import Registry
from tests.patches.script_limits import MAX_CHANGES

AGE, GENDER = TaskId("age"), TaskId("gender")


async def describe(registry: Registry, task: TaskId, description: str) -> int:
    put = await registry.put_task(DEFAULT_TENANT, task, TaskOptions(description), "ann")
    return put.revision


async def test_nothing_changed_since_now(registry: Registry) -> None:
    empty = await registry.feed.snapshot()
    assert empty.position == Position(0, "")
    found = await registry.feed.changes(empty.position)
    assert found is not None
    assert (found.position, found.tasks, found.removed_tasks) == (empty.position, (), ())


async def test_only_what_was_touched_is_read(registry: Registry) -> None:
    await describe(registry, AGE, "a")
    before = await registry.feed.snapshot()
    await describe(registry, GENDER, "g")
    await registry.put_task(DEFAULT_TENANT, TaskId("brief"), TaskOptions(), "ann")
    await registry.delete_task(DEFAULT_TENANT, TaskId("brief"), "ann")
    _, key, _ = await registry.keys.create(DEFAULT_TENANT, [Scope("predict")], "shop")
    found = await registry.feed.changes(before.position)
    assert found is not None
    assert [record.task for record in found.tasks] == [GENDER]
    assert found.removed_tasks == (TaskRef(DEFAULT_TENANT, TaskId("brief")),)
    assert (found.keys, found.removed_keys) == ((key,), ())
    assert found.applied_to(before) == await registry.feed.snapshot()


async def test_a_removed_task_and_key_are_told(registry: Registry) -> None:
    await describe(registry, AGE, "a")
    _, key, _ = await registry.keys.create(DEFAULT_TENANT, [Scope("predict")], "shop")
    before = await registry.feed.snapshot()
    await registry.delete_task(DEFAULT_TENANT, AGE, "ann")
    await registry.keys.revoke(DEFAULT_TENANT, key.key_id)
    found = await registry.feed.changes(before.position)
    assert found is not None
    assert found.removed_keys == (key.key_id,)
    assert found.applied_to(before) == await registry.feed.snapshot()


async def test_too_many_changes_call_for_a_snapshot(registry: Registry) -> None:
    before = await registry.feed.snapshot()
    for index in range(MAX_CHANGES + 1):
        await describe(registry, AGE, str(index))
    assert await registry.feed.changes(before.position) is None
    assert await registry.feed.catch_up(before) == await registry.feed.snapshot()


async def test_a_past_that_was_dropped_calls_for_a_snapshot(
    registry: Registry, redis: Redis, redis_prefix: str
) -> None:
    await describe(registry, AGE, "a")
    before = await registry.feed.snapshot()
    for index in range(5):
        await describe(registry, AGE, str(index))
    await redis.xtrim(f"{{{redis_prefix}}}:changes", maxlen=2, approximate=False)
    assert await registry.feed.changes(before.position) is None
    await redis.delete(f"{{{redis_prefix}}}:changes")
    assert await registry.feed.changes((await registry.feed.snapshot()).position) is None


async def test_a_reader_goes_on_from_the_copy_on_its_disk(
    registry: Registry, tmp_path: Path
) -> None:
    await describe(registry, AGE, "a")
    BlobCache(tmp_path).save_snapshot(await registry.feed.snapshot())
    await describe(registry, GENDER, "g")
    recalled = BlobCache(tmp_path).load_snapshot()
    assert recalled is not None
    found = await registry.feed.changes(recalled.position)
    assert found is not None
    assert [record.task for record in found.tasks] == [GENDER]


async def test_readers_amid_writers_never_see_half_of_a_change(registry: Registry) -> None:
    async def write(task: TaskId) -> None:
        for index in range(40):
            await describe(registry, task, str(index))

    writers = [asyncio.create_task(write(TaskId(f"t{index}"))) for index in range(8)]
    known = await registry.feed.snapshot()
    while not all(writer.done() for writer in writers):
        known = await registry.feed.catch_up(known)
        newest = max((record.revision for record in known.tasks.values()), default=0)
        assert newest == known.revision
    await asyncio.gather(*writers)
    assert await registry.feed.catch_up(known) == await registry.feed.snapshot()


@pytest.mark.slow
async def test_catching_up_does_not_cost_more_with_ten_thousand_tasks(registry: Registry) -> None:
    names = [TaskId(f"t{index}") for index in range(10_000)]
    for start in range(0, len(names), 500):
        chunk = names[start : start + 500]
        await asyncio.gather(*(describe(registry, name, "x") for name in chunk))
    known = await registry.feed.snapshot()
    started = time.perf_counter()
    await registry.feed.snapshot()
    whole_s = time.perf_counter() - started
    started = time.perf_counter()
    for index in range(20):
        await describe(registry, names[index], "y")
        found = await registry.feed.changes(known.position)
        assert found is not None
        known = found.applied_to(known)
    each_s = (time.perf_counter() - started) / 20
    assert known == await registry.feed.snapshot()
    assert each_s * 10 < whole_s


async def test_a_snapshot_that_was_caught_up_knows_what_was_touched(registry: Registry) -> None:
    await registry.put_task(DEFAULT_TENANT, TaskId("gender"), TaskOptions(), "test")
    known = await registry.feed.catch_up(None)
    assert known.touched is None
    await registry.put_task(DEFAULT_TENANT, TaskId("age"), TaskOptions(), "test")
    await registry.delete_task(DEFAULT_TENANT, TaskId("gender"), "test")
    found = await registry.feed.catch_up(known)
    names = {ref.task for ref in found.touched or ()}
    assert names == {"gender", "age"}
    kept = {id(ref) for ref in found.tasks}
    assert any(id(ref) in kept for ref in found.touched or ()), "a task's identity is kept once"
