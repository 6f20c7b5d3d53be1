"""Following the registry, and calls that have no method of their own, on a real server."""

import asyncio
import json
from uuid import uuid4

import pytest

from peterrec_client import (
    AsyncClient,
    Client,
    Forbidden,
    NotFound,
    ServerUnreachable,
    StaleRevision,
    Unauthenticated,
)
from tests.e2e.running import free_port


@pytest.fixture
def task():
    return f"task-{uuid4().hex[:8]}"


def test_changes_after_a_revision_are_followed_in_their_order(server, client, save, task):
    pushed = client.push(task, save("value", 1))
    client.set_alias(task, 1, alias="next")
    with Client(server.url, server.key) as following:
        events = following.events(since=pushed.registry_revision - 1)
        first, second = next(events), next(events)
    assert [each["action"] for each in (first, second)] == ["add_version", "set_alias"]
    assert (second["task"], second["alias"]) == (task, "next")


def test_a_coroutine_follows_too(server, save, task):
    async def follow():
        async with AsyncClient(server.url, server.key) as following:
            pushed = await following.push(task, save("value", 1))
            assert pushed.registry_revision is not None
            return await anext(following.events(since=pushed.registry_revision - 1))

    assert asyncio.run(follow())["action"] == "add_version"


def test_a_stream_that_is_refused_raises_the_servers_error(server):
    with Client(server.url, "prk_x_y") as following, pytest.raises(Unauthenticated):
        next(following.events())
    with Client(server.url, server.key) as admin:
        body = {"name": "reader", "scopes": ["predict"]}
        key = json.loads(admin.request("POST", "/keys", body=body))["api_key"]
    with Client(server.url, key) as following, pytest.raises(Forbidden):
        next(following.events())


def test_a_stream_without_a_server_is_unreachable():
    nowhere = f"http://127.0.0.1:{free_port()}"
    with Client(nowhere) as following, pytest.raises(ServerUnreachable):
        next(following.events())


def test_any_call_can_be_made_and_answers_with_its_bytes(client, save, task):
    summary = json.loads(
        client.request(
            "POST", f"/tasks/{task}/versions", body=save("value", 3), params={"alias": "prod"}
        )
    )
    assert (summary["task"], summary["version"]) == (task, 1)
    assert json.loads(client.request("GET", f"/tasks/{task}"))["task"] == task
    with pytest.raises(StaleRevision):
        client.request("DELETE", f"/tasks/{task}", if_revision=1)
    client.request("DELETE", f"/tasks/{task}")
    with pytest.raises(NotFound):
        client.request("GET", f"/tasks/{task}")
