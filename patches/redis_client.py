"""The connection to Redis: how it retries, and how its errors become ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from patches.errors import RegistryFailed, RegistryFull, RegistryReadOnly, RegistryUnavailable

RETRIES = 3
BACKOFF_BASE_S = 0.05
BACKOFF_CAP_S = 1.0
SOCKET_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
HEALTH_CHECK_INTERVAL_S = 15
MAX_CONNECTIONS = 32
CONNECTION_WAIT_S = 10
"""A call waits this long for one of the connections when all are busy."""

_UNREACHABLE = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)
_NOT_NOW = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS", "BUSY ")


def open_redis(url: str, *, retries: int = RETRIES) -> Redis:
    """A client for ``redis://``, ``rediss://`` or ``unix://``; it connects at the first command.

    A lost connection is retried with backoff; the registry's scripts bear being sent twice.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=CONNECTION_WAIT_S,
            decode_responses=False,
            retry=Retry(ExponentialWithJitterBackoff(BACKOFF_CAP_S, BACKOFF_BASE_S), retries),
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            health_check_interval=HEALTH_CHECK_INTERVAL_S,
        )
    except ValueError as error:
        raise RegistryUnavailable(
            "the registry's address is no Redis URL.",
            hint="Set PETERREC_REDIS_URL to redis://, rediss:// or unix:// with an address.",
        ) from error
    return Redis.from_pool(pool)


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn what the Redis client raises into our errors. Its texts name no password."""
    try:
        yield
    except exceptions.ReadOnlyError as error:
        raise RegistryReadOnly from error
    except exceptions.OutOfMemoryError as error:
        raise RegistryFull from error
    except _UNREACHABLE as error:
        raise RegistryUnavailable(
            f"Redis does not answer: {error}.", hint="Serving goes on; repeat the change later."
        ) from error
    except exceptions.RedisError as error:
        raise _from_text(str(error)) from error


def _from_text(text: str) -> RegistryUnavailable | RegistryFailed:
    """Errors raised inside scripts arrive as text, with their code somewhere in it."""
    if "READONLY " in text:
        return RegistryReadOnly()
    if "OOM command not allowed" in text:
        return RegistryFull()
    if any(code in text for code in _NOT_NOW):
        return RegistryUnavailable(f"Redis can't work now: {text}.", hint="Repeat it later.")
    return RegistryFailed(f"Redis refused a command: {text}.", hint="See docs/registry.md.")
