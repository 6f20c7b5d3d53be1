"""Any sequence of changes ends where a plain model says; lost answers repeat nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import PeterRecError
from patches.embedded import EmbeddedRedis
from patches.identity import DEFAULT_TENANT, Digest, TaskId, digest_of
from patches.records import TaskOptions
from patches.registry import Registry, open_redis
from tests.patches.lossy_proxy import lossy_proxy
from tests.patches.test_registry import SUMMARY

TASK = TaskId("task")
CONTENTS = [b"a", b"b", b"c"]
DIGESTS = [digest_of(content) for content in CONTENTS]
ALIASES = ["prod", "canary"]


@dataclass
class ModelTask:
    """The rules of one task, written the slow and obvious way."""

    numbers: dict[Digest, int] = field(default_factory=dict)
    stacks: dict[str, list[Digest]] = field(default_factory=dict)
    next_number: int = 1

    def add_version(self, digest: Digest, alias: str) -> str | None:
        if digest not in self.numbers:
            self.numbers[digest] = self.next_number
            self.next_number += 1
        return self.set_alias(digest, alias)

    def set_alias(self, digest: Digest, alias: str) -> str | None:
        if digest not in self.numbers:
            return "version_not_found" if self.next_number > 1 else "task_not_found"
        stack = self.stacks.setdefault(alias, [])
        if stack[-1:] != [digest]:
            stack.append(digest)
        return None

    def rollback(self, _: Digest, alias: str) -> str | None:
        if len(self.stacks.get(alias, [])) < 2:
            return "nothing_to_roll_back" if self.next_number > 1 else "task_not_found"
        self.stacks[alias].pop()
        return None

    def delete_version(self, digest: Digest, _: str) -> str | None:
        if digest not in self.numbers:
            return "version_not_found" if self.next_number > 1 else "task_not_found"
        if any(stack[-1] == digest for stack in self.stacks.values()):
            return "version_in_use"
        del self.numbers[digest]
        for alias, stack in self.stacks.items():
            kept: list[Digest] = []
            for other in stack:
                if other != digest and kept[-1:] != [other]:
                    kept.append(other)
            self.stacks[alias] = kept
        return None


CHANGES = ["add_version", "set_alias", "rollback", "delete_version"]
steps = st.lists(
    st.tuples(st.sampled_from(CHANGES), st.sampled_from(DIGESTS), st.sampled_from(ALIASES)),
    max_size=20,
)


async def change(registry: Registry, name: str, digest: Digest, alias: str) -> str | None:
    """Make one change; the code of its refusal if it was refused."""
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "add_version": lambda: registry.add_version(
            DEFAULT_TENANT, TASK, digest, SUMMARY, "ann", alias
        ),
        "set_alias": lambda: registry.set_alias(DEFAULT_TENANT, TASK, alias, digest, "ann"),
        "rollback": lambda: registry.rollback(DEFAULT_TENANT, TASK, "ann", alias),
        "delete_version": lambda: registry.delete_version(DEFAULT_TENANT, TASK, digest, "ann"),
    }
    try:
        await calls[name]()
    except PeterRecError as error:
        return error.code
    return None


@given(steps)
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_changes_ends_where_a_plain_model_says(
    redis_url: str, changes: list[tuple[str, Digest, str]]
) -> None:
    async def run() -> None:
        redis = open_redis(redis_url)
        registry, model = Registry(redis, f"test-{uuid4().hex}"), ModelTask()
        for content in CONTENTS:
            await registry.put_blob(content)
        for name, digest, alias in changes:
            refusal = await change(registry, name, digest, alias)
            assert refusal == getattr(model, name)(digest, alias)
        await check(registry, model)
        await redis.aclose()

    asyncio.run(run())


async def check(registry: Registry, model: ModelTask) -> None:
    events = await registry.events()
    assert [event.revision for event in events] == [*range(1, await registry.revision() + 1)]
    snapshot = await registry.snapshot()
    if not events:
        assert snapshot.tasks == {}
        return
    detail = await registry.get_task(DEFAULT_TENANT, TASK)
    assert snapshot.tasks[detail.record.ref] == detail.record
    assert detail.record.revision == snapshot.revision
    assert {v.digest: v.version for v in detail.versions} == model.numbers
    assert {alias: (t.digest, t.version) for alias, t in detail.record.aliases.items()} == {
        alias: (stack[-1], model.numbers[stack[-1]]) for alias, stack in model.stacks.items()
    }


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_whose_answer_was_lost_is_not_made_twice(
    embedded_redis: EmbeddedRedis, redis_prefix: str, tmp_path: Path, name: str
) -> None:
    upstream = Path(embedded_redis.url.removeprefix("unix://"))
    # only the answers of scripts that changed something hold a revision
    async with lossy_proxy(upstream, tmp_path / "s", b'"revision"') as proxy:
        redis = open_redis(f"unix://{tmp_path / 's'}")
        registry = Registry(redis, redis_prefix)
        for content in CONTENTS:
            await registry.put_blob(content)
        for digest in DIGESTS[:2]:
            assert await change(registry, "add_version", digest, "prod") is None
        await registry.set_alias(DEFAULT_TENANT, TASK, "prod", DIGESTS[0], "ann")
        before = await registry.revision()
        proxy.answers_to_lose = 2
        changed = DIGESTS[2] if name == "add_version" else DIGESTS[1]
        assert await change(registry, name, changed, "prod") is None
        assert proxy.answers_lost == 2
        assert await registry.revision() == before + 1
        await redis.aclose()


async def test_a_key_whose_answer_was_lost_exists_once_and_is_the_one_shown(
    embedded_redis: EmbeddedRedis, redis_prefix: str, tmp_path: Path
) -> None:
    upstream = Path(embedded_redis.url.removeprefix("unix://"))
    async with lossy_proxy(upstream, tmp_path / "s", b'"revision"') as proxy:
        redis = open_redis(f"unix://{tmp_path / 's'}")
        registry = Registry(redis, redis_prefix)
        proxy.answers_to_lose = 1
        created = await registry.ensure_first_key(DEFAULT_TENANT, "first")
        assert created is not None
        assert await registry.list_keys(DEFAULT_TENANT) == (created[1],)
        await redis.aclose()


async def test_a_guarded_change_whose_answer_was_lost_does_not_appear_stale(
    embedded_redis: EmbeddedRedis, redis_prefix: str, tmp_path: Path
) -> None:
    upstream = Path(embedded_redis.url.removeprefix("unix://"))
    async with lossy_proxy(upstream, tmp_path / "s", b'"revision"') as proxy:
        redis = open_redis(f"unix://{tmp_path / 's'}")
        registry = Registry(redis, redis_prefix)
        proxy.answers_to_lose = 1
        put = await registry.put_task(DEFAULT_TENANT, TASK, TaskOptions(), "ann", if_match=0)
        assert put == (1, True)
        await redis.aclose()
