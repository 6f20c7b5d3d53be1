"""A private real Redis for the whole run, and a registry with its own key prefix for each test."""

from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from peterrec.patches.redis.embedded import EmbeddedRedis
from peterrec.patches.registry.registry import Registry, open_redis


@pytest.fixture(scope="session")
def embedded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A Redis that all tests share: never stop it, and never send FLUSHALL."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_url(embedded_redis: EmbeddedRedis) -> str:
    """The URL of the private Redis."""
    return embedded_redis.url


@pytest.fixture
def redis_prefix() -> str:
    """A key prefix that no other test uses."""
    return f"test-{uuid4().hex}"


@pytest.fixture
async def registry(redis_url: str, redis_prefix: str) -> AsyncIterator[Registry]:
    """An empty registry."""
    registry = Registry(open_redis(redis_url), redis_prefix)
    yield registry
    await registry.close()
