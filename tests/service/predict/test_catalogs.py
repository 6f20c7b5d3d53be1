"""Catalogs of ranking heads, read from bundle files in a thread and cached."""

from pathlib import Path

import pytest

from peterrec.patches.bundle.bundle import Digest, digest_of
from peterrec.service.errors import BundleNotReady
from peterrec.service.predict.catalogs import Catalogs
from peterrec.service.protocol.messages import BundleEntry
from tests.patches.bundles import make_bundle


def entry(folder: Path, *items: str) -> BundleEntry:
    bundle = make_bundle("ranking", outputs=len(items), catalog=items)
    path = folder / f"{'-'.join(items)}.bundle"
    path.write_bytes(bundle)
    return BundleEntry(1, digest_of(bundle), "ranking", len(items), (), 0.5, str(path))


async def test_a_catalog_is_read_once_and_then_at_hand(tmp_path):
    catalogs, bundle = Catalogs(), entry(tmp_path, "x", "y", "z")
    assert catalogs.peek(bundle.digest) is None
    catalog = await catalogs.read(bundle)
    assert ([*catalog], catalog.index_of("z"), catalog.index_of("q")) == (["x", "y", "z"], 2, None)
    assert catalogs.peek(bundle.digest) is catalog


async def test_a_prefetched_catalog_is_the_one_that_is_read(tmp_path):
    catalogs, bundle = Catalogs(), entry(tmp_path, "x", "y")
    catalogs.prefetch([bundle])
    catalog = await catalogs.read(bundle)
    assert catalogs.peek(bundle.digest) is catalog


async def test_a_file_that_has_gone_is_not_ready_for_those_who_ask(tmp_path):
    catalogs = Catalogs()
    bundle = BundleEntry(1, Digest("a" * 64), "ranking", 1, (), 0.5, str(tmp_path / "gone"))
    catalogs.prefetch([bundle])
    with pytest.raises(BundleNotReady):
        await catalogs.read(bundle)
    await catalogs.close()


async def test_the_longest_unused_catalogs_go_when_there_are_too_many_items(tmp_path, monkeypatch):
    monkeypatch.setattr("peterrec.service.predict.catalogs.MAX_ITEMS", 4)
    catalogs = Catalogs()
    first, second, third = (entry(tmp_path, name, name + "2") for name in ("a", "b", "c"))
    await catalogs.read(first)
    await catalogs.read(second)
    catalogs.peek(first.digest)
    await catalogs.read(third)
    assert catalogs.peek(second.digest) is None
    assert catalogs.peek(first.digest) is not None


async def test_a_catalog_beyond_the_limit_is_cached_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("peterrec.service.predict.catalogs.MAX_ITEMS", 2)
    catalogs = Catalogs()
    small, large = entry(tmp_path, "a"), entry(tmp_path, "x", "y", "z")
    await catalogs.read(small)
    await catalogs.read(large)
    assert catalogs.peek(large.digest) is not None
    assert catalogs.peek(small.digest) is None
