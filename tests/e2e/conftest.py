"""One server with every kind of task, which all tests share unless they break their server."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from peterrec.model.spec import HeadKind
from tests.e2e.running import RunningServer, running_server
from tests.service.random_bundles import Workshop

KINDS: tuple[HeadKind, ...] = ("classification", "tags", "ranking", "value")

BUNDLE_LIMIT = 100_000


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A random backbone and bundles for it."""
    return Workshop(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def server(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with two workers and the tasks `classification`, `tags`, `ranking` and `value`.

    The bundles of the tasks have seed 1.
    """
    folder: Path = tmp_path_factory.mktemp("server")
    with running_server(
        workshop.folder, folder, workers=2, bundle_size_limit_bytes=BUNDLE_LIMIT
    ) as server:
        with server.client() as client:
            for kind in KINDS:
                push(client, kind, workshop.bundle(kind, seed=1))
        yield server


@pytest.fixture
def api(server: RunningServer) -> Iterator[httpx.Client]:
    """An HTTP client with the server's first key."""
    with server.client() as client:
        yield client


def push(client: httpx.Client, task: str, bundle: bytes, **parameters: str) -> httpx.Response:
    """Push a bundle and assert that it was accepted."""
    answer = client.post(f"/tasks/{task}/versions", content=bundle, params=parameters)
    assert answer.status_code in {200, 201}, answer.text
    return answer
