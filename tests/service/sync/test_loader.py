"""Bundles come from the cache or the registry; what is there is served while the rest loads."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from redis.asyncio import Redis

from peterrec.model.errors import PeterRecError
from peterrec.model.inference.steps import finish
from peterrec.model.spec import TableSpec
from peterrec.patches.bundle.verify import BundleLimits
from peterrec.patches.errors import CacheUnwritable
from peterrec.patches.identity import Blob, Digest, TaskId, TaskRef, TenantId, digest_of
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.losses import Knowledge
from peterrec.patches.registry.records import RegistrySnapshot, TaskEntry
from peterrec.patches.registry.registry import Registry, open_redis
from peterrec.service.device.load import Failures, Loading
from peterrec.service.device.serving_table import DesiredState, ServingTable
from peterrec.service.device.slots import LocalBundle, SlotStore
from peterrec.service.sync.loader import BundleLoader
from peterrec.service.sync.source import BATCH_BUNDLES, BundleSource, Demands
from tests.patches.redis_servers import RedisServer, connect, running
from tests.service.random_bundles import Workshop
from tests.waiting import soon

MANY = 3 * BATCH_BUNDLES


class Replica:
    """A store, a table, a loader between them and the registry; all on the test's event loop."""

    def __init__(
        self, workshop: Workshop, registry: Registry, folder: Path, head_bytes: int = 1 << 20
    ) -> None:
        self.store = SlotStore(workshop.loaded.backbone, head_bytes)
        self.table = ServingTable(1, self.store.by_digest)
        self.loading = Loading(self.store, self.table, lambda: None)
        self.cache = BlobCache(folder)
        demands = Demands(workshop.identity, BundleLimits())
        self.source = BundleSource(registry, registry, self.cache, demands, Knowledge())
        self.loader = BundleLoader(self.source, self.load, self.flip, self.note)
        self.wanted: dict[TaskRef, TaskEntry] = {}
        self.served: list[int] = []
        self.batches: list[int] = []
        self.refused: dict[str, str] = {}

    async def load(self, bundles: Sequence[LocalBundle]) -> Failures:
        self.batches.append(len(bundles))
        return finish(self.loading.load(bundles))

    async def flip(self) -> None:
        self.loading.hand_over()
        self.table.reconcile(DesiredState(1, self.wanted))
        self.served.append(len(self.table.full().tasks) - len(self.table.missing()))
        self.loader.want(self.table.missing())

    def note(self, digest: Digest, error: PeterRecError) -> None:
        self.refused[digest] = error.code

    async def want(self, digests: Sequence[Digest]) -> None:
        self.wanted = {
            ref: TaskEntry.of(ref, 1, {"prod": 1}, {1: digest})
            for digest in digests
            for ref in [TaskRef(TenantId("acme"), TaskId(digest))]
        }
        await self.flip()

    def resident(self) -> set[str]:
        return {residency.digest for residency in self.store.resident.values()}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def bundles(workshop: Workshop) -> list[bytes]:
    return [workshop.bundle("value", seed) for seed in range(MANY)]


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def replica(workshop: Workshop, registry: Registry, tmp_path: Path) -> AsyncIterator[Replica]:
    replica = Replica(workshop, registry, tmp_path / "cache")
    loading = asyncio.create_task(replica.loader.run())
    yield replica
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)


async def stored(registry: Registry, bundles: Sequence[bytes]) -> list[Digest]:
    return list(await asyncio.gather(*(registry.blobs.put(Blob(data)) for data in bundles)))


@pytest.mark.slow
async def test_many_bundles_load_in_batches_and_are_served_as_they_arrive(
    replica: Replica, registry: Registry, bundles: list[bytes]
) -> None:
    digests = await stored(registry, bundles)
    await replica.want(digests)
    await soon(lambda: replica.loader.is_idle)
    assert replica.resident() == set(digests)
    assert replica.served[0] == 0
    assert 0 < replica.served[1] < MANY
    assert replica.served[-1] == MANY
    assert max(replica.batches) == BATCH_BUNDLES
    assert replica.cache.digests() == set(digests)


async def test_a_start_with_a_full_cache_asks_the_registry_for_nothing(
    replica: Replica, bundles: list[bytes]
) -> None:
    digests = [digest_of(data) for data in bundles]
    for data in bundles:
        replica.cache.put(Blob(data))
    await replica.want(digests)
    await soon(lambda: replica.loader.is_idle)
    assert replica.resident() == set(digests)


async def test_a_bundle_that_is_refused_keeps_out_no_other_of_its_batch(
    replica: Replica, registry: Registry, bundles: list[bytes], workshop: Workshop
) -> None:
    foreign = Workshop(workshop.folder.parent / "foreign", items=list(map(str, range(200))))
    digests = await stored(registry, [*bundles[:4], foreign.bundle("value", 1)])
    await replica.want([*digests, digest_of(b"never stored")])
    await soon(lambda: replica.loader.is_idle)
    assert replica.resident() == set(digests[:4])
    assert replica.refused == {
        digests[4]: "bundle_rejected",
        digest_of(b"never stored"): "blob_missing",
    }


async def test_a_damaged_file_in_the_cache_is_dropped_and_fetched_again(
    replica: Replica, registry: Registry, bundles: list[bytes]
) -> None:
    digests = await stored(registry, bundles[:2])
    replica.cache.path_of(digests[0]).write_bytes(bundles[0][:-1] + b"?")
    await replica.want(digests)
    await soon(lambda: replica.resident() == set(digests))
    assert replica.cache.get(digests[0]).data == bundles[0]


async def test_a_blob_that_was_damaged_in_redis_is_tried_again_and_served_once_it_is_whole(
    replica: Replica, registry: Registry, bundles: list[bytes], redis: Redis, redis_prefix: str
) -> None:
    (digest,) = await stored(registry, bundles[:1])
    (key,) = [key async for key in redis.scan_iter(f"{redis_prefix}:blob:*", 1000)]
    await redis.set(key, b"damaged")
    await replica.want([digest])
    await soon(lambda: replica.refused == {digest: "blob_corrupt"})
    await redis.set(key, bundles[0])
    await soon(lambda: replica.resident() == {digest})


async def test_a_bundle_that_has_no_room_on_the_device_is_tried_again_and_counted_until_it_has(
    workshop: Workshop, registry: Registry, bundles: list[bytes], tmp_path: Path
) -> None:
    replica = Replica(workshop, registry, tmp_path / "cache", head_bytes=1)
    loading = asyncio.create_task(replica.loader.run())
    (digest,) = await stored(registry, bundles[:1])
    await replica.want([digest])
    await soon(lambda: replica.loader.failing == 1)
    assert replica.refused == {digest: "head_budget_exceeded"}
    assert replica.loader.refused == []
    await soon(lambda: len(replica.batches) >= 3, 30)
    await replica.want([])
    assert replica.loader.failing == 0
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)


async def test_what_is_no_longer_wanted_is_not_loaded(
    replica: Replica, registry: Registry, bundles: list[bytes]
) -> None:
    digests = await stored(registry, bundles[:2])
    await replica.want([digest_of(b"never stored")])
    await soon(lambda: bool(replica.refused))
    await replica.want(digests)
    await soon(lambda: replica.resident() == set(digests))
    assert replica.loader.is_idle


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    with running(server):
        yield server


async def test_without_redis_the_cached_ones_are_served_and_the_others_when_it_is_back(
    workshop: Workshop, own_redis: RedisServer, tmp_path: Path, bundles: list[bytes]
) -> None:
    registry = Registry(open_redis(own_redis.url))
    digests = await stored(registry, bundles[: 2 * BATCH_BUNDLES])
    replica = Replica(workshop, registry, tmp_path / "cache")
    cached = sorted(digests)[::2]
    for data in bundles:
        if digest_of(data) in cached:
            replica.cache.put(Blob(data))
    own_redis.kill()
    loading = asyncio.create_task(replica.loader.run())
    await replica.want(digests)
    await soon(lambda: replica.loader.is_idle)
    assert replica.resident() == set(cached)
    own_redis.start()
    await soon(lambda: replica.resident() == set(digests))
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    await registry.close()


async def test_files_that_are_in_use_outlive_a_snapshot_that_does_not_name_them(
    replica: Replica, registry: Registry, bundles: list[bytes]
) -> None:
    digests = await stored(registry, bundles[:2])
    await replica.want(digests)
    await soon(lambda: replica.resident() == set(digests))
    await replica.source.remember(RegistrySnapshot(1, {}, {}), lambda: digests[:1])
    assert replica.cache.digests() == {digests[0]}


async def test_an_upload_that_comes_while_a_snapshot_is_written_keeps_its_file(
    replica: Replica, bundles: list[bytes], tmp_path: Path
) -> None:
    spooled = tmp_path / "upload"
    spooled.write_bytes(bundles[0])
    refs = [TaskRef(TenantId("acme"), TaskId(f"task-{number}")) for number in range(20_000)]
    digest = digest_of(bundles[1])
    large = {ref: TaskEntry.of(ref, 1, {"prod": 1}, {1: digest}) for ref in refs}
    remembering = asyncio.create_task(replica.source.remember(RegistrySnapshot(1, large, {}), list))
    await asyncio.sleep(0)
    local = await replica.source.accept(spooled)
    await remembering
    assert local.bundle.digest in replica.cache.digests()


async def test_a_bundle_that_comes_while_a_snapshot_is_written_keeps_its_file(
    replica: Replica, bundles: list[bytes]
) -> None:
    blob, in_use = Blob(bundles[0]), list[Digest]()
    remembering = asyncio.create_task(
        replica.source.remember(RegistrySnapshot(1, {}, {}), lambda: in_use)
    )
    await asyncio.sleep(0)
    replica.cache.put(blob)
    in_use.append(blob.digest)
    await remembering
    assert replica.cache.digests() == {blob.digest}


async def test_what_is_wanted_says_what_is_under_way(
    replica: Replica, registry: Registry, bundles: list[bytes]
) -> None:
    digests = await stored(registry, bundles[:2])
    await replica.want(digests)
    assert replica.loader.wanted == set(digests)
    await soon(lambda: replica.resident() == set(digests))
    await soon(lambda: not replica.loader.wanted)


async def test_an_item_table_whose_file_can_not_be_kept_is_served_and_never_evicted(
    replica: Replica, workshop: Workshop, registry: Registry
) -> None:
    with_table = workshop.bundle("value", 1, table=TableSpec(1))
    digests = await stored(registry, [with_table, workshop.bundle("ranking", 1)])
    shutil.rmtree(replica.cache.directory)
    kept, lost = (fetched.outcome for fetched in await replica.source.fetch_some(digests))
    assert isinstance(lost, CacheUnwritable)
    assert isinstance(kept, LocalBundle)
    assert finish(replica.loading.load([kept])) == {}
    residency = replica.store.by_digest[digests[0]]
    assert residency.table is not None
    assert residency.path == ""
