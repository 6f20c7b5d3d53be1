"""Scoring by the bundles of a registry, at one revision."""

import asyncio
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from peterrec.patches.bundle.verify import BackboneIdentity, BundleLimits, verify_bundle
from peterrec.patches.identity import DEFAULT_TENANT, TaskId, format_digest
from peterrec.patches.registry.availability import Availability
from peterrec.patches.registry.records import VersionSummary
from peterrec.patches.registry.registry import Registry, open_redis
from peterrec.service.errors import NoTaskMatches
from tests.service.jobs.score.conftest import answers
from tests.service.jobs.score.test_score import killed
from tests.service.random_bundles import ITEMS, Workshop


@pytest.fixture
def workshop(base) -> Workshop:
    return Workshop(base.backbone)


async def register(
    where: tuple[str, str], base, workshop: Workshop, task: str, bundle: bytes
) -> str:
    """Make a bundle the prod of a task; returns its digest."""
    identity = BackboneIdentity(workshop.loaded.fingerprint, workshop.spec)
    verified = verify_bundle(bundle, backbone=identity, limits=BundleLimits())
    registry = Registry(open_redis(where[0]), where[1])
    try:
        await registry.blobs.put(verified.blob)
        summary = VersionSummary.of(verified)
        await registry.add_version(
            DEFAULT_TENANT, TaskId(task), verified.digest, summary, "ann", allow_new_outputs=True
        )
    finally:
        await registry.close()
    return format_digest(verified.digest)


@pytest.fixture
def where(redis_url: str, redis_prefix: str) -> tuple[str, str]:
    """The registry of one test."""
    return redis_url, redis_prefix


def options_of(where: tuple[str, str]) -> tuple[str, ...]:
    return "--redis-url", where[0], "--redis-prefix", where[1]


def about(file: Path) -> dict:
    found: dict = json.loads(pq.read_schema(file).metadata[b"peterrec"])
    return found


async def scored(base, out: Path, *options: str) -> dict:
    """The command runs an event loop of its own, so it runs in a thread."""
    found: dict = await asyncio.to_thread(base.score, out, *options)
    return found


async def test_prod_of_every_task_scores_with_version_and_revision(base, workshop, where, tmp_path):
    digests = {
        task: await register(where, base, workshop, task, workshop.bundle("tags", seed))
        for seed, task in enumerate(("b", "a"), 3)
    }
    await scored(base, tmp_path / "out", *options_of(where))
    for task, digest in digests.items():
        (file,) = (tmp_path / "out" / f"task={task}").glob("*.parquet")
        assert about(file)["digest"] == digest
        assert (about(file)["version"], about(file)["registry_revision"]) == (1, 2)


async def test_a_run_that_goes_on_keeps_its_revision_though_another_version_is_activated(
    base, workshop, where, tmp_path
):
    before = await register(where, base, workshop, "t", workshop.bundle("tags", 3))
    out = tmp_path / "out"
    options = ("--part-rows", "2", *options_of(where))
    await asyncio.to_thread(killed, base, out, 2, *options)
    after = await register(where, base, workshop, "t", workshop.bundle("tags", 4))
    await scored(base, out, *options, "--resume")
    files = sorted((out / "task=t").glob("*.parquet"))
    assert {about(file)["digest"] for file in files} == {before} != {after}
    assert {about(file)["registry_revision"] for file in files} == {1}
    await scored(base, tmp_path / "new", *options_of(where))
    (file,) = (tmp_path / "new" / "task=t").glob("*.parquet")
    assert (about(file)["digest"], about(file)["version"]) == (after, 2)
    assert answers(tmp_path / "new", "t")["scores"] != answers(out, "t")["scores"]


async def test_a_run_that_goes_on_needs_no_registry(base, workshop, where, tmp_path):
    await register(where, base, workshop, "t", workshop.bundle("tags", 3))
    out = tmp_path / "out"
    options = ("--part-rows", "2")
    await asyncio.to_thread(killed, base, out, 2, *options, *options_of(where))
    gone = ("--redis-url", "redis://127.0.0.1:1")
    report = await scored(base, out, *options, *gone, "--resume")
    assert report["rows"] == len(base.users)


async def test_items_that_are_not_available_are_not_recommended(base, workshop, where, tmp_path):
    names = tuple(ITEMS[20:60])
    bundle = workshop.bundle("ranking", 3, outputs=40, names=names)
    await register(where, base, workshop, "rank", bundle)
    registry = Registry(open_redis(where[0]), where[1])
    listed = Availability.of("unavailable", names[:25])
    await registry.put_availability(DEFAULT_TENANT, TaskId("rank"), listed, "ann")
    await registry.close()
    await scored(base, tmp_path / "out", *options_of(where))
    items = {item for row in answers(tmp_path / "out", "rank")["items"].to_pylist() for item in row}
    assert items
    assert items <= {*names[25:]}


async def test_tasks_of_another_tenant_are_not_there(base, workshop, where, tmp_path):
    await register(where, base, workshop, "t", workshop.bundle("tags", 3))
    with pytest.raises(NoTaskMatches):
        await scored(base, tmp_path / "out", *options_of(where), "--tenant", "other")
