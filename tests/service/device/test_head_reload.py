"""Ranking heads beyond the limit take turns on the device; every row gets its own task's answer."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import torch

from peterrec.model.spec import TableSpec
from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.patches.errors import BlobCorrupt, BlobMissing
from peterrec.patches.identity import Blob, Digest, TaskId, digest_of
from peterrec.patches.registry.records import VersionSummary
from peterrec.patches.registry.registry import Registry
from peterrec.service.device.head_file import read_head
from peterrec.service.device.head_reload import HeadReloader
from peterrec.service.device.queue import BatchBounds, QueuedRow, RowQueue
from peterrec.service.device.slots import LocalBundle, Residency, SlotStore
from peterrec.service.predict.device_link import BoundRow
from peterrec.service.protocol.messages import BundleEntry, Row, RowResult
from tests.model.random_tasks import random_history
from tests.service.processes.test_device_process import ACME, PATIENCE_S, Replica, settings_for
from tests.service.random_bundles import SPEC, Workshop

ITEMS = 100
ONE_HEAD = 4 * ITEMS * (SPEC.channels + 1)
ROOM_FOR_ONE_TABLE = 3 * 4 * (SPEC.channels + 1) + 300
"""Bytes of three heads of one output, and of one item table but not two."""

RANKINGS = {"one": 1, "two": 2, "three": 3}
TOP = 5


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
async def replica(
    workshop: Workshop, tmp_path: Path, redis_url: str, redis_prefix: str
) -> AsyncIterator[Replica]:
    """With room for one catalog and a few small heads."""
    settings = settings_for(workshop, tmp_path, redis_url, redis_prefix)
    replica = Replica(settings.model_copy(update={"head_limit_bytes": ONE_HEAD + 1000}))
    await replica.link.start()
    yield replica
    await replica.link.close()
    assert replica.stop() == 0


async def register(registry: Registry, task: str, data: bytes, workshop: Workshop) -> str:
    bundle = verify_bundle(data, backbone=workshop.identity, limits=BundleLimits())
    digest = await registry.blobs.put(Blob(data))
    await registry.add_version(ACME, TaskId(task), digest, VersionSummary.of(bundle), actor="test")
    return digest


async def serve_rankings(
    replica: Replica, registry: Registry, workshop: Workshop
) -> dict[str, BundleEntry]:
    served = {}
    for task, seed in RANKINGS.items():
        data = workshop.bundle("ranking", seed, outputs=ITEMS)
        served[task] = await replica.served(task, await register(registry, task, data, workshop))
    return served


async def ask(
    replica: Replica, bundle: BundleEntry, history: list[int], patience_s: float = PATIENCE_S
) -> RowResult:
    tokens = np.array(history, np.int32).tobytes()
    rows = [BoundRow(Row(bundle.handle, tokens, top_k=TOP), bundle.digest)]
    return (await replica.link.predict(rows, time.monotonic() + patience_s)).rows[0]


def best(workshop: Workshop, seed: int, history: list[int]) -> list[int]:
    logits = workshop.task("ranking", seed, ITEMS).logits(history)
    return logits.argsort(descending=True)[:TOP].tolist()


@pytest.mark.slow
async def test_tasks_whose_heads_take_turns_answer_like_the_reference(
    replica: Replica, registry: Registry, workshop: Workshop
) -> None:
    served = await serve_rankings(replica, registry, workshop)
    asked = [(task, random_history(SPEC, 9, n)) for n in range(6) for task in RANKINGS]
    found = await asyncio.gather(*(ask(replica, served[task], h) for task, h in asked))
    for (task, history), result in zip(asked, found, strict=True):
        assert result.error == ""
        indices = np.frombuffer(result.indices, np.int64).tolist()
        assert indices == best(workshop, RANKINGS[task], history)


@pytest.mark.slow
async def test_a_task_whose_head_can_not_be_read_is_refused_and_the_others_go_on(
    replica: Replica, registry: Registry, workshop: Workshop
) -> None:
    served = await serve_rankings(replica, registry, workshop)
    small = workshop.bundle("classification", 9)
    classes = await replica.served("small", await register(registry, "small", small, workshop))
    await ask(replica, served["three"], [])
    await asyncio.to_thread(Path(served["one"].catalog_path).unlink)
    assert (await ask(replica, served["one"], [])).error == "head_unreadable"
    assert (await ask(replica, classes, [])).error == ""
    assert (await ask(replica, served["two"], [])).error == ""


class Device:
    """What the device thread owns, its turns taken one by one."""

    def __init__(
        self, workshop: Workshop, folder: Path, limit_bytes: int, bundles: Sequence[bytes]
    ) -> None:
        self.store = SlotStore(workshop.loaded.backbone, limit_bytes)
        self.queue = RowQueue(9)
        self.jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.refused: list[str] = []
        self.reloader = HeadReloader(
            self.store,
            self.queue,
            self.jobs.put,
            lambda rows, error, detail: self.refused.append(error.code),
        )
        self.residents = [self._load(workshop, folder, data) for data in bundles]

    @property
    def ranking(self) -> Residency:
        return self.residents[0]

    @property
    def other(self) -> Residency:
        return self.residents[1]

    def _load(self, workshop: Workshop, folder: Path, data: bytes) -> Residency:
        path = folder / digest_of(data)
        path.write_bytes(data)
        bundle = verify_bundle(data, backbone=workshop.identity, limits=BundleLimits())
        return self.store.load(bundle, str(path))

    def push(self, *residencies: Residency) -> None:
        rows = [QueuedRow(1, 1, n, Row(r.handle, b""), 9.0, 0.0) for n, r in enumerate(residencies)]
        assert self.queue.push(rows)

    def take(self) -> list[int]:
        """Handles of the rows that may run now."""
        taken = self.queue.take(BatchBounds(9), 0.0, self.store.head_cache.evicted)
        return [row.row.handle for row in taken.rows]


@pytest.fixture
def device(workshop: Workshop, tmp_path: Path) -> Iterator[Device]:
    bundles = [workshop.bundle("ranking", seed, outputs=ITEMS) for seed in (1, 2)]
    device = Device(workshop, tmp_path, ONE_HEAD + 1000, bundles)
    yield device
    device.reloader.close()


def test_rows_of_other_tasks_go_on_while_a_head_is_read(device: Device) -> None:
    device.push(device.ranking, device.other, device.ranking)
    assert device.take() == [device.other.handle]
    device.reloader.begin_next()
    came_back = device.jobs.get(timeout=PATIENCE_S)
    device.reloader.begin_next()
    assert device.take() == []
    came_back()
    assert device.take() == [device.ranking.handle] * 2
    assert device.ranking.head.is_here
    assert not device.other.head.is_here


def test_a_head_whose_residency_was_freed_while_it_was_read_is_let_go(device: Device) -> None:
    device.push(device.ranking)
    assert device.take() == []
    device.reloader.begin_next()
    came_back = device.jobs.get(timeout=PATIENCE_S)
    device.queue.cancel(1, 1)
    device.store.free(device.ranking)
    came_back()
    device.store.free(device.other)
    assert device.store.head_bytes == 0
    assert device.refused == []


def test_a_head_that_can_not_be_read_gives_its_room_back_and_its_rows_are_refused(
    device: Device,
) -> None:
    Path(device.ranking.path).unlink()
    device.push(device.ranking)
    assert device.take() == []
    device.reloader.begin_next()
    device.jobs.get(timeout=PATIENCE_S)()
    assert device.refused == ["head_unreadable"]
    assert len(device.queue) == 0
    assert device.store.head_bytes == 0


def test_a_head_read_from_its_file_has_the_bits_that_were_loaded(
    workshop: Workshop, tmp_path: Path
) -> None:
    data = workshop.bundle("ranking", 1, outputs=ITEMS)
    path = tmp_path / "bundle"
    path.write_bytes(data)
    bundle = verify_bundle(data, backbone=workshop.identity, limits=BundleLimits())
    store = SlotStore(workshop.loaded.backbone, head_limit_bytes=ONE_HEAD)
    (residency,) = store.load_many([LocalBundle(bundle, str(path))])
    assert isinstance(residency, Residency)
    loaded, head = residency.head.catalog, read_head(path, digest_of(data))
    assert loaded is not None
    assert loaded.weight is not None
    assert loaded.bias is not None
    assert torch.equal(loaded.weight, head["head.weight"])
    assert torch.equal(loaded.bias, head["head.bias"])


@pytest.mark.parametrize("form", [TableSpec(1), TableSpec(1, bits=4, counting="count")])
def test_an_item_table_read_from_its_file_has_the_bits_that_were_loaded(
    form: TableSpec, workshop: Workshop, tmp_path: Path
) -> None:
    data = workshop.bundle("classification", 1, table=form)
    path = tmp_path / "bundle"
    path.write_bytes(data)
    bundle = verify_bundle(data, backbone=workshop.identity, limits=BundleLimits())
    residency = SlotStore(workshop.loaded.backbone, 1 << 20).load(bundle, str(path))
    assert residency.table is not None
    assert residency.table.packed is not None
    head = read_head(path, digest_of(data))
    assert head.keys() == {"table"}
    assert torch.equal(residency.table.packed, head["table"])


def test_a_ranking_and_its_table_leave_and_come_back_together(
    workshop: Workshop, tmp_path: Path
) -> None:
    data = workshop.bundle("ranking", 1, outputs=ITEMS, table=TableSpec(1))
    path = tmp_path / "bundle"
    path.write_bytes(data)
    bundle = verify_bundle(data, backbone=workshop.identity, limits=BundleLimits())
    store = SlotStore(workshop.loaded.backbone, 1 << 20)
    residency = store.load(bundle, str(path))
    history = np.array(random_history(SPEC, 100, 1), np.int32)
    older, newest = history[: -SPEC.max_len].tobytes(), history[-SPEC.max_len :].tobytes()
    row = Row(residency.handle, newest, 5, older=older)
    (before,) = store.score([row])
    head = residency.head
    assert head.table is not None
    assert head.large is not None
    assert head.size.large == head.large.size_bytes > head.table.size_bytes
    head.large.take_off()
    assert not head.is_here
    assert not head.table.is_here
    store._heads.put_back(head, read_head(path, digest_of(data)))
    (after,) = store.score([row])
    np.testing.assert_array_equal(before.values, after.values)
    np.testing.assert_array_equal(before.indices, after.indices)
    expected = workshop.task("ranking", 1, outputs=ITEMS, table=TableSpec(1)).logits(
        history.tolist()
    )
    np.testing.assert_allclose(after.values, expected.topk(5).values, rtol=1e-4, atol=1e-4)


def test_item_tables_beyond_the_limit_take_turns_and_answer_like_the_reference(
    workshop: Workshop, tmp_path: Path
) -> None:
    bundles = [workshop.bundle("value", seed, table=TableSpec(1)) for seed in range(3)]
    device = Device(workshop, tmp_path, ROOM_FOR_ONE_TABLE, bundles)
    history = random_history(SPEC, 100, 1)
    tokens = np.array(history, np.int32)
    older, newest = tokens[: -SPEC.max_len].tobytes(), tokens[-SPEC.max_len :].tobytes()
    for seed in (0, 1, 2, 0, 1, 2):
        residency = device.residents[seed]
        device.push(residency)
        assert device.take() == []
        device.reloader.begin_next()
        device.jobs.get(timeout=PATIENCE_S)()
        assert device.take() == [residency.handle]
        (scores,) = device.store.score([Row(residency.handle, newest, older=older)])
        expected = workshop.task("value", seed, table=TableSpec(1)).logits(history)
        assert scores.values[0] == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
    device.reloader.close()
    moves = device.store.head_cache.take_moves()
    assert (moves.reloaded, moves.evicted) == (6, 2 + 6)


def test_a_file_that_was_damaged_or_has_gone_gives_no_head(
    workshop: Workshop, tmp_path: Path
) -> None:
    data = workshop.bundle("ranking", 1, outputs=ITEMS)
    path = tmp_path / "bundle"
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BlobCorrupt):
        read_head(path, digest_of(data))
    path.write_bytes(b"")
    with pytest.raises(BlobMissing):
        read_head(path, digest_of(data))
    path.unlink()
    with pytest.raises(BlobMissing):
        read_head(path, Digest("0" * 64))
