"""A plain Redis client for tests that check what the registry has written."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.patches.redis_servers import connect


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    yield client
    await client.aclose()
