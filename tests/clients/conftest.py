"""Both clients with one blocking interface, and one real server for them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peterrec.model.spec import HeadKind
from peterrec_client import AsyncClient, Client
from tests.e2e.running import RunningServer, running_server
from tests.service.random_bundles import Workshop

KINDS: tuple[HeadKind, ...] = ("classification", "tags", "ranking", "value")


class Blocking:
    """An ``AsyncClient`` whose methods block, so that one test covers both clients."""

    def __init__(self, runner: asyncio.Runner, client: AsyncClient) -> None:
        self._runner = runner
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., object]:
        method = getattr(self._client, name)

        def call(*arguments: object, **options: object) -> object:
            return self._runner.run(method(*arguments, **options))

        return call


Make = Callable[..., Client]
Sleep = Callable[[float], None]


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Return functions that make clients of either kind; close the clients at the end."""
    made: list[Callable[[], object]] = []

    def make_sync(*arguments: str, **options: Any) -> Client:  # Any: keywords of the client
        client = Client(*arguments, **options)
        made.append(client.close)
        return client

    def make_async(  # Any: keywords of the client, and a wrapper that behaves like one
        *arguments: str, sleep: Sleep | None = None, **options: Any
    ) -> Any:
        if sleep is not None:
            options["sleep"] = awaitable(sleep)
        client = AsyncClient(*arguments, **options)
        made.append(lambda: runner.run(client.aclose()))
        return Blocking(runner, client)

    with asyncio.Runner() as runner:
        yield make_sync if request.param == "sync" else make_async
        for close in made:
            close()


def awaitable(sleep: Sleep) -> Callable[[float], Awaitable[None]]:
    """Make a coroutine function that calls the given function."""

    async def sleeping(seconds: float) -> None:
        sleep(seconds)

    return sleeping


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A random backbone and bundles for it."""
    return Workshop(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def server(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose tasks are named after their kinds."""
    folder: Path = tmp_path_factory.mktemp("server")
    with running_server(workshop.folder, folder, workers=1) as server:
        with Client(server.url, server.key) as client:
            for kind in KINDS:
                path = folder / f"{kind}.bundle"
                path.write_bytes(workshop.bundle(kind, seed=1))
                client.push(kind, path)
        yield server


@pytest.fixture
def client(make: Make, server: RunningServer) -> Client:
    """A client of either kind with the server's first key."""
    return make(server.url, server.key)


@pytest.fixture
def save(workshop: Workshop, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a bundle file for a kind and a seed."""

    def save_bundle(kind: HeadKind, seed: int) -> Path:
        path = tmp_path / f"{kind}-{seed}.bundle"
        path.write_bytes(workshop.bundle(kind, seed))
        return path

    return save_bundle
