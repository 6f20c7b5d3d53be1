"""Streams of registry changes are counted as long as they are open, and end with a drain."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from fastapi import Response

from peterrec.model.files.backbone_info import BackboneInfo
from peterrec.model.spec import BackboneSpec
from peterrec.patches.registry.registry import Registry
from peterrec.service.errors import EventsLost, TooManyStreams
from peterrec.service.http.auth import ANYONE, Authenticator
from peterrec.service.http.context import AdminContext
from peterrec.service.http.routes.registry_feed import EventStream, open_stream
from peterrec.service.predict.device_link import DeviceLink
from peterrec.service.predict.task_table import TaskTable


@pytest.fixture
def context(registry: Registry, tmp_path: Path) -> AdminContext:
    table = TaskTable()
    link = DeviceLink(Path("nowhere"), table, max_rows=1, on_update=lambda _: None)
    info = BackboneInfo(BackboneSpec(item_count=1), ["a"], "f" * 64)
    return AdminContext(table, Authenticator(False), link, registry, info, tmp_path, 1)


def opening(context: AdminContext, since: int | None = None) -> AsyncGenerator[EventStream, None]:
    return open_stream(ANYONE, context, Response(), since, None)


async def test_a_stream_counts_until_its_request_ends(context):
    request = opening(context)
    stream = await anext(request)
    assert context.streams == {stream}
    await request.aclose()
    assert context.streams == set()


async def test_a_worker_refuses_more_streams_than_its_limit(context, monkeypatch):
    monkeypatch.setattr("peterrec.service.http.routes.registry_feed.MAX_STREAMS", 1)
    first = opening(context)
    await anext(first)
    with pytest.raises(TooManyStreams):
        await anext(opening(context))
    await first.aclose()
    second = opening(context)
    await anext(second)
    await second.aclose()


async def test_a_stream_that_is_refused_does_not_count(context):
    with pytest.raises(EventsLost):
        await anext(opening(context, since=1000))
    assert context.streams == set()


async def test_a_stream_ends_when_its_worker_drains(context):
    request = opening(context)
    events = (await anext(request)).events()
    assert (await anext(events)).comment == "following"
    context.readiness.drain()
    async with asyncio.timeout(10):
        assert [event async for event in events] == []
    await request.aclose()
