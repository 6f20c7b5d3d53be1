"""Quotas for requests on three replicas of one registry: how much they let through together.

The documented bounds are in docs/operations.md. Times are taken over whole seconds of load, so a
busy machine makes these tests longer and not wrong.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from uuid import uuid4

import httpx
import pytest

from tests.e2e.neighbours import Tenant, make_tenant
from tests.e2e.running import RunningServer
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RATE = 40
SECONDS = 6.0
TASK = "/tasks/nothing/predict"
"""A task that does not exist: a request like any other, without work for the device."""


@pytest.fixture
def tenant(operator: httpx.Client) -> Iterator[Tenant]:
    made = make_tenant(
        operator, f"tenant-{uuid4().hex[:8]}", quotas={"requests_per_s": RATE, "streams": 1}
    )
    yield made
    operator.delete(f"/tenants/{made.name}")


class Load:
    """Threads that ask replicas as fast as these answer, and count what they were told."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.statuses: Counter[int] = Counter()
        self._threads: list[threading.Thread] = []
        self._is_over = threading.Event()

    def start(self, server: RunningServer, pause_s: float = 0.002) -> None:
        thread = threading.Thread(target=self._ask, args=(server, pause_s))
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._is_over.clear()

    def admitted_in(self, seconds: float) -> tuple[int, float]:
        """Return how many were admitted in at least these seconds, and in how many exactly."""
        before, began = self.statuses[404], time.monotonic()
        time.sleep(seconds)
        return self.statuses[404] - before, time.monotonic() - began

    def _ask(self, server: RunningServer, pause_s: float) -> None:
        with server.client(self.key) as client:
            while not self._is_over.is_set():
                answer = client.post(TASK, json={"history": [1]})
                self.statuses[answer.status_code] += 1
                time.sleep(pause_s)


@pytest.fixture
def load(replicas: Sequence[RunningServer], tenant: Tenant) -> Iterator[Load]:
    made = Load(tenant.secret("predict"))
    eventually(lambda: knows(replicas, tenant), 20)
    yield made
    made.stop()


def knows(servers: Sequence[RunningServer], tenant: Tenant) -> bool:
    for server in servers:
        with server.client(tenant.secret("predict")) as client:
            if "ratelimit" not in client.post(TASK, json={"history": [1]}).headers:
                return False
    return True


def shares(servers: Sequence[RunningServer], tenant: Tenant) -> list[float]:
    name = f'peterrec_tenant_share{{resource="requests",tenant="{tenant.name}"}}'
    return [server.metrics().get(name, 0.0) for server in servers]


@pytest.mark.parametrize("asked", [(0, 1, 2), (0,), (0, 0, 0, 1)], ids=["all", "one", "uneven"])
def test_in_a_steady_state_the_replicas_let_through_the_quota_together(
    replicas,
    load,
    asked,
):
    for number in asked:
        load.start(replicas[number])
    time.sleep(4.0)  # the shares follow within some exchanges
    admitted, seconds = load.admitted_in(SECONDS)
    assert load.statuses[429] > 0
    assert 0.88 * RATE * seconds <= admitted <= 1.02 * RATE * seconds + 3


def test_when_load_moves_no_more_than_the_quota_passes_and_soon_as_much(replicas, load):
    load.start(replicas[0])
    time.sleep(4.0)
    load.stop()
    load.start(replicas[1])
    moved, seconds = load.admitted_in(2.0)
    assert moved <= RATE * (seconds + 1) + 3
    time.sleep(2.0)
    admitted, seconds = load.admitted_in(SECONDS)
    assert 0.88 * RATE * seconds <= admitted <= 1.02 * RATE * seconds + 3


def test_a_stream_on_one_replica_counts_on_the_others(replicas, tenant, load):
    path, key = "/registry/events", tenant.secret("admin")
    with replicas[0].client(key) as one, replicas[1].client(key) as other:
        with one.stream("GET", path) as stream:
            assert stream.status_code == 200
            eventually(lambda: is_refused(other))
        eventually(lambda: not is_refused(other))


def is_refused(client: httpx.Client) -> bool:
    answer = client.get("/registry/audit?format=ndjson")
    return answer.status_code == 429


def test_the_shares_are_in_the_metrics_and_sum_to_the_quota(replicas, tenant, load):
    load.start(replicas[2])
    within(lambda: shares(replicas, tenant)[2] > 0.9)
    load.stop()
    within(lambda: are_equal(shares(replicas, tenant)))


def are_equal(found: Sequence[float]) -> bool:
    return found == pytest.approx([1 / len(found)] * len(found), abs=0.01)


def within(claim: Callable[[], bool]) -> None:
    eventually(claim, 60)
