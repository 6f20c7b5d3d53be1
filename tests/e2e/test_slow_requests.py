"""The log of slow requests names what held a request up, on a real server in which that happens."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.e2e.conftest import push
from tests.e2e.running import RunningServer, running_server
from tests.service.random_bundles import SPEC, Workshop
from tests.waiting import eventually

ITEMS = 4000
ONE_HEAD = 4 * ITEMS * (SPEC.channels + 1)
RANKINGS = ("one", "two", "three")
BODY = {"history": ["item-3", 7]}


def ranking(workshop: Workshop, seed: int) -> bytes:
    names = tuple(f"item-{number}" for number in range(ITEMS))
    return workshop.bundle("ranking", seed, ITEMS, names=names)


@pytest.fixture(scope="module")
def server(workshop: Workshop, tmp_path_factory) -> Iterator[RunningServer]:
    """A server with room for two of the heads of three rankings; a request is slow from 2 ms on."""
    with running_server(
        workshop.folder,
        tmp_path_factory.mktemp("server"),
        workers=1,
        log_format="json",
        log_level="info",
        slow_request_ms=2,
        head_limit_bytes=2 * ONE_HEAD + 1000,
    ) as server:
        with server.client() as client:
            push(client, "value", workshop.bundle("value", 1))
            for seed, task in enumerate(RANKINGS):
                push(client, task, ranking(workshop, seed))
        yield server


def slow_line(
    server: RunningServer, reason: str, act: Callable[[], None], within_s: float = 60
) -> dict[str, Any]:
    """Do something until a request is slow for a reason; return the line about it."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        act()
        lines = (json.loads(line) for line in server.log.splitlines() if "slow_request" in line)
        found.extend(line for line in lines if line["reason"] == reason)
        return bool(found)

    eventually(is_there, within_s)
    return found[0]


def check_reason(line: dict[str, Any]) -> None:
    """Assert that the reason is the longest of the stages, and these are all of the time."""
    spent = {name: ms for name, ms in line.items() if name.endswith("_ms")}
    total = spent.pop("total_ms")
    assert spent[f"{line['reason']}_ms"] == max(spent.values())
    assert total == pytest.approx(sum(spent.values()), abs=0.01)


def test_a_request_that_waits_for_an_evicted_head_says_so(server):
    tasks = itertools.cycle(RANKINGS)
    with server.client() as client:

        def ask() -> None:
            answer = client.post(f"/tasks/{next(tasks)}/predict", json=BODY)
            assert answer.status_code == 200, answer.text

        line = slow_line(server, "head", ask)
    check_reason(line)
    assert line["task"] in RANKINGS


def test_a_request_that_waits_for_a_swap_says_so(server, workshop):
    """New versions of other tasks are loaded all the time, each of which is another bundle."""
    is_over = threading.Event()

    def swap(number: int) -> None:
        with server.client() as client:
            for seed in itertools.count(100_000 * number):
                if is_over.is_set():
                    return
                push(client, f"swapped-{number}", workshop.bundle("ranking", seed, 30))

    swapping = [threading.Thread(target=swap, args=[number]) for number in (1, 2, 3)]
    for each in swapping:
        each.start()
    try:
        with server.client() as client:

            def ask() -> None:
                for _ in range(20):
                    assert client.post("/tasks/value/predict", json=BODY).status_code == 200

            line = slow_line(server, "swap", ask, within_s=100)
    finally:
        is_over.set()
        for each in swapping:
            each.join()
    check_reason(line)
    assert line["task"] == "value"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels are prepared on a GPU only")
def test_a_request_that_waits_for_kernels_says_so(workshop, tmp_path):
    """Batches of all sizes are prepared in pauses after a start: requests come in between."""
    with (
        running_server(
            workshop.folder, tmp_path, workers=1, log_format="json", slow_request_ms=1
        ) as server,
        server.client() as client,
    ):
        push(client, "value", workshop.bundle("value", 1))

        def ask() -> None:
            assert client.post("/tasks/value/predict", json=BODY).status_code == 200

        check_reason(slow_line(server, "kernels", ask))
