"""Whoever waits for the device process gets an answer with an id at once, whatever fails in it."""

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.patches.identity import DEFAULT_TENANT, Blob, TaskId
from peterrec.patches.registry.records import VersionSummary
from peterrec.patches.registry.registry import Registry
from peterrec.service.device import loop
from peterrec.service.predict.device_link import BoundRow
from peterrec.service.protocol.messages import Row, RowResult
from tests.service.random_bundles import Workshop
from tests.service.replicas import DeviceThread, Replica
from tests.waiting import soon

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
async def replica(
    workshop: Workshop, tmp_path: Path, redis_url: str, redis_prefix: str
) -> AsyncIterator[Replica]:
    replica = Replica(DeviceThread(), workshop, tmp_path / "replica", redis_url, redis_prefix)
    await replica.open()
    await soon(lambda: replica.link.is_connected, PATIENCE_S)
    yield replica
    await replica.close()


@pytest.fixture
async def bound(replica: Replica, registry: Registry, workshop: Workshop) -> BoundRow:
    """A row of a task that is served."""
    data = workshop.bundle("classification", 1)
    bundle = verify_bundle(data, backbone=workshop.identity, limits=BundleLimits())
    digest = await registry.blobs.put(Blob(data))
    summary = VersionSummary.of(bundle)
    await registry.add_version(DEFAULT_TENANT, TaskId("gender"), digest, summary, actor="test")
    await soon(lambda: replica.table.resident(digest) is not None, PATIENCE_S)
    resident = replica.table.resident(digest)
    assert resident is not None
    return BoundRow(Row(resident.handle, b""), digest)


async def answers(replica: Replica, rows: list[BoundRow]) -> list[RowResult]:
    return (await replica.link.predict(rows, time.monotonic() + PATIENCE_S)).rows


def fails(*given: object, **named: object) -> None:
    raise MemoryError


def is_fault(result: RowResult) -> bool:
    fault = re.search(r"\(fault [0-9a-f]{8}\)", result.detail)
    return result.error == "row_failed" and fault is not None


async def test_rows_that_cannot_be_queued(
    replica: Replica, bound: BoundRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(replica.device.queue, "push", fails)
        found = await answers(replica, [bound] * 3)
    assert [is_fault(result) for result in found] == [True] * 3
    assert [result.error for result in await answers(replica, [bound])] == [""]


async def test_a_batch_that_runs_out_of_memory(
    replica: Replica, bound: BoundRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(replica.device.store, "score", fails)
        found = await answers(replica, [bound] * 3)
    assert [is_fault(result) for result in found] == [True] * 3
    assert [result.error for result in await answers(replica, [bound])] == [""]


async def test_a_batch_without_memory_for_its_results(
    replica: Replica, bound: BoundRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "row_results", fails)
        found = await answers(replica, [bound] * 3)
    assert [is_fault(result) for result in found] == [True] * 3
    assert [result.error for result in await answers(replica, [bound])] == [""]


@pytest.mark.parametrize("fails_in", ["device", "follower"])
async def test_a_push(
    replica: Replica,
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails_in: str,
) -> None:
    path = tmp_path / "a.bundle"
    path.write_bytes(workshop.bundle("tags", 2))
    with monkeypatch.context() as patch:
        if fails_in == "device":
            patch.setattr(replica.follower, "validate", fails)
        else:
            patch.setattr(replica.device.loading, "validate", fails)
        (reason,) = (await replica.link.validate(str(path), PATIENCE_S)).reasons
    assert reason.code == "internal_fault"
    assert re.search(r"\(fault [0-9a-f]{8}\)", reason.message)
    assert (await replica.link.validate(str(path), PATIENCE_S)).reasons == []
