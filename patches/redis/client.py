"""The connection to Redis: addresses, retries, and the translation of errors.

redis-py's ``from_url`` knows no address with several servers (redis-py issue 3084), so the URLs of
Sentinels and clusters are parsed here (``docs/decisions/0042-redis-addresses.md``).
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import ExponentialWithJitterBackoff

from peterrec.model.disk import read_bytes
from peterrec.patches.errors import (
    RegistryDenied,
    RegistryFailed,
    RegistryFull,
    RegistryReadOnly,
    RegistryUnavailable,
)

Client = Redis | RedisCluster

RETRIES = 3
"""Repetitions of a command whose connection was lost."""

BACKOFF_BASE_S = 0.05
BACKOFF_CAP_S = 1.0
"""Pause before the first repetition, and the longest pause."""

SOCKET_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
HEALTH_CHECK_INTERVAL_S = 15
"""A connection that was idle for longer is tested before it is used."""

MAX_CONNECTIONS = 32
CONNECTION_WAIT_S = 10
"""A call waits this long for a connection when all are busy."""

SENTINEL_PORT = 26379
CLUSTER_PORT = 6379
SENTINEL_TIMEOUT_S = 1.0
"""Seconds after which a silent Sentinel is given up and the next one is asked."""

Options = dict[str, Any]  # Any: options of redis-py, of many types

_UNREACHABLE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.RedisClusterException,
    OSError,
)
_DENIED = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
)
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
"""Options of an address that name files."""

_NOT_NOW = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS", "BUSY ")


def open_redis(url: str, *, retries: int = RETRIES, timeout_s: float = SOCKET_TIMEOUT_S) -> Client:
    """Return a client for an address; it connects at the first command.

    ``redis://``, ``rediss://`` (TLS) and ``unix://`` name one server, ``sentinel://host,host/service``
    the primary that the Sentinels report, and ``cluster://host,host`` a Redis Cluster;
    ``sentinels://`` and ``clusters://`` use TLS. Options of the connection follow after ``?``, for
    instance ``ssl_ca_certs``. A command whose connection is lost is sent again, with backoff, which
    is safe for the registry's scripts. It may take ``timeout_s`` each time it is sent.
    """
    scheme = url.partition("://")[0]
    _require_tls_files(url)
    try:
        return _OPENERS[scheme](url, _common_options(retries, timeout_s))
    except (KeyError, ValueError, TypeError) as error:
        raise RegistryUnavailable(
            "the registry's address is not a Redis URL.",
            hint="Set PETERREC_REDIS_URL to redis://, rediss://, unix://, sentinel:// or "
            "cluster:// with an address (docs/registry.md).",
        ) from error


def _require_tls_files(url: str) -> None:
    """Refuse certificates and keys that cannot be read; redis-py reads them when it connects."""
    options = parse_qs(url.partition("?")[2])
    for name in TLS_FILES:
        for path in options.get(name, ()):
            read_bytes(Path(path))


async def drop_idle_connections(client: Client) -> None:
    """Connect again at the next command, because the name may belong to another server now."""
    if isinstance(client, Redis):
        await client.connection_pool.disconnect(inuse_connections=False)


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn the Redis client's exceptions into our errors. Their texts contain no password."""
    try:
        yield
    except exceptions.ReadOnlyError as error:
        raise RegistryReadOnly from error
    except exceptions.OutOfMemoryError as error:
        raise RegistryFull from error
    except _DENIED as error:
        raise _denied(str(error)) from error
    except _UNREACHABLE as error:
        raise RegistryUnavailable(
            f"Redis does not answer: {error}.", hint="Serving continues; repeat the change later."
        ) from error
    except exceptions.RedisError as error:
        raise _from_text(str(error)) from error


class _SentinelPool(BlockingConnectionPool, SentinelConnectionPool):
    """A bounded pool of connections to the primary that the Sentinels report.

    redis-py does not close the Sentinels' own connections with the pool (issue 3201).
    """

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections, and finally those to the Sentinels too."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


class _Cluster(RedisCluster):
    """A cluster client that many asyncio tasks may use from the first command on.

    With redis-py 8.1.0, tasks whose first commands run concurrently use connections that another
    task is still opening or has closed again, and fail with ``AttributeError: 'NoneType' object has
    no attribute 'writelines'``. Its issues 3815 and 3835 report related errors.
    """

    def __init__(self, **options: Any) -> None:  # Any: redis-py's options
        super().__init__(**options)
        self._first = asyncio.Lock()
        self._has_worked = False

    async def execute_command(self, *args: Any, **options: Any) -> Any:  # Any: as redis-py has it
        """Run the first command alone, and later ones concurrently."""
        try:
            if self._has_worked:
                return await super().execute_command(*args, **options)
            async with self._first:
                answer = await super().execute_command(*args, **options)
                self._has_worked = True
                return answer
        except AttributeError as error:
            raise exceptions.ConnectionError("the connection to the cluster was lost") from error


@dataclass(frozen=True, slots=True)
class _Servers:
    """The parts of an address with several servers."""

    hosts: list[tuple[str, int]]
    path: list[str]
    options: Options


def _common_options(retries: int, timeout_s: float) -> Options:
    return {
        "decode_responses": False,
        "retry": Retry(ExponentialWithJitterBackoff(BACKOFF_CAP_S, BACKOFF_BASE_S), retries),
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(timeout_s, CONNECT_TIMEOUT_S),
        "health_check_interval": HEALTH_CHECK_INTERVAL_S,
    }


def _open_single(url: str, common: Options) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url, max_connections=MAX_CONNECTIONS, timeout=CONNECTION_WAIT_S, **common
    )
    _check_options(pool)
    return Redis.from_pool(pool)


def _open_sentinel(url: str, common: Options) -> Redis:
    servers = _parse_servers(url, SENTINEL_PORT)
    service, *database = servers.path
    options = common | servers.options | {"db": int(database[0]) if database else 0}
    asked = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    is_tls = url.startswith("sentinels://")
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py does not type it
        servers.hosts,
        sentinel_kwargs={
            **asked,
            **tls,
            "ssl": is_tls,
            "socket_timeout": SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": SENTINEL_TIMEOUT_S,
        },
    )
    pool = _SentinelPool(
        service_name=service,
        sentinel_manager=sentinel,
        connection_class=SentinelManagedSSLConnection if is_tls else SentinelManagedConnection,
        max_connections=MAX_CONNECTIONS,
        timeout=CONNECTION_WAIT_S,
        **options,
    )
    _check_options(pool)
    return Redis.from_pool(pool)


def _open_cluster(url: str, common: Options) -> RedisCluster:
    servers = _parse_servers(url, CLUSTER_PORT)
    if servers.path:
        raise ValueError("a cluster has one database only")
    nodes = [ClusterNode(host, port) for host, port in servers.hosts]
    is_tls = url.startswith("clusters://")
    return _Cluster(startup_nodes=nodes, ssl=is_tls, **(common | servers.options))


_OPENERS: Mapping[str, Callable[[str, Options], Client]] = {
    "redis": _open_single,
    "rediss": _open_single,
    "unix": _open_single,
    "sentinel": _open_sentinel,
    "sentinels": _open_sentinel,
    "cluster": _open_cluster,
    "clusters": _open_cluster,
}


def _check_options(pool: BlockingConnectionPool) -> None:
    """Raise TypeError for unknown options now instead of at the first command."""
    pool.connection_class(**pool.connection_kwargs)


def _parse_servers(url: str, default_port: int) -> _Servers:
    """Parse ``scheme://[user:password@]host[:port],host[:port]…[/path…][?options]``."""
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    # redis-py knows the types of the options and parses them after any address
    options: Options = dict(parse_url(f"redis://?{parts.query}")) if parts.query else {}
    login_options = {"username": unquote(username), "password": unquote(password)}
    return _Servers(
        hosts=[_host(text, default_port) for text in hosts.split(",")],
        path=[unquote(part) for part in parts.path.split("/") if part],
        options=options | {name: value for name, value in login_options.items() if value},
    )


def _host(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a host is missing")
    return parts.hostname, parts.port or default_port


def _from_text(text: str) -> RegistryUnavailable | RegistryFailed:
    """Recognise an error that was raised in a script; its code is somewhere in its text."""
    if "READONLY " in text:
        return RegistryReadOnly()
    if "OOM command not allowed" in text:
        return RegistryFull()
    if "NOPERM" in text or "can't run this command" in text:
        return _denied(text)
    if any(code in text for code in _NOT_NOW):
        return RegistryUnavailable(f"Redis cannot work now: {text}.", hint="Repeat it later.")
    return RegistryFailed(f"Redis refused a command: {text}.", hint="See docs/registry.md.")


def _denied(text: str) -> RegistryDenied:
    return RegistryDenied(f"Redis refuses this user or password, or denies it the command: {text}.")
