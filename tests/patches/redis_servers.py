"""Real Redis servers that a test may start and break: replicas, Sentinels, clusters."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis as sync_redis
from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from peterrec.patches.identity import Blob, Digest
from peterrec.patches.redis.client import open_redis
from peterrec.patches.redis.embedded import find_redis_server
from peterrec.patches.registry.registry import Registry

PATIENCE_S = 30.0
POLL_S = 0.05
HOST = "127.0.0.1"


def connect(url: str, retries: int = 3) -> Redis:
    """Open a client for a single server, as the registry does."""
    client = open_redis(url, retries=retries)
    assert isinstance(client, Redis)
    return client


async def is_stored(registry: Registry, digest: Digest) -> bool:
    """Whether the registry has the bundle's bytes, complete and unchanged."""
    found = await registry.blobs.get_some([digest], max_bytes=0)
    return isinstance(found[digest], Blob)


class RedisServer:
    """One redis-server on a separate port, without persistence."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.folder = folder / str(self.port)
        self.folder.mkdir(parents=True)
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def start(self) -> None:
        arguments = [
            *("--port", str(self.port), "--bind", HOST, "--dir", str(self.folder), "--save", ""),
            *self.options,
        ]
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [find_redis_server(), *arguments], stdout=log, stderr=log
            )
        self.wait_for(lambda client: bool(client.ping()))

    def wait_for(self, is_so: Callable[[sync_redis.Redis], bool]) -> None:
        """Wait until the server answers and ``is_so(client)`` is true."""
        deadline = time.monotonic() + PATIENCE_S
        with self.client() as client:
            while not _holds(is_so, client):
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(POLL_S)

    def client(self) -> sync_redis.Redis:
        """Open a blocking client for the setup of a test."""
        retry = Retry(NoBackoff(), 0)
        return sync_redis.Redis(host=HOST, port=self.port, retry=retry, decode_responses=True)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _holds(is_so: Callable[[sync_redis.Redis], bool], client: sync_redis.Redis) -> bool:
    try:
        return is_so(client)
    except (sync_redis.RedisError, OSError):
        return False


def free_port() -> int:
    """Find a free port below the range of outgoing connections; port + 10000 is free, too.

    A cluster's server also listens on port + 10000.
    """
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1]) % 10_000 + 11_000
        if _is_free(port) and _is_free(port + 10_000):
            return port
    raise AssertionError("no free port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@contextmanager
def running(*servers: RedisServer) -> Iterator[None]:
    """Start the servers one after another, and kill them at the end."""
    with ExitStack() as undo:
        for server in servers:
            undo.callback(server.kill)
            server.start()
        yield


def primary_and_replica(folder: Path) -> tuple[RedisServer, RedisServer]:
    """Make two servers, of which the second is a replica of the first."""
    primary = RedisServer(folder, "--repl-diskless-sync-delay", "0")
    replica = RedisServer(folder, "--replicaof", HOST, str(primary.port))
    return primary, replica


def in_step(replica: RedisServer) -> None:
    """Wait until the replica has its primary's data."""
    replica.wait_for(lambda client: client.info("replication")["master_link_status"] == "up")


class SentinelServer(RedisServer):
    """One Sentinel that watches one primary, with a quorum of one.

    Servers on a busy machine may be silent for longer than the least ``down_after_ms``.
    """

    def __init__(self, folder: Path, primary: RedisServer, down_after_ms: int = 300) -> None:
        super().__init__(folder)
        config = self.folder / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind {HOST}\ndir {self.folder}\n"
            f"sentinel monitor registry {HOST} {primary.port} 1\n"
            f"sentinel down-after-milliseconds registry {down_after_ms}\n"
            "sentinel failover-timeout registry 3000\n"
        )
        self.config = config

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [find_redis_server(), self.config, "--sentinel"], stdout=log, stderr=log
            )
        self.wait_for(self._knows_a_replica)

    @staticmethod
    def _knows_a_replica(client: sync_redis.Redis) -> bool:
        return bool(client.sentinel_slaves("registry"))


def cluster(folder: Path, size: int = 3) -> list[RedisServer]:
    """Make servers that ``join`` turns into one cluster."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    return [RedisServer(folder, *options) for _ in range(size)]


def join(servers: list[RedisServer]) -> None:
    """Distribute the hash slots over the running servers, and wait until the cluster works."""
    cli = find_redis_server().with_name("redis-cli")
    addresses = [f"{HOST}:{server.port}" for server in servers]
    command = [str(cli), "--cluster", "create", *addresses, "--cluster-yes"]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    for server in servers:
        server.wait_for(_is_cluster_ok)


def _is_cluster_ok(client: sync_redis.Redis) -> bool:
    return bool(client.cluster("INFO")["cluster_state"] == "ok")
