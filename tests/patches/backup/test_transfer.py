"""A registry moves between servers as one file: all of it, checked, or nothing."""

import asyncio
import hashlib
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import pytest
from msgspec import structs
from redis.asyncio import Redis

from peterrec.model.errors import PathUnusable
from peterrec.patches.backup.archive import ArchiveManifest
from peterrec.patches.backup.exporting import export_archive
from peterrec.patches.backup.importing import ImportMode, import_archive
from peterrec.patches.errors import (
    ArchiveInvalid,
    BlobCorrupt,
    QuotaExceeded,
    RegistryChanged,
    RegistryNotEmpty,
    RegistryUnavailable,
    TenantNotFound,
)
from peterrec.patches.identity import DEFAULT_TENANT, Blob, TaskId, TenantId, digest_of
from peterrec.patches.redis.embedded import EmbeddedRedis
from peterrec.patches.registry.api_keys import Scope
from peterrec.patches.registry.records import (
    ActiveTraffic,
    EventAction,
    Quotas,
    RegistrySnapshot,
    TaskOptions,
    TaskRecord,
    TenantOptions,
)
from peterrec.patches.registry.registry import Registry
from peterrec.patches.registry.traffic import Canary, Guard, Traffic
from tests.patches.redis_servers import connect, is_stored
from tests.patches.registry.test_registry import SUMMARY

GENDER, AGE = TaskId("gender"), TaskId("age")
OTHER, GONE = TenantId("other"), TenantId("gone")
CONTENTS = [b"a", b"b", bytes(9 << 20)]
DIGESTS = [digest_of(content) for content in CONTENTS]
TRAFFIC = Traffic(90, (Canary(DIGESTS[0], 10),), (DIGESTS[1],), Guard(max_p99_ms=50))


@pytest.fixture
def target(redis: Redis) -> Registry:
    """Another registry on the same server."""
    return Registry(redis, f"test-{uuid4().hex}")


@pytest.fixture
async def key(registry: Registry) -> str:
    """A filled registry; the plain text of its key."""
    return await fill(registry)


async def fill(registry: Registry) -> str:
    """Fill a registry with one of everything; the plain text of its key."""
    for content in CONTENTS:
        digest = await registry.blobs.put(Blob(content))
        await registry.add_version(DEFAULT_TENANT, GENDER, digest, SUMMARY, "ann")
    await registry.set_alias(DEFAULT_TENANT, GENDER, "next", DIGESTS[0], "bob")
    await registry.put_traffic(DEFAULT_TENANT, GENDER, TRAFFIC, "bob")
    await registry.add_version(TenantId("other"), AGE, DIGESTS[0], SUMMARY, "eve")
    await registry.put_task(DEFAULT_TENANT, TaskId("empty"), TaskOptions("Größe", True), "ann")
    await registry.blobs.put(Blob(b"registered by nobody"))
    return (await registry.keys.create(DEFAULT_TENANT, [Scope("predict", "g*")], "shop"))[0]


async def lasting(registry: Registry) -> tuple[RegistrySnapshot, list[TaskRecord]]:
    """What must survive a move: everything but the revisions and the identity."""
    snapshot = await registry.feed.snapshot()
    tasks = {
        ref: structs.replace(entry, revision=0, traffic=unnumbered(entry.traffic))
        for ref, entry in snapshot.tasks.items()
    }
    details = [await registry.get_task(*ref) for ref in sorted(snapshot.tasks)]
    records = [
        replace(each.record, revision=0, traffic=unnumbered(each.record.traffic))
        for each in details
    ]
    return replace(snapshot, revision=0, mark="", identity="", tasks=tasks), records


def unnumbered(traffic: ActiveTraffic | None) -> ActiveTraffic | None:
    return None if traffic is None else replace(traffic, revision=0)


async def export(registry: Registry, path: Path) -> ArchiveManifest:
    return await export_archive(registry.store, path)


async def bring(registry: Registry, path: Path, mode: ImportMode = ImportMode.EMPTY) -> int:
    return await import_archive(registry.store, path, mode, "admin")


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_everything_arrives(
    registry: Registry, target: Registry, key: str, tmp_path: Path
) -> None:
    manifest = await export(registry, tmp_path / "x.tar")
    before = await registry.feed.snapshot()
    assert (manifest.revision, manifest.blob_count) == (before.revision, 3)
    assert await bring(target, tmp_path / "x.tar") == before.revision + 1
    after = await target.feed.snapshot()
    assert await lasting(target) == await lasting(registry)
    assert {record.revision for record in after.tasks.values()} == {before.revision + 1}
    for ref in before.tasks:
        assert (await target.get_task(*ref)).versions == (await registry.get_task(*ref)).versions
    assert [(await target.blobs.get(digest)).data for digest in DIGESTS] == CONTENTS
    assert not await is_stored(target, digest_of(b"registered by nobody"))
    digest_of_key = hashlib.sha256(key.encode()).hexdigest()
    assert [each.secret_digest for each in after.keys.values()] == [digest_of_key]


async def test_the_audit_trail_arrives_and_records_the_import(
    registry: Registry, target: Registry, key: str, tmp_path: Path
) -> None:
    await export(registry, tmp_path / "x.tar")
    await bring(target, tmp_path / "x.tar")
    *before, imported = await target.feed.events()
    assert tuple(before) == await registry.feed.events()
    assert (imported.action, imported.actor) == (EventAction.IMPORT, "admin")
    assert imported.note == f"3 tasks of an archive at revision {before[-1].revision}"


async def test_tenants_arrive_with_their_quotas_and_are_counted_again(
    registry: Registry, target: Registry, key: str, tmp_path: Path
) -> None:
    options = TenantOptions("a shop", Quotas(tasks=1))
    await registry.tenants.put(OTHER, options, "ops")
    await registry.put_task(GONE, AGE, TaskOptions(), "eve")
    await registry.tenants.delete(GONE, "ops")
    await export(registry, tmp_path / "x.tar")
    await bring(target, tmp_path / "x.tar")
    for tenant in (DEFAULT_TENANT, OTHER):
        here, there = await registry.tenants.get(tenant), await target.tenants.get(tenant)
        assert (there.options, there.usage) == (here.options, here.usage)
    with pytest.raises(QuotaExceeded):
        await target.put_task(OTHER, GENDER, TaskOptions(), "eve")
    with pytest.raises(TenantNotFound):
        await target.put_task(GONE, AGE, TaskOptions(), "eve")


async def test_states_arrive_so_that_rollbacks_go_on(
    registry: Registry, target: Registry, key: str, tmp_path: Path
) -> None:
    await export(registry, tmp_path / "x.tar")
    await bring(target, tmp_path / "x.tar")
    for _ in range(4):
        ours = await registry.rollback(DEFAULT_TENANT, GENDER, "ann")
        theirs = await target.rollback(DEFAULT_TENANT, GENDER, "ann")
        assert (theirs.aliases, theirs.traffic) == (ours.aliases, ours.traffic)


async def test_numbers_and_collection_of_blobs_go_on_where_they_were(
    registry: Registry, target: Registry, key: str, tmp_path: Path
) -> None:
    await export(registry, tmp_path / "x.tar")
    await bring(target, tmp_path / "x.tar")
    digest = await target.blobs.put(Blob(b"new"))
    added = await target.add_version(DEFAULT_TENANT, GENDER, digest, SUMMARY, "ann", None)
    assert added.version == 4
    await target.delete_task(DEFAULT_TENANT, GENDER, "ann")
    assert (await target.blobs.collect(dry_run=False, grace_s=0)).blobs == 3
    assert (await target.blobs.get(DIGESTS[0])).data == b"a"


async def test_an_archive_exported_again_is_the_same(
    registry: Registry, target: Registry, key: str, tmp_path: Path
) -> None:
    await export(registry, tmp_path / "x.tar")
    await bring(target, tmp_path / "x.tar")
    await export(target, tmp_path / "y.tar")
    third = Registry(target.store.redis, f"test-{uuid4().hex}")
    await bring(third, tmp_path / "y.tar")
    assert await lasting(third) == await lasting(target)


async def test_an_empty_registry_can_be_moved_too(
    registry: Registry, target: Registry, tmp_path: Path
) -> None:
    await export(registry, tmp_path / "x.tar")
    assert await bring(target, tmp_path / "x.tar") == 1
    assert (await target.feed.snapshot()).tasks == {}


async def test_only_an_empty_registry_is_filled_unless_told_otherwise(
    registry: Registry, target: Registry, key: str, tmp_path: Path
) -> None:
    await export(registry, tmp_path / "x.tar")
    await target.put_task(DEFAULT_TENANT, AGE, TaskOptions(), "ann")
    before = await target.feed.snapshot()
    with pytest.raises(RegistryNotEmpty, match="holds 1 tasks"):
        await bring(target, tmp_path / "x.tar")
    assert await target.feed.snapshot() == before


async def test_replacing_discards_everything_and_never_goes_back_in_number(
    registry: Registry, target: Registry, key: str, tmp_path: Path
) -> None:
    await export(registry, tmp_path / "x.tar")
    theirs = await target.blobs.put(Blob(b"theirs"))
    for index in range(30):
        await target.add_version(DEFAULT_TENANT, TaskId(f"t{index}"), theirs, SUMMARY, "ann")
    known = await target.feed.snapshot()
    assert await bring(target, tmp_path / "x.tar", ImportMode.REPLACE) == 31
    after = await target.feed.snapshot()
    assert await lasting(target) == await lasting(registry)
    assert await target.feed.changes(known.position) is None
    assert await target.feed.catch_up(known) == after
    assert (await target.blobs.collect(dry_run=True, grace_s=0)).blobs == 1


async def test_a_reader_of_the_source_that_comes_to_the_target_takes_a_snapshot(
    registry: Registry, target: Registry, key: str, tmp_path: Path
) -> None:
    await export(registry, tmp_path / "x.tar")
    known = await registry.feed.snapshot()
    await bring(target, tmp_path / "x.tar")
    assert await target.feed.changes(known.position) is None


async def test_a_registry_that_is_changed_during_the_import_is_left_alone(
    registry: Registry, target: Registry, key: str, tmp_path: Path
) -> None:
    await export(registry, tmp_path / "x.tar")
    busy = asyncio.Event()

    async def write() -> None:
        index = 0
        while not busy.is_set():
            index += 1
            await target.put_task(DEFAULT_TENANT, AGE, TaskOptions(str(index)), "ann")

    writing = asyncio.create_task(write())
    with pytest.raises(RegistryChanged):
        await bring(target, tmp_path / "x.tar", ImportMode.REPLACE)
    busy.set()
    await writing
    assert [record.task for record in await target.list_tasks(DEFAULT_TENANT)] == [AGE]


async def test_nothing_staged_is_left_after_an_import(
    registry: Registry, target: Registry, key: str, redis: Redis, tmp_path: Path
) -> None:
    await export(registry, tmp_path / "x.tar")
    await bring(target, tmp_path / "x.tar")
    keys = [key async for key in redis.scan_iter(f"{{{target.store.prefix}}}:*", 1000)]
    assert [key for key in keys if b":import:" in key] == []
    kept = [key for key in keys if b":request:" not in key]
    assert {await redis.ttl(key) for key in kept} == {-1}


async def test_an_export_amid_writers_is_one_moment_s_truth(
    registry: Registry, target: Registry, tmp_path: Path
) -> None:
    async def write(task: TaskId) -> None:
        for index in range(60):
            await registry.put_task(DEFAULT_TENANT, task, TaskOptions(str(index)), "ann")

    writers = [asyncio.create_task(write(TaskId(f"t{index}"))) for index in range(20)]
    manifest = await export(registry, tmp_path / "x.tar")
    await asyncio.gather(*writers)
    await bring(target, tmp_path / "x.tar")
    newest: dict[TaskId, str] = {}
    for event in (await registry.feed.events(limit=10_000))[: manifest.revision]:
        assert event.task is not None
        assert event.options is not None
        newest[event.task] = event.options.description
    found = {
        record.task: record.options.description
        for record in await target.list_tasks(DEFAULT_TENANT)
    }
    assert found == newest
    assert len(await target.feed.events(limit=10_000)) == manifest.revision + 1


async def test_a_registry_moves_to_another_server(
    registry: Registry, key: str, tmp_path: Path
) -> None:
    await export(registry, tmp_path / "x.tar")
    server = EmbeddedRedis(tmp_path / "redis")
    elsewhere = Registry(connect(server.start()), "peterrec")
    await bring(elsewhere, tmp_path / "x.tar")
    server.restart()
    assert await lasting(elsewhere) == await lasting(registry)
    await elsewhere.close()
    server.stop()


async def test_a_corrupt_blob_stops_the_export_and_leaves_no_file(
    registry: Registry, key: str, redis: Redis, tmp_path: Path
) -> None:
    pieces = [
        k async for k in redis.scan_iter(f"{registry.store.prefix}:blob:*{DIGESTS[0]}*", 1000)
    ]
    await redis.set(pieces[0], b"other")
    with pytest.raises(BlobCorrupt):
        await export(registry, tmp_path / "x.tar")
    assert names_in(tmp_path) == []


async def test_an_archive_that_can_t_be_written_is_an_error_of_ours(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PathUnusable, match="file is a file, not a folder"):
        await export(registry, tmp_path / "file" / "x.tar")


async def test_an_archive_is_for_its_owner_s_eyes(registry: Registry, tmp_path: Path) -> None:
    await export(registry, tmp_path / "x.tar")
    assert (tmp_path / "x.tar").stat().st_mode & 0o077 == 0


async def test_every_damaged_byte_of_an_archive_is_found(
    registry: Registry, target: Registry, tmp_path: Path
) -> None:
    digest = await registry.blobs.put(Blob(b"content"))
    await registry.add_version(DEFAULT_TENANT, GENDER, digest, SUMMARY, "ann")
    await export(registry, tmp_path / "x.tar")
    data = (tmp_path / "x.tar").read_bytes()
    with tarfile.open(tmp_path / "x.tar") as tar:
        ranges = [(m.offset_data, m.offset_data + m.size) for m in tar.getmembers()]
    for begin, end in ranges:
        for at in range(begin, end, 37):
            damaged = bytearray(data)
            damaged[at] ^= 0x01
            (tmp_path / "y.tar").write_bytes(damaged)
            with pytest.raises(ArchiveInvalid):
                await bring(target, tmp_path / "y.tar")
    assert await target.feed.revision() == 0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
async def test_an_archive_that_was_cut_off_is_refused(
    registry: Registry, target: Registry, key: str, tmp_path: Path, share: float
) -> None:
    await export(registry, tmp_path / "x.tar")
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArchiveInvalid):
        await bring(target, tmp_path / "x.tar")


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """An archive with other members and a manifest that fits them."""
    with tarfile.open(path) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]  # all are files
    del members["manifest.sha256"]
    manifest = json.loads(members.pop("manifest.json"))
    change(members)
    manifest["files"] = {
        name: {"sha256": digest_of(data), "size_bytes": len(data)} for name, data in members.items()
    }
    members["manifest.json"] = json.dumps(manifest).encode()
    members["manifest.sha256"] = digest_of(members["manifest.json"]).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, BytesIO(data))


def edit_task(edit: Callable[[dict[str, object]], object]) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        task = json.loads(members["tasks.jsonl"])
        edit(task)
        members["tasks.jsonl"] = json.dumps(task).encode()

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda members: members.pop("tasks.jsonl"),
        lambda members: members.update({"keys.jsonl": b"no json\n"}),
        lambda members: members.update({"keys.jsonl": b'{"key_id":"x","record":{}}\n'}),
        lambda members: members.update({"audit.jsonl": b'{"revision":"x","fields":{}}\n'}),
        lambda members: [members.pop(name) for name in list(members) if "blobs/" in name],
        lambda members: members.update({f"blobs/{'0' * 64}.bundle": b"lies about its name"}),
        edit_task(lambda task: task.update(task="../../etc")),
        edit_task(lambda task: task.update(versions={})),
        edit_task(lambda task: task.update(versions=3)),
        edit_task(lambda task: task.update(record={})),
        edit_task(lambda task: task.pop("states")),
    ],
)
async def test_an_archive_whose_parts_contradict_each_other_is_refused(
    registry: Registry, target: Registry, tmp_path: Path, change: Callable[[dict[str, bytes]], None]
) -> None:
    digest = await registry.blobs.put(Blob(b"content"))
    await registry.add_version(DEFAULT_TENANT, GENDER, digest, SUMMARY, "ann")
    await export(registry, tmp_path / "x.tar")
    rewritten(tmp_path / "x.tar", change)
    with pytest.raises(ArchiveInvalid):
        await bring(target, tmp_path / "x.tar")
    assert await target.feed.revision() == 0


async def test_links_and_files_that_are_no_archives_are_refused(
    registry: Registry, target: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar"
    for content in (b"", b"hello" * 1000, b"\x80\x04\x95pickle"):
        path.write_bytes(content)
        with pytest.raises(ArchiveInvalid):
            await bring(target, path)
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("tasks.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("manifest.json"))
        tar.addfile(tarfile.TarInfo("manifest.sha256"))
    with pytest.raises(ArchiveInvalid, match="not a regular file"):
        await bring(target, path)


async def test_an_archive_of_another_format_is_refused(
    registry: Registry, target: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peterrec.patches.backup.archive.ARCHIVE_FORMAT", "peterrec.registry/9")
    await export(registry, tmp_path / "x.tar")
    monkeypatch.undo()
    with pytest.raises(ArchiveInvalid, match=r"format is none of peterrec\.registry/2"):
        await bring(target, tmp_path / "x.tar")


async def test_a_redis_that_is_not_there_leaves_no_file(tmp_path: Path) -> None:
    registry = Registry(connect(f"unix://{tmp_path}/nobody.sock", retries=0))
    with pytest.raises(RegistryUnavailable):
        await export(registry, tmp_path / "x.tar")
    assert names_in(tmp_path) == []
