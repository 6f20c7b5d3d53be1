"""The embedded registry keeps what it answered for: everything killed amid many registrations.

A longer run: ``DURABILITY_REGISTRATIONS=1000 pytest tests/e2e/test_durability.py``.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

import httpx
import pytest

from tests.e2e.running import RunningServer, kill_everything, running_server
from tests.service.random_bundles import Workshop
from tests.waiting import eventually

REGISTRATIONS = int(os.environ.get("DURABILITY_REGISTRATIONS", "160"))
CLIENTS = 6
CREATED = 201


class Registering:
    """Clients that register one bundle after another, each as a task of its own."""

    def __init__(self, server: RunningServer, bundles: Sequence[bytes]) -> None:
        self._server = server
        self._bundles = bundles
        self._next = count()
        self._lock = threading.Lock()
        self.answered: dict[str, str] = {}
        self.refused: list[str] = []

    def run(self) -> None:
        """One client, until everything is registered or the server is gone."""
        with self._server.client() as client, suppress(httpx.TransportError):
            while (number := next(self._next)) < len(self._bundles):
                self._register(client, f"task-{number}", self._bundles[number])

    def _register(self, client: httpx.Client, task: str, bundle: bytes) -> None:
        answer = client.post(f"/tasks/{task}/versions", content=bundle)
        with self._lock:
            if answer.status_code == CREATED:
                self.answered[task] = answer.json()["digest"]
            else:
                self.refused.append(answer.text)


@pytest.fixture(scope="module")
def bundles(workshop: Workshop) -> list[bytes]:
    return [workshop.bundle("value", seed) for seed in range(REGISTRATIONS)]


@pytest.fixture
def killed(
    workshop: Workshop, bundles: list[bytes], tmp_path: Path
) -> Iterator[tuple[str, Registering]]:
    """What clients were answered before everything was killed, and the first key."""
    with running_server(workshop.folder, tmp_path) as server:
        registering = Registering(server, bundles)
        with ThreadPoolExecutor(CLIENTS) as clients:
            for _ in range(CLIENTS):
                clients.submit(registering.run)
            eventually(lambda: len(registering.answered) >= len(bundles) // 2, within_s=90)
            kill_everything(server)
        yield server.key, registering


@pytest.mark.slow
def test_every_registration_that_was_answered_survives_the_end_of_all_processes(
    killed: tuple[str, Registering], workshop: Workshop, tmp_path: Path
) -> None:
    key, registering = killed
    assert registering.refused == []
    assert REGISTRATIONS // 2 <= len(registering.answered) < REGISTRATIONS
    with (
        running_server(workshop.folder, tmp_path) as server,
        server.client(key) as client,
    ):
        found = {task: served(client, task) for task in registering.answered}
        assert found == registering.answered
        others = {f"task-{number}" for number in range(REGISTRATIONS)} - registering.answered.keys()
        registered = {task["task"] for task in client.get("/tasks").json()}
        half_done = {task for task in others & registered if served(client, task) is None}
    assert half_done == set()


def served(client: httpx.Client, task: str) -> str | None:
    """The digest of the version that answers; None if none does."""
    answer = client.post(f"/tasks/{task}/predict", json={"history": []})
    return answer.json()["digest"] if answer.status_code == 200 else None
