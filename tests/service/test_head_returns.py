"""Ranking heads beyond the limit take turns on the device; every row gets its own task's answer."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch

from patches.errors import BlobCorrupt, BlobMissing
from patches.identity import Digest, TaskId, digest_of
from patches.records import VersionSummary
from patches.registry import Registry
from patches.verify import BundleLimits, verify_bundle
from service.device_link import AdmittedRow
from service.head_reading import read_head
from service.messages import BundleEntry, Row, RowResult
from service.slots import LocalBundle, Residency, SlotStore
from tests.model.random_tasks import random_history
from tests.service.random_bundles import SPEC, Workshop
from tests.service.test_device_process import ACME, PATIENCE_S, Replica, settings_for

ITEMS = 100
ONE_HEAD = 4 * ITEMS * (SPEC.channels + 1)
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
    digest = await registry.put_blob(data)
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
    rows = [AdmittedRow(Row(bundle.handle, tokens, top_k=TOP), bundle.digest)]
    return (await replica.link.predict(rows, time.monotonic() + patience_s)).rows[0]


def best(workshop: Workshop, seed: int, history: list[int]) -> list[int]:
    logits = workshop.task("ranking", seed, ITEMS).logits(history)
    return logits.argsort(descending=True)[:TOP].tolist()


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
