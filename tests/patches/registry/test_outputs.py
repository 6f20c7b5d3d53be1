"""Versions whose answers have other outputs, on a real Redis."""

import asyncio
import json
from typing import Any

import pytest
from redis.asyncio import Redis

from peterrec.patches.bundle.bundle import open_bundle
from peterrec.patches.bundle.outputs import Outputs
from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.patches.errors import NoProdVersion, OutputsDiffer
from peterrec.patches.identity import DEFAULT_TENANT, Blob, Digest, TaskId
from peterrec.patches.registry.blobs import PIECE_BYTES
from peterrec.patches.registry.outputs import FileReader, read_outputs
from peterrec.patches.registry.records import VersionSummary
from peterrec.patches.registry.registry import Registry
from peterrec.patches.registry.traffic import Canary, Traffic
from tests.patches.bundles import TINY, make_bundle

GENDER = TaskId("gender")
REF = (DEFAULT_TENANT, GENDER)
AGES = ("18-29", "30-49", "50+")


async def store(registry: Registry, bundle: bytes) -> tuple[Digest, VersionSummary]:
    await registry.blobs.put(Blob(bundle))
    verified = verify_bundle(bundle, backbone=TINY, limits=BundleLimits())
    return verified.digest, VersionSummary.of(verified)


async def add(
    registry: Registry,
    bundle: bytes,
    **options: Any,  # Any: options of add_version
) -> Digest:
    digest, summary = await store(registry, bundle)
    await registry.add_version(*REF, digest, summary, "ann", **options)
    return digest


async def forget_digests(redis: Redis, prefix: str) -> None:
    """Make the versions of the task as old as those from before digests of outputs."""
    key = f"{{{prefix}}}:versions:{DEFAULT_TENANT}/{GENDER}"
    for digest, text in (await redis.hgetall(key)).items():
        version = json.loads(text)
        summary = json.loads(version["summary"])
        summary.pop("outputs_digest", None)
        await redis.hset(key, digest, json.dumps({**version, "summary": json.dumps(summary)}))


async def prod(registry: Registry) -> Digest:
    return (await registry.get_task(*REF)).record.aliases["prod"].digest


async def test_a_version_with_other_labels_changes_nothing(registry):
    first = await add(registry, make_bundle(seed=1))
    revision = await registry.feed.revision()
    with pytest.raises(OutputsDiffer) as refused:
        await add(registry, make_bundle(seed=2, labels=AGES))
    assert "version 1, which alias 'prod' of task 'gender' names" in refused.value.message
    assert refused.value.differences == (
        "labels: + '18-29', '30-49', '50+', − 'label-0', 'label-1', 'label-2'",
    )
    assert await prod(registry) == first
    assert await registry.feed.revision() == revision
    assert len((await registry.get_task(*REF)).versions) == 1


async def test_a_version_with_the_same_outputs_replaces_another(registry):
    await add(registry, make_bundle(seed=1))
    second = await add(registry, make_bundle(seed=2))
    assert await prod(registry) == second


async def test_new_outputs_that_are_allowed_replace_others(registry):
    await add(registry, make_bundle(seed=1))
    second = await add(registry, make_bundle("value", seed=2), allow_new_outputs=True)
    assert await prod(registry) == second


async def test_the_audit_trail_notes_who_allowed_new_outputs(registry):
    await add(registry, make_bundle(seed=1), allow_new_outputs=True)
    await add(registry, make_bundle(seed=2), allow_new_outputs=True)
    third = await add(registry, make_bundle("value", seed=3), allow_new_outputs=True)
    first = (await registry.get_task(*REF)).versions[0].digest
    shadow = Traffic(1, shadow=(first,))
    await registry.put_traffic(*REF, shadow, "bob", allow_new_outputs=True)
    await registry.set_alias(*REF, "prod", first, "cyd", allow_new_outputs=True)
    events = await registry.feed.events()
    noted = [(event.actor, event.current) for event in events if event.note]
    assert noted == [("ann", third), ("bob", None), ("cyd", first)]


async def test_an_alias_that_names_nothing_takes_any_version(registry):
    await add(registry, make_bundle(seed=1))
    second = await add(registry, make_bundle("value", seed=2), alias="next")
    assert (await registry.get_task(*REF)).record.aliases["next"].digest == second


@pytest.mark.parametrize("alias", ["prod", "next"])
async def test_an_alias_does_not_move_to_other_outputs_unnoticed(registry, alias):
    await add(registry, make_bundle(seed=1), alias=alias)
    ages = await add(registry, make_bundle(seed=2, labels=AGES), alias=None)
    with pytest.raises(OutputsDiffer):
        await registry.set_alias(*REF, alias, ages, "ann")
    moved = await registry.set_alias(*REF, alias, ages, "ann", allow_new_outputs=True)
    assert moved.current.digest == ages


@pytest.mark.parametrize("role", ["canary", "shadow"])
async def test_canaries_and_shadows_answer_what_prod_answers(registry, role):
    await add(registry, make_bundle(seed=1))
    same = await add(registry, make_bundle(seed=3), alias=None)
    ages = await add(registry, make_bundle(seed=2, labels=AGES), alias=None)

    def traffic(digest: Digest) -> Traffic:
        if role == "canary":
            return Traffic(9, (Canary(digest, 1),))
        return Traffic(9, shadow=(digest,))

    assert (await registry.put_traffic(*REF, traffic(same), "ann")).current == traffic(same)
    with pytest.raises(OutputsDiffer):
        await registry.put_traffic(*REF, traffic(ages), "ann")
    await registry.put_traffic(*REF, traffic(ages), "ann", allow_new_outputs=True)


async def test_a_task_without_prod_has_nothing_to_compare_with(registry):
    ages = await add(registry, make_bundle(seed=2, labels=AGES), alias="next")
    with pytest.raises(NoProdVersion):
        await registry.put_traffic(*REF, Traffic(1, shadow=(ages,)), "ann")


async def test_a_rollback_restores_what_was_served_and_lists_how_it_differs(registry):
    first = await add(registry, make_bundle(seed=1))
    await add(registry, make_bundle("value", seed=2), allow_new_outputs=True)
    back = await registry.rollback(*REF, "ann")
    assert back.current.digest == first
    assert back.new_outputs == ("kind: value → classification",)


async def test_a_rollback_to_the_same_outputs_lists_nothing(registry):
    await add(registry, make_bundle(seed=1))
    await add(registry, make_bundle(seed=2))
    assert (await registry.rollback(*REF, "ann")).new_outputs == ()


async def test_versions_from_before_these_digests_are_compared_by_their_bundles(
    registry, redis, redis_prefix
):
    await add(registry, make_bundle(seed=1))
    ages = await add(registry, make_bundle(seed=2, labels=AGES), alias=None)
    same = await add(registry, make_bundle(seed=3), alias=None)
    await forget_digests(redis, redis_prefix)
    with pytest.raises(OutputsDiffer, match="labels: "):
        await registry.set_alias(*REF, "prod", ages, "ann")
    with pytest.raises(OutputsDiffer, match="labels: "):
        await registry.put_traffic(*REF, Traffic(9, shadow=(same, ages)), "ann")
    await registry.put_traffic(*REF, Traffic(9, shadow=(same,)), "ann")
    assert (await registry.set_alias(*REF, "prod", same, "ann")).current.digest == same
    await add(registry, make_bundle(seed=4))
    await forget_digests(redis, redis_prefix)
    assert (await registry.rollback(*REF, "ann")).new_outputs == ()


async def test_an_old_version_whose_bundle_is_gone_counts_as_other(registry, redis, redis_prefix):
    first = await add(registry, make_bundle(seed=1))
    await forget_digests(redis, redis_prefix)
    await redis.hdel(f"{{{redis_prefix}}}:blobs", first)
    with pytest.raises(OutputsDiffer, match="can't be compared"):
        await add(registry, make_bundle(seed=2))
    await add(registry, make_bundle(seed=2), allow_new_outputs=True)


async def test_of_many_pushes_at_one_time_all_that_win_have_one_kind_of_outputs(registry):
    bundles = [
        make_bundle(seed=seed, labels=AGES if seed % 2 else ("a", "b", "c")) for seed in range(12)
    ]
    stored = [await store(registry, bundle) for bundle in bundles]
    done = await asyncio.gather(
        *(registry.add_version(*REF, digest, summary, "ann") for digest, summary in stored),
        return_exceptions=True,
    )
    won = {
        summary.outputs_digest
        for (_, summary), outcome in zip(stored, done, strict=True)
        if not isinstance(outcome, OutputsDiffer)
    }
    assert len(won) == 1
    assert sum(isinstance(outcome, OutputsDiffer) for outcome in done) == 6


@pytest.mark.parametrize("kind", ["classification", "tags", "ranking", "value"])
async def test_the_outputs_of_a_stored_bundle_are_those_of_its_file(registry, tmp_path, kind):
    bundle = make_bundle(kind, seed=1)
    path = tmp_path / "some.bundle"
    path.write_bytes(bundle)
    digest, summary = await store(registry, bundle)
    stored = await read_outputs(await registry.blobs.open(digest))
    contents = open_bundle(bundle)
    assert stored.digest == Outputs.of(contents.manifest, contents.tensors).digest
    assert stored.digest == (await read_outputs(await FileReader.open(path))).digest
    assert stored.digest == summary.outputs_digest


async def test_parts_of_a_blob_of_several_pieces_are_read_across_their_borders(registry):
    data = bytes(range(256)) * (2 * PIECE_BYTES // 256) + b"the end"
    blob = Blob(data)
    await registry.blobs.put(blob)
    reader = await registry.blobs.open(blob.digest)
    assert reader.size_bytes == len(data)
    for begin, end in ((0, 8), (PIECE_BYTES - 3, PIECE_BYTES + 5), (len(data) - 4, len(data) + 9)):
        assert await reader.read(begin, end) == data[begin:end]
