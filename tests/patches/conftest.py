"""A plain Redis client, to look at what the registry has written."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from patches.registry import open_redis


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = open_redis(redis_url)
    yield client
    await client.aclose()
