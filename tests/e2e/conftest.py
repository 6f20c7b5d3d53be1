"""One server with every kind of task, which all tests share unless they break their server."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from peterrec.model.spec import HeadKind
from peterrec.patches.identity import DEFAULT_TENANT
from peterrec.patches.registry.registry import Registry, open_redis
from tests.e2e.running import RunningServer, ServerElsewhere, running_server
from tests.service.random_bundles import Workshop
from tests.waiting import eventually

KINDS: tuple[HeadKind, ...] = ("classification", "tags", "ranking", "value")

BUNDLE_LIMIT = 100_000

REPLICAS = 3


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A random backbone and bundles for it."""
    return Workshop(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def server(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with two workers and the tasks `classification`, `tags`, `ranking` and `value`.

    The bundles of the tasks have seed 1. If ``TEST_SERVER`` names a server of the same backbone,
    its tests call that one, with the key in ``TEST_SERVER_KEY``.
    """
    folder: Path = tmp_path_factory.mktemp("server")
    with ExitStack() as stack:
        if elsewhere := os.environ.get("TEST_SERVER"):
            server: RunningServer = ServerElsewhere(elsewhere, os.environ["TEST_SERVER_KEY"])
        else:
            server = stack.enter_context(
                running_server(
                    workshop.folder, folder, workers=2, bundle_size_limit_bytes=BUNDLE_LIMIT
                )
            )
        with server.client() as client:
            for kind in KINDS:
                push(client, kind, workshop.bundle(kind, seed=1))
        yield server


@pytest.fixture
def api(server: RunningServer) -> Iterator[httpx.Client]:
    """An HTTP client with the server's first key."""
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def replicas(
    workshop, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RunningServer]]:
    """Three servers over one registry. Each has the operator's key as ``key``."""
    prefix = f"test-{uuid4().hex}"
    key = asyncio.run(first_key(redis_url, prefix))
    with ExitStack() as stack:
        servers = []
        for number in range(REPLICAS):
            folder = tmp_path_factory.mktemp(f"replica{number}")
            server = running_server(
                workshop.folder, folder, workers=1, redis_url=redis_url, redis_prefix=prefix
            )
            servers.append(stack.enter_context(server))
            servers[-1].key = key
        yield servers


async def first_key(redis_url: str, prefix: str) -> str:
    """Make the first key of a registry, as the server does for its own Redis."""
    registry = Registry(open_redis(redis_url), prefix)
    created = await registry.keys.ensure_first(DEFAULT_TENANT, "first")
    await registry.close()
    assert created is not None
    return created.plain_text


@pytest.fixture
def operator(replicas: list[RunningServer]) -> Iterator[httpx.Client]:
    """An operator at the first of the replicas."""
    with replicas[0].client() as client:
        eventually(lambda: client.get("/tenants").status_code == 200)
        yield client


def push(client: httpx.Client, task: str, bundle: bytes, **parameters: str) -> httpx.Response:
    """Push a bundle and assert that it was accepted."""
    answer = client.post(f"/tasks/{task}/versions", content=bundle, params=parameters)
    assert answer.status_code in {200, 201}, answer.text
    return answer
