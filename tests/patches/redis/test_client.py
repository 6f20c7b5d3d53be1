"""The registry on Redis as it is in production: TLS, ACL users, replicas, Sentinel, Cluster."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from peterrec.model.errors import PathMissing
from peterrec.patches.errors import (
    RegistryDenied,
    RegistryFull,
    RegistryReadOnly,
    RegistryUnavailable,
)
from peterrec.patches.identity import DEFAULT_TENANT, Blob, TaskId
from peterrec.patches.redis.client import open_redis
from peterrec.patches.registry.api_keys import Scope
from peterrec.patches.registry.records import TaskOptions
from peterrec.patches.registry.registry import Registry
from peterrec.patches.registry.traffic import Canary, Traffic
from tests.certificates import make_certificates
from tests.patches.redis_servers import (
    HOST,
    RedisServer,
    SentinelServer,
    cluster,
    in_step,
    join,
    primary_and_replica,
    running,
)
from tests.patches.registry.test_registry import SUMMARY
from tests.waiting import soon

TASK = TaskId("gender")
DOCUMENT = Path(__file__).parents[3] / "docs" / "registry.md"


@asynccontextmanager
async def opened(url: str, retries: int = 3) -> AsyncIterator[Registry]:
    registry = Registry(open_redis(url, retries=retries))
    try:
        yield registry
    finally:
        await registry.close()


async def use_everything(registry: Registry) -> None:
    """One of every kind of call."""
    contents = [b"a", b"b", bytes(100_000)]
    digests = await asyncio.gather(*(registry.blobs.put(Blob(content)) for content in contents))
    for digest in digests:
        await registry.add_version(DEFAULT_TENANT, TASK, digest, SUMMARY, "ann")
    await registry.set_alias(DEFAULT_TENANT, TASK, "next", digests[0], "ann")
    traffic = Traffic(90, (Canary(digests[1], 10),))
    await registry.put_traffic(DEFAULT_TENANT, TASK, traffic, "ann")
    known = await registry.feed.snapshot()
    await registry.rollback(DEFAULT_TENANT, TASK, "ann")
    await registry.delete_alias(DEFAULT_TENANT, TASK, "next", "ann")
    await registry.keys.create(DEFAULT_TENANT, [Scope("predict")], "shop")
    assert await registry.feed.catch_up(known) == await registry.feed.snapshot()
    assert [(await registry.blobs.get(digest)).data for digest in digests] == contents
    assert len(await registry.list_tasks(DEFAULT_TENANT)) == 1
    assert len(await registry.keys.of_tenant(DEFAULT_TENANT)) == 1
    assert len(await registry.feed.events()) == await registry.feed.wait_for_change(0, 1) == 8
    assert await registry.feed.wait_for_change(8, 0.01) == 8
    await registry.delete_task(DEFAULT_TENANT, TASK, "ann")
    assert (await registry.blobs.collect(dry_run=True, grace_s=0)).blobs == 3
    assert (await registry.blobs.collect(dry_run=False, grace_s=0)).blobs == 3


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    with running(server):
        yield server


async def test_a_cluster_of_three_holds_the_registry(tmp_path: Path) -> None:
    nodes = cluster(tmp_path)
    with running(*nodes):
        join(nodes)
        async with opened(f"cluster://{HOST}:{nodes[0].port}") as registry:
            await use_everything(registry)
            digests = await asyncio.gather(
                *(registry.blobs.put(Blob(b"%d" % n)) for n in range(40))
            )
            used = [node.client() for node in nodes]
            assert all(client.dbsize() >= 5 for client in used), "every node holds blobs"
            for client in used:
                client.close()
            assert (await registry.blobs.get(digests[0])).data == b"0"


@pytest.mark.slow
async def test_many_tasks_may_use_a_cluster_from_the_start(tmp_path: Path) -> None:
    nodes = cluster(tmp_path)
    with running(*nodes):
        join(nodes)
        addresses = ",".join(f"{HOST}:{node.port}" for node in nodes)
        async with opened(f"cluster://{addresses}") as registry:
            put = await asyncio.gather(*(registry.blobs.put(Blob(b"%d" % n)) for n in range(60)))
            assert len(set(put)) == 60


async def test_a_cluster_that_is_away_is_unavailable() -> None:
    async with opened(f"cluster://{HOST}:1") as registry:
        with pytest.raises(RegistryUnavailable):
            await registry.feed.revision()


@pytest.mark.slow
async def test_the_registry_follows_its_primary_through_a_sentinel_s_failover(
    tmp_path: Path,
) -> None:
    first, second = primary_and_replica(tmp_path)
    with running(first, second):
        in_step(second)
        sentinel = SentinelServer(tmp_path, first)
        with running(sentinel):
            address = f"sentinel://{HOST}:1,{HOST}:{sentinel.port}/registry"
            async with opened(address) as registry:
                await registry.put_task(DEFAULT_TENANT, TASK, TaskOptions("x"), "ann")
                known = await registry.feed.snapshot()
                second.wait_for(lambda client: client.get("{peterrec}:revision") == "1")
                first.kill()
                with pytest.raises(RegistryUnavailable):
                    await registry.feed.revision()
                await soon(lambda: answers(registry), within_s=30)
                await registry.put_task(DEFAULT_TENANT, TASK, TaskOptions("y"), "ann")
                caught_up = await registry.feed.catch_up(known)
                assert caught_up.revision == 2


async def answers(registry: Registry) -> bool:
    try:
        await registry.put_task(DEFAULT_TENANT, TASK, TaskOptions("x"), "ann")
    except RegistryUnavailable:
        return False
    return True


async def test_sentinels_that_know_no_such_service_make_it_unavailable(tmp_path: Path) -> None:
    first, second = primary_and_replica(tmp_path)
    with running(first, second):
        in_step(second)
        sentinel = SentinelServer(tmp_path, first)
        with running(sentinel):
            url = f"sentinel://{HOST}:{sentinel.port}/other"
            async with opened(url, retries=0) as registry:
                with pytest.raises(RegistryUnavailable, match="No master found for 'other'"):
                    await registry.feed.revision()


async def test_a_replica_is_read_and_not_written(tmp_path: Path) -> None:
    first, second = primary_and_replica(tmp_path)
    with running(first, second):
        async with opened(first.url) as writer, opened(second.url) as reader:
            digest = await writer.blobs.put(Blob(b"a"))
            await writer.add_version(DEFAULT_TENANT, TASK, digest, SUMMARY, "ann")
            in_step(second)
            second.wait_for(lambda client: client.get("{peterrec}:revision") == "1")
            assert await reader.feed.snapshot() == await writer.feed.snapshot()
            assert await reader.feed.changes((await writer.feed.snapshot()).position) is not None
            assert (await reader.blobs.get(digest)).data == b"a"
            for change in (
                reader.put_task(DEFAULT_TENANT, TASK, TaskOptions("x"), "ann"),
                reader.put_traffic(DEFAULT_TENANT, TASK, Traffic(1, (Canary(digest, 1),)), "ann"),
                reader.delete_task(DEFAULT_TENANT, TASK, "ann"),
                reader.blobs.put(Blob(b"b")),
            ):
                with pytest.raises(RegistryReadOnly):
                    await change
            assert (await reader.feed.snapshot()).revision == 1


async def test_a_connection_to_a_demoted_primary_is_given_up(
    tmp_path: Path,
) -> None:
    first, second = primary_and_replica(tmp_path)
    with running(first, second):
        in_step(second)
        async with opened(first.url) as registry:
            await registry.put_task(DEFAULT_TENANT, TASK, TaskOptions("x"), "ann")
            with first.client() as admin:
                admin.replicaof(HOST, second.port)
                with pytest.raises(RegistryReadOnly):
                    await registry.put_task(DEFAULT_TENANT, TASK, TaskOptions("y"), "ann")
            first.wait_for(lambda admin: len(admin.client_list(_type="normal")) == 1)


async def test_a_full_redis_refuses_traffic_and_guards_but_not_reading(
    primary: RedisServer,
) -> None:
    async with opened(primary.url) as registry:
        digests = [await registry.blobs.put(Blob(content)) for content in (b"a", b"b")]
        for digest in digests:
            await registry.add_version(DEFAULT_TENANT, TASK, digest, SUMMARY, "ann")
        traffic = Traffic(1, (Canary(digests[0], 1),))
        put = await registry.put_traffic(DEFAULT_TENANT, TASK, traffic, "ann")
        before = await registry.feed.snapshot()
        with primary.client() as admin:
            admin.config_set("maxmemory", "1")
        for change in (
            registry.put_traffic(DEFAULT_TENANT, TASK, Traffic(2, shadow=(digests[0],)), "ann"),
            registry.clear_traffic(DEFAULT_TENANT, TASK, "ann"),
            registry.rollback(DEFAULT_TENANT, TASK, "ann"),
        ):
            with pytest.raises(RegistryFull):
                await change
        assert put.revision == before.revision
        assert await registry.feed.snapshot() == before
        assert await registry.feed.changes(before.position) is not None


def documented_acl() -> list[str]:
    """The rule of the documentation, for the prefix peterrec and the password secret."""
    match = re.search(r"^ACL SETUSER (.+)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None
    return match.group(1).replace("PASSWORD", "secret").split()


async def test_an_acl_user_with_the_documented_rights_can_do_everything(
    primary: RedisServer,
) -> None:
    with primary.client() as admin:
        admin.execute_command("ACL", "SETUSER", *documented_acl())
        admin.set("somebody-else", "x")
    async with opened(f"redis://peterrec:secret@{HOST}:{primary.port}") as registry:
        await use_everything(registry)
    async with opened(f"redis://peterrec:secret@{HOST}:{primary.port}") as elsewhere:
        stranger = Registry(elsewhere.store.redis, "other-prefix")
        with pytest.raises(RegistryDenied, match="ACL"):
            await stranger.put_task(DEFAULT_TENANT, TASK, TaskOptions(), "eve")


async def test_a_wrong_password_is_named_as_such_and_not_shown(primary: RedisServer) -> None:
    with primary.client() as admin:
        admin.execute_command("ACL", "SETUSER", *documented_acl())
        admin.execute_command("ACL", "SETUSER", "default", "off")
        for login in ("peterrec:wrong-one@", ""):
            url = f"redis://{login}{HOST}:{primary.port}"
            async with opened(url, retries=0) as registry:
                with pytest.raises(RegistryDenied) as refused:
                    await registry.feed.snapshot()
                assert "wrong-one" not in str(refused.value)


@asynccontextmanager
async def tls_before(server: RedisServer, folder: Path) -> AsyncIterator[int]:
    """A port with TLS in front of a Redis that was built without."""
    make_certificates(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem")
    relays: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        relays.add(task)
        upstream, downstream = await asyncio.open_connection(HOST, server.port)
        copies = [
            asyncio.create_task(copy(reader, downstream)),
            asyncio.create_task(copy(upstream, writer)),
        ]
        await asyncio.gather(*copies, return_exceptions=True)

    listener = await asyncio.start_server(relay, HOST, 0, ssl=context)
    yield int(listener.sockets[0].getsockname()[1])
    listener.close()
    await asyncio.gather(*relays, return_exceptions=True)
    await listener.wait_closed()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def test_the_connection_may_be_encrypted_and_proves_the_server(
    primary: RedisServer, tmp_path: Path
) -> None:
    async with tls_before(primary, tmp_path) as port:
        url = f"rediss://{HOST}:{port}?ssl_ca_certs={tmp_path / 'ca.pem'}"
        async with opened(url) as registry:
            await use_everything(registry)


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_a_certificate_or_key_that_cannot_be_read_is_named(tmp_path: Path, option: str) -> None:
    with pytest.raises(PathMissing, match=r"nowhere\.pem can't be read"):
        open_redis(f"rediss://{HOST}:1/0?{option}={tmp_path / 'nowhere.pem'}")


async def test_a_server_with_a_certificate_by_somebody_else_is_not_talked_to(
    primary: RedisServer, tmp_path: Path
) -> None:
    async with (
        tls_before(primary, tmp_path) as port,
        opened(f"rediss://{HOST}:{port}", retries=0) as registry,
    ):
        with pytest.raises(RegistryUnavailable, match="certificate verify failed"):
            await registry.feed.revision()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://user:secret@somewhere",
        "redis://secret@host?nonsense=1",
        "redis://host?socket_timeout=secret",
        "sentinel://host:26379",
        "sentinel://:secret@/registry",
        "sentinel://host:secret/registry",
        "sentinel://host/registry/secret",
        "sentinel://host/registry?nonsense=secret",
        "cluster://",
        "cluster://host/secret",
        "cluster://host?nonsense=secret",
    ],
)
def test_an_address_that_is_no_redis_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(RegistryUnavailable, match="not a Redis URL") as refused:
        open_redis(url)
    assert "secret" not in str(refused.value)
