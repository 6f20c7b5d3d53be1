"""The copy on disk that a replica starts from."""

from pathlib import Path

import pytest

from peterrec.patches.errors import BlobCorrupt, BlobMissing, CacheUnwritable, SnapshotCorrupt
from peterrec.patches.identity import DEFAULT_TENANT, Blob, digest_of
from peterrec.patches.registry.api_keys import Scope
from peterrec.patches.registry.local_copy import SETTLED_AT_ONCE, SNAPSHOT_NAME, BlobCache
from peterrec.patches.registry.records import RegistrySnapshot, TaskOptions
from peterrec.patches.registry.registry import Registry
from tests.patches.registry.test_registry import GENDER, add

DATA = b"a bundle"
DIGEST = digest_of(DATA)


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "cache")


def test_a_kept_bundle_comes_back_to_another_process(cache: BlobCache, tmp_path: Path) -> None:
    cache.put(Blob(DATA))
    assert BlobCache(tmp_path / "cache").get(DIGEST).data == DATA
    assert cache.digests() == {DIGEST}


def test_a_bundle_that_was_not_kept_is_missing(cache: BlobCache) -> None:
    with pytest.raises(BlobMissing):
        cache.get(DIGEST)


def test_a_damaged_bundle_is_reported_once_and_dropped(cache: BlobCache, tmp_path: Path) -> None:
    cache.put(Blob(DATA))
    (tmp_path / "cache" / f"{DIGEST}.bundle").write_bytes(DATA[:-1])
    with pytest.raises(BlobCorrupt, match=DIGEST):
        cache.get(DIGEST)
    with pytest.raises(BlobMissing):
        cache.get(DIGEST)


def test_only_the_bundles_still_needed_are_retained(cache: BlobCache, tmp_path: Path) -> None:
    cache.put(Blob(DATA))
    cache.put(Blob(b"other"))
    cache.save_snapshot(RegistrySnapshot(1, {}, {}))
    (tmp_path / "cache" / ".writing-crashed").write_bytes(b"half")
    cache.retain({DIGEST})
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert names == {f"{DIGEST}.bundle", SNAPSHOT_NAME}


def test_bundles_settle_a_few_at_a_time_and_one_that_was_dropped_needs_not(
    cache: BlobCache,
) -> None:
    for number in range(SETTLED_AT_ONCE + 1):
        cache.put(Blob(bytes([number])))
    cache.path_of(digest_of(bytes([0]))).unlink()
    assert [cache.settle(), cache.settle()] == [False, True]


async def test_a_snapshot_comes_back_equal(cache: BlobCache, registry: Registry) -> None:
    await add(registry, "a")
    await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions("who", is_sensitive=True), "ann")
    await registry.keys.create(DEFAULT_TENANT, [Scope("predict", "cold-*")], "shop")
    snapshot = await registry.feed.snapshot()
    cache.save_snapshot(snapshot)
    assert cache.load_snapshot() == snapshot


def test_without_a_snapshot_there_is_none(cache: BlobCache) -> None:
    assert cache.load_snapshot() is None


def test_a_newer_snapshot_replaces_the_older(cache: BlobCache) -> None:
    cache.save_snapshot(RegistrySnapshot(1, {}, {}))
    cache.save_snapshot(RegistrySnapshot(2, {}, {}))
    assert cache.load_snapshot() == RegistrySnapshot(2, {}, {})


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\n{}", b'{"revision":7}'])
def test_a_damaged_snapshot_is_reported_once_and_dropped(
    cache: BlobCache, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "cache" / SNAPSHOT_NAME).write_bytes(content)
    with pytest.raises(SnapshotCorrupt):
        cache.load_snapshot()
    assert cache.load_snapshot() is None


def test_every_flipped_byte_of_a_snapshot_is_noticed(cache: BlobCache, tmp_path: Path) -> None:
    cache.save_snapshot(RegistrySnapshot(1, {}, {}))
    path = tmp_path / "cache" / SNAPSHOT_NAME
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SnapshotCorrupt):
            cache.load_snapshot()


def test_others_can_read_neither_bundles_nor_key_digests(cache: BlobCache, tmp_path: Path) -> None:
    cache.put(Blob(DATA))
    cache.save_snapshot(RegistrySnapshot(1, {}, {}))
    paths = [tmp_path / "cache", *(tmp_path / "cache").iterdir()]
    assert [oct(path.stat().st_mode & 0o077) for path in paths] == ["0o0"] * 3


def test_a_directory_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheUnwritable):
        BlobCache(tmp_path / "file" / "cache")
    cache = BlobCache(tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    with pytest.raises(CacheUnwritable):
        cache.put(Blob(DATA))
