"""After any changes in any order, the registry and its readers agree with a plain model."""

import asyncio
import random
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from redis.asyncio import Redis

from peterrec.patches.errors import RegistryLost
from peterrec.patches.identity import DEFAULT_TENANT, Blob, Digest, TaskId, digest_of
from peterrec.patches.redis.embedded import EmbeddedRedis
from peterrec.patches.registry.api_keys import Scope
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.records import (
    EventAction,
    Position,
    RegistryEvent,
    RegistrySnapshot,
    TaskOptions,
    Usage,
)
from peterrec.patches.registry.registry import Registry, open_redis
from peterrec.patches.registry.traffic import Canary, Traffic
from tests.patches.lossy_proxy import lossy_proxy
from tests.patches.redis_servers import connect
from tests.patches.reference_registry import (
    Change,
    ReferenceRegistry,
    assert_same,
    assert_same_versions,
    change_of,
    perform,
)
from tests.patches.registry.test_registry import SUMMARY

TASKS = [TaskId("one"), TaskId("two")]
CONTENTS = [b"a", b"b", b"c"]
DIGESTS = [digest_of(content) for content in CONTENTS]
ALIASES = ["prod", "canary"]
TRAFFICS = [
    Traffic(90, (Canary(DIGESTS[0], 10),)),
    Traffic(50, (Canary(DIGESTS[0], 50),), shadow=(DIGESTS[1],)),
    Traffic(1, shadow=(DIGESTS[2],)),
]
CHANGES = [
    EventAction.PUT_TASK,
    EventAction.DELETE_TASK,
    EventAction.ADD_VERSION,
    EventAction.DELETE_VERSION,
    EventAction.SET_ALIAS,
    EventAction.DELETE_ALIAS,
    EventAction.PUT_TRAFFIC,
    EventAction.CLEAR_TRAFFIC,
    EventAction.TRIP_GUARD,
    EventAction.ROLLBACK,
]

Result = TypeVar("Result")


@pytest.fixture(scope="module", autouse=True)
def where_redis_is(redis_url: str) -> None:
    RegistryMachine.redis_url = redis_url


class RegistryMachine(RuleBasedStateMachine):
    """A registry, two readers that look when they like, and a plain model of what is true."""

    redis_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = TemporaryDirectory()
        self.redis = connect(self.redis_url)
        self.prefix = f"test-{uuid4().hex}"
        self.registry = Registry(self.redis, self.prefix)
        self.model = ReferenceRegistry()
        self.keys: set[str] = set()
        self.known: list[RegistrySnapshot | None] = [None, None]
        self.backup: tuple[dict[bytes, bytes | None], ReferenceRegistry, set[str]] = (
            {},
            self.model,
            set(),
        )

    def run(self, work: Coroutine[None, None, Result]) -> Result:
        return self.loop.run_until_complete(work)

    @initialize()
    def store_the_bundles(self) -> None:
        for content in CONTENTS:
            self.run(self.registry.blobs.put(Blob(content)))
        self.back_up()
        for digest in DIGESTS:
            change = Change(EventAction.ADD_VERSION, TASKS[0], digest)
            assert self.model.apply(change) is None
            assert self.run(perform(self.registry, change)) == self.model.revision

    @rule(
        action=st.sampled_from(CHANGES + [EventAction.ADD_VERSION, EventAction.PUT_TRAFFIC] * 3),
        task=st.sampled_from(TASKS),
        digest=st.sampled_from(DIGESTS),
        alias=st.sampled_from(ALIASES + ["prod"] * 2),
        description=st.sampled_from(["", "x"]),
        traffic=st.sampled_from(TRAFFICS),
        precondition=st.sampled_from([None, None, "right", "wrong"]),
    )
    def change(
        self,
        action: EventAction,
        task: TaskId,
        digest: Digest,
        alias: str,
        description: str,
        traffic: Traffic,
        precondition: str | None,
    ) -> None:
        found = self.model.tasks.get(Change(action, task).ref)
        revision = found.revision if found else 0
        change = Change(
            action,
            task,
            digest,
            alias,
            TaskOptions(description),
            traffic,
            found.traffic_revision - (precondition == "wrong") if found else 0,
            {None: None, "right": revision, "wrong": revision + 1}[precondition],
        )
        before = self.model.revision
        refusal = self.model.apply(change)
        is_made = self.model.revision > before
        result = self.run(perform(self.registry, change))
        assert result == (refusal or (self.model.revision if is_made else revision))

    @rule(task=st.sampled_from(TASKS))
    def a_guard_trips(self, task: TaskId) -> None:
        found = self.model.tasks.get(Change(EventAction.TRIP_GUARD, task).ref)
        if found is not None:
            judged = found.traffic_revision
            change = Change(EventAction.TRIP_GUARD, task, traffic_revision=judged)
            assert self.model.apply(change) is None
            assert isinstance(self.run(perform(self.registry, change)), int)

    @rule(task=st.sampled_from(TASKS))
    def roll_back_as_far_as_it_goes(self, task: TaskId) -> None:
        change = Change(EventAction.ROLLBACK, task)
        refusal = None
        while refusal is None:
            refusal = self.model.apply(change)
            result = self.run(perform(self.registry, change))
            assert result == (refusal or self.model.revision)
            self.the_registry_is_what_the_model_says()

    @rule()
    def create_a_key(self) -> None:
        _, record, _ = self.run(self.registry.keys.create(DEFAULT_TENANT, [Scope("predict")], "x"))
        self.keys.add(record.key_id)
        self.model.revision += 1

    @rule()
    def revoke_the_keys(self) -> None:
        for key_id in self.keys:
            self.run(self.registry.keys.revoke(DEFAULT_TENANT, key_id))
            self.model.revision += 1
        self.keys = set()

    @rule(reader=st.integers(0, 1))
    def a_reader_looks(self, reader: int) -> None:
        self.known[reader] = self.run(self.registry.feed.catch_up(self.known[reader]))
        self.agree(self.known[reader])

    @rule(reader=st.integers(0, 1))
    def a_notice_comes_twice(self, reader: int) -> None:
        self.a_reader_looks(reader)
        before = self.known[reader]
        self.a_reader_looks(reader)
        assert self.known[reader] is before

    @rule(reader=st.integers(0, 1))
    def a_reader_restarts_from_its_copy(self, reader: int) -> None:
        known = self.known[reader]
        if known is not None:
            cache = BlobCache(Path(self.folder.name))
            cache.save_snapshot(known)
            self.known[reader] = cache.load_snapshot()
            assert self.known[reader] == known

    @rule(reader=st.integers(0, 1))
    def a_reader_restarts_without_a_copy(self, reader: int) -> None:
        self.known[reader] = None

    @rule()
    def back_up(self) -> None:
        dumped = self.run(dump(self.redis, self.prefix))
        self.backup = (dumped, self.model.copy(), set(self.keys))

    @rule()
    def redis_comes_back_as_it_was_at_the_backup(self) -> None:
        """A reader that knows better says so, until an operator accepts it."""
        dumped, model, keys = self.backup
        known = self.run(self.registry.feed.snapshot())
        self.run(restore(self.redis, self.prefix, dumped))
        self.model, self.keys = model.copy(), set(keys)
        found = self.run(self.registry.feed.position())
        if found != known.position:
            with pytest.raises(RegistryLost):
                self.run(self.registry.feed.catch_up(known))
        readers = [reader.position for reader in self.known if reader is not None]
        self.model.revision = self.run(accept_for([known.position, *readers], self.registry))

    @invariant()
    def the_registry_is_what_the_model_says(self) -> None:
        self.agree(self.run(self.registry.feed.snapshot()))

    @invariant()
    def what_the_tenant_uses_is_counted(self) -> None:
        usage = self.run(self.registry.tenants.get(DEFAULT_TENANT)).usage
        versions = sum(len(task.numbers) for task in self.model.tasks.values())
        assert usage == Usage(
            tasks=len(self.model.tasks),
            versions=versions,
            bundle_bytes=versions * SUMMARY.size_bytes,
            head_bytes=versions * SUMMARY.head_bytes,
            patch_bytes=versions * SUMMARY.patch_bytes,
            keys=len(self.keys),
        )

    def agree(self, snapshot: RegistrySnapshot | None) -> None:
        assert snapshot is not None
        assert_same(snapshot, self.model)
        assert snapshot.keys.keys() == self.keys

    def teardown(self) -> None:
        for reader in (0, 1):
            self.a_reader_looks(reader)
        for ref in self.model.tasks:
            assert_same_versions(self.run(self.registry.get_task(*ref)), self.model)
        self.run(restore(self.redis, self.prefix, {}))
        self.run(self.registry.close())
        self.loop.close()
        self.folder.cleanup()


async def accept_for(known: Sequence[Position], registry: Registry) -> int:
    """Let everybody who knows one of these go over to what Redis holds; return its revision.

    A reader may have been away when a loss was accepted whose record Redis has lost since.
    """
    for lost in {each.identity: each for each in known}.values():
        seen = await registry.feed.position()
        await registry.accept(lost, seen, "ops")
    return await registry.feed.revision()


async def dump(redis: Redis, prefix: str) -> dict[bytes, bytes | None]:
    """Every key of one registry but the outcomes of late requests."""
    found = [key async for key in redis.scan_iter(f"{{{prefix}}}:*", 1000)]
    kept = [key for key in found if b":request:" not in key]
    return {key: await redis.dump(key) for key in kept}


async def restore(redis: Redis, prefix: str, dumped: dict[bytes, bytes | None]) -> None:
    """Make the registry what it was."""
    for key in [key async for key in redis.scan_iter(f"{{{prefix}}}:*", 1000)]:
        await redis.delete(key)
    for key, value in dumped.items():
        assert value is not None
        await redis.restore(key, 0, value)


TestAnySequence = pytest.mark.slow(RegistryMachine.TestCase)
TestAnySequence.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


@dataclass
class Writer:
    """Somebody who makes random changes, sometimes on the strength of what was read before."""

    registry: Registry
    dice: random.Random

    async def work(self, count: int) -> list[tuple[Change, str | int]]:
        return [await self._one() for _ in range(count)]

    async def _one(self) -> tuple[Change, str | int]:
        change = await self._chosen()
        return change, await perform(self.registry, change)

    async def _chosen(self) -> Change:
        task = self.dice.choice(TASKS)
        snapshot = await self.registry.feed.snapshot()
        record = snapshot.tasks.get(Change(EventAction.PUT_TASK, task).ref)
        traffic_revision = record.traffic.revision if record and record.traffic else 0
        frequent = [EventAction.ADD_VERSION, EventAction.PUT_TRAFFIC, EventAction.TRIP_GUARD] * 3
        return Change(
            self.dice.choice(CHANGES + frequent),
            task,
            self.dice.choice(DIGESTS),
            self.dice.choice(ALIASES),
            TaskOptions(self.dice.choice(["", "x"])),
            self.dice.choice(TRAFFICS),
            traffic_revision,
            self.dice.choice([None, record.revision if record else 0]),
        )


@pytest.mark.parametrize("seed", range(3))
async def test_many_admins_at_once_end_in_one_of_the_serial_histories(
    registry: Registry, redis_url: str, redis_prefix: str, seed: int
) -> None:
    for content in CONTENTS:
        await registry.blobs.put(Blob(content))
    others = [Registry(open_redis(redis_url), redis_prefix) for _ in range(3)]
    writers = [Writer(others[n % 3], random.Random(seed * 100 + n)) for n in range(12)]
    made = await asyncio.gather(*(writer.work(40) for writer in writers))
    for other in others:
        await other.close()
    events = await registry.feed.events(limit=10_000)
    model = ReferenceRegistry()
    revisions_before: dict[int, int] = {}
    for event in events:
        change = change_of(event, model)
        before = model.tasks.get(change.ref)
        revisions_before[event.revision] = before.revision if before else 0
        assert model.apply(change) is None
        assert model.revision == event.revision
        assert_told_truly(event, model, before.state.traffic if before else None)
    assert_same(await registry.feed.snapshot(), model)
    for ref in model.tasks:
        assert_same_versions(await registry.get_task(*ref), model)
    recorded = {event.revision: event for event in events}
    for change, result in (pair for pairs in made for pair in pairs):
        is_guard = change.action is EventAction.TRIP_GUARD
        if isinstance(result, int) and change.if_match is not None and not is_guard:
            # it was made on what the writer had seen, or there was nothing to do
            assert change.if_match in (result, revisions_before[result])
            assert recorded[result].task == change.task
    assert sum(isinstance(result, int) for pairs in made for _, result in pairs) >= len(events)
    assert any(event.action is EventAction.TRIP_GUARD for event in events)
    assert any(event.action is EventAction.ROLLBACK for event in events)


def assert_told_truly(
    event: RegistryEvent, model: ReferenceRegistry, traffic_before: Traffic | None
) -> None:
    """What the event says of before and after is what the replay found."""
    after = model.tasks.get(Change(event.action, event.task or TaskId("")).ref)
    touches_traffic = event.action in (
        EventAction.PUT_TRAFFIC,
        EventAction.CLEAR_TRAFFIC,
        EventAction.TRIP_GUARD,
        EventAction.ROLLBACK,
        EventAction.DELETE_TASK,
    )
    if touches_traffic:
        assert event.previous_traffic == traffic_before
        assert event.traffic == (after.state.traffic if after else None)
    if event.aliases is not None and after is not None:
        aliases = {alias: target.digest for alias, target in event.aliases.items()}
        assert aliases == dict(after.state.aliases)
    if event.current is not None and event.alias is not None and after is not None:
        assert after.state.target(event.alias) == event.current


PREPARATIONS = [
    Change(EventAction.ADD_VERSION, TASKS[0], DIGESTS[0]),
    Change(EventAction.ADD_VERSION, TASKS[0], DIGESTS[1]),
    Change(EventAction.SET_ALIAS, TASKS[0], DIGESTS[0], "canary"),
    Change(EventAction.ADD_VERSION, TASKS[0], DIGESTS[2], "spare"),
    Change(EventAction.DELETE_ALIAS, TASKS[0], alias="spare"),
    Change(EventAction.PUT_TRAFFIC, TASKS[0], traffic=TRAFFICS[0]),
]
EFFECTIVE = [
    Change(EventAction.PUT_TASK, TASKS[0], options=TaskOptions("new")),
    Change(EventAction.DELETE_TASK, TASKS[0]),
    Change(EventAction.ADD_VERSION, TASKS[0], DIGESTS[0]),
    Change(EventAction.DELETE_VERSION, TASKS[0], DIGESTS[2]),
    Change(EventAction.SET_ALIAS, TASKS[0], DIGESTS[2]),
    Change(EventAction.DELETE_ALIAS, TASKS[0], alias="canary"),
    Change(EventAction.PUT_TRAFFIC, TASKS[0], traffic=Traffic(1, (Canary(DIGESTS[0], 1),))),
    Change(EventAction.CLEAR_TRAFFIC, TASKS[0]),
    Change(EventAction.TRIP_GUARD, TASKS[0], traffic_revision=len(PREPARATIONS)),
    Change(EventAction.ROLLBACK, TASKS[0]),
]


@pytest.mark.parametrize("change", EFFECTIVE, ids=[change.action for change in EFFECTIVE])
async def test_a_change_whose_answer_was_lost_is_not_made_twice(
    embedded_redis: EmbeddedRedis, redis_prefix: str, tmp_path: Path, change: Change
) -> None:
    upstream = Path(embedded_redis.url.removeprefix("unix://"))
    # only the answers of scripts that changed something hold a revision
    async with lossy_proxy(upstream, tmp_path / "s", b'"revision"') as proxy:
        registry = Registry(open_redis(f"unix://{tmp_path / 's'}"), redis_prefix)
        for content in CONTENTS:
            await registry.blobs.put(Blob(content))
        for preparation in PREPARATIONS:
            assert isinstance(await perform(registry, preparation), int)
        before = await registry.feed.revision()
        proxy.answers_to_lose = 2
        assert await perform(registry, change) == before + 1
        assert proxy.answers_lost == 2
        assert await registry.feed.revision() == before + 1
        await registry.close()


async def test_a_key_whose_answer_was_lost_exists_once_and_is_the_one_shown(
    embedded_redis: EmbeddedRedis, redis_prefix: str, tmp_path: Path
) -> None:
    upstream = Path(embedded_redis.url.removeprefix("unix://"))
    async with lossy_proxy(upstream, tmp_path / "s", b'"revision"') as proxy:
        registry = Registry(open_redis(f"unix://{tmp_path / 's'}"), redis_prefix)
        proxy.answers_to_lose = 1
        created = await registry.keys.ensure_first(DEFAULT_TENANT, "first")
        assert created is not None
        assert await registry.keys.of_tenant(DEFAULT_TENANT) == (created[1],)
        await registry.close()


async def test_a_guarded_change_whose_answer_was_lost_does_not_appear_stale(
    embedded_redis: EmbeddedRedis, redis_prefix: str, tmp_path: Path
) -> None:
    upstream = Path(embedded_redis.url.removeprefix("unix://"))
    async with lossy_proxy(upstream, tmp_path / "s", b'"revision"') as proxy:
        registry = Registry(open_redis(f"unix://{tmp_path / 's'}"), redis_prefix)
        proxy.answers_to_lose = 1
        put = await registry.put_task(DEFAULT_TENANT, TASKS[0], TaskOptions(), "ann", if_match=0)
        assert put == (1, True)
        await registry.close()
