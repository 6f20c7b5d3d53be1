"""What changes, as a stream that loses nothing, and as a trail that says who did it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple
from uuid import uuid4

import httpx
import pytest

from peterrec.patches.identity import DEFAULT_TENANT, TaskId, TenantId
from peterrec.patches.registry.api_keys import Scope
from peterrec.patches.registry.records import TaskOptions
from peterrec.patches.registry.registry import Registry, open_redis
from tests.e2e.conftest import push
from tests.e2e.running import RunningServer, running_server

PATIENCE_S = 10


class Event(NamedTuple):
    revision: int
    action: str
    data: dict


class Stream:
    """A client that reads the stream's events one by one."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> Event:
        async with asyncio.timeout(PATIENCE_S):
            fields: dict[str, str] = {}
            async for line in self._lines:
                if line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif fields:
                    return Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            raise EOFError

    async def ended(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                await self.next()

    async def has_begun(self) -> None:
        assert (await anext(self._lines)).startswith(":")


@asynccontextmanager
async def following(
    server: RunningServer,
    key: str | None = None,
    event_id: int | None = None,
    since: int | None = None,
) -> AsyncIterator[Stream]:
    headers = {"Authorization": f"Bearer {server.key if key is None else key}"}
    parameters = {} if since is None else {"since": since}
    if event_id is not None:
        headers["Last-Event-ID"] = str(event_id)
    async with (
        httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False) as client,
        client.stream("GET", "/registry/events", params=parameters, timeout=60) as response,
    ):
        if response.status_code != 200:
            await response.aread()
            yield Stream(response)
            return
        stream = Stream(response)
        await stream.has_begun()
        yield stream


@pytest.fixture
def task() -> str:
    return f"feed-{uuid4().hex[:8]}"


def describe(api, task, text) -> int:
    answer = api.put(f"/tasks/{task}", json={"description": text})
    assert answer.is_success, answer.text
    return answer.json()["registry_revision"]


async def test_a_stream_tells_what_happens_from_now_on(server, api, task):
    describe(api, task, "before")
    async with following(server) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        revision = describe(api, task, "after")
        event = await stream.next()
    assert (event.revision, event.action) == (revision, "put_task")
    assert event.data["task"] == task
    assert event.data["options"]["description"] == "after"
    assert event.data["previous_options"]["description"] == "before"
    assert event.data["actor"] == server.key.split("_")[1]


@pytest.mark.parametrize("how", ["event_id", "since"])
async def test_a_stream_that_broke_is_resumed_without_a_gap(server, api, task, how):
    async with following(server) as stream:
        wanted = [describe(api, task, "0")]
        seen = [(await stream.next()).revision]
    wanted += [describe(api, task, f"{n}") for n in range(1, 30)]
    resumed = {
        "event_id": partial(following, event_id=seen[-1]),
        "since": partial(following, since=seen[-1]),
    }
    async with resumed[how](server) as stream:
        wanted += [describe(api, task, f"{n}") for n in range(30, 40)]
        seen += [(await stream.next()).revision for _ in range(39)]
    assert seen == wanted


async def test_a_stream_does_not_begin_with_what_it_can_not_know(server, api, task):
    revision = describe(api, task, "x")
    async with following(server, since=revision + 1000) as stream:
        problem = stream.response.json()
    assert (stream.response.status_code, problem["code"]) == (410, "events_lost")
    assert f"since={revision}" in problem["hint"]


async def test_a_key_sees_the_tasks_that_it_may_administer(server, api, task):
    made = api.post("/keys", json={"name": "narrow", "scopes": [f"admin:{task}*"]}).json()
    async with following(server, made["api_key"]) as stream:
        describe(api, "feed-of-others", f"{uuid4()}")
        revision = describe(api, f"{task}-mine", "x")
        assert (await stream.next()).revision == revision
    with server.client(made["api_key"]) as mine:
        found = mine.get("/registry/audit").json()["events"]
    assert {event["task"] for event in found} == {f"{task}-mine"}


async def test_a_stream_ends_when_its_key_is_revoked(server, api):
    made = api.post("/keys", json={"name": "short", "scopes": ["admin"]}).json()
    async with following(server, made["api_key"]) as stream:
        api.delete(f"/keys/{made['key_id']}")
        await stream.ended()


@pytest.mark.parametrize("path", ["/registry/events", "/registry/audit"])
def test_a_key_that_may_only_predict_sees_nothing(server, api, path):
    made = api.post("/keys", json={"name": "p", "scopes": ["predict"]}).json()
    with server.client(made["api_key"]) as client:
        assert client.get(path).status_code == 403


@pytest.mark.timeout(180)
async def test_tenants_see_their_own_and_streams_end_with_the_server(
    workshop, tmp_path, redis_url, redis_prefix
):
    registry = Registry(open_redis(redis_url), redis_prefix)
    scopes = [Scope("admin")]
    mine, *_ = await registry.keys.create(DEFAULT_TENANT, scopes, "mine")
    theirs, *_ = await registry.keys.create(TenantId("rival"), scopes, "theirs")
    settings = {"workers": 1, "redis_url": redis_url, "redis_prefix": redis_prefix}
    with running_server(workshop.folder, tmp_path, **settings) as server:
        async with following(server, mine) as ours, following(server, theirs) as rivals:
            options = TaskOptions()
            await registry.put_task(TenantId("rival"), TaskId("a"), options, "x")
            await registry.put_task(DEFAULT_TENANT, TaskId("b"), options, "x")
            assert (await ours.next()).data["task"] == "b"
            assert (await rivals.next()).data["task"] == "a"
            with server.client(theirs) as client:
                seen = client.get("/registry/audit").json()["events"]
            assert {event["task"] for event in seen} == {"a", None}
            server.terminate()
            await ours.ended()
            await rivals.ended()
        assert await asyncio.to_thread(server.wait) == 0
    await registry.close()


def test_the_trail_says_who_changed_what_from_what_to_what(server, api, task, workshop):
    first = push(api, task, workshop.bundle("value", seed=61)).json()
    second = push(api, task, workshop.bundle("value", seed=62)).json()
    api.post(f"/tasks/{task}:rollback")
    events = api.get("/registry/audit", params={"task": task}).json()["events"]
    assert [event["action"] for event in events] == ["add_version", "add_version", "rollback"]
    assert {event["actor"] for event in events} == {server.key.split("_")[1]}
    moves = [(event["previous"], event["current"]) for event in events]
    one, two = first["digest"], second["digest"]
    assert moves == [(None, one), (one, two), (two, one)]


def test_the_trail_is_read_in_pages_and_exported_whole(api, task):
    revisions = [describe(api, task, f"{n}") for n in range(7)]
    found, since = [], 0
    while since is not None:
        query = {"task": task, "since": since, "limit": 3}
        page = api.get("/registry/audit", params=query).json()
        found += [event["revision"] for event in page["events"]]
        since = page["next_since"]
    assert found == revisions
    answer = api.get("/registry/audit", params={"task": task, "format": "ndjson"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["revision"] for line in answer.text.splitlines()] == revisions
    assert answer.headers["x-audit-complete"] == "true"
    late = api.get("/registry/audit", params={"task": task, "since": revisions[4]}).json()
    assert [event["revision"] for event in late["events"]] == revisions[5:]
    assert late["is_complete"]


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_what_is_no_longer_kept_is_said_to_be_lost(
    workshop, tmp_path, redis_url, redis_prefix
):
    registry = Registry(open_redis(redis_url), redis_prefix)
    for number in range(30):
        await registry.put_task(DEFAULT_TENANT, TaskId("t"), TaskOptions(f"{number}"), "x")
    await registry.store.redis.xtrim(registry.store.key("changes"), maxlen=10, approximate=False)
    oldest = await registry.feed.oldest_event()
    settings = {"redis_url": redis_url, "redis_prefix": redis_prefix, "auth": "off", "workers": 1}
    with running_server(workshop.folder, tmp_path, **settings) as server, server.client() as api:
        found = api.get("/registry/audit").json()
        assert (found["is_complete"], found["oldest_revision"]) == (False, oldest)
        assert found["events"][0]["revision"] == oldest
        refused = api.get("/registry/events", params={"since": oldest - 2})
        assert (refused.status_code, refused.json()["code"]) == (410, "events_lost")
        async with following(server, "none", since=oldest - 1) as stream:
            assert (await stream.next()).revision == oldest
    await registry.close()
