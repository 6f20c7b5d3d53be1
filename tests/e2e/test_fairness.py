"""Tenants share the device by work: which calls that have waited together are answered first.

Calls wait while the device process stands still, so their order shows how it is shared on a machine
of any speed.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from uuid import uuid4

import httpx
import pytest

from tests.e2e.neighbours import Tenant, as_caller, make_tenant, push_films
from tests.e2e.running import RunningServer, running_server
from tests.service.random_bundles import Workshop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Call = tuple[Tenant, int, dict[str, str]]
"""A call's sender, rows and headers."""

PATH = "/tasks/films/predict"
CALLS = 24
ROWS = 64
HISTORY = [1, 2, 3]


@pytest.fixture(scope="module")
def shop(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of several tenants, with room for all calls of a test and time for them."""
    with running_server(
        workshop.folder,
        tmp_path_factory.mktemp("shop"),
        workers=1,
        max_queue_rows=8192,
        max_batch_rows=256,
        request_timeout_ms=25_000,
        request_timeout_limit_ms=25_000,
        hang_limit_s=60,
    ) as server:
        yield server


def tenant_of(server: RunningServer, workshop: Workshop, **options: object) -> Tenant:
    with server.client() as operator:
        tenant = make_tenant(operator, f"tenant-{uuid4().hex[:8]}", **options)
    push_films(server, tenant, workshop.bundle("classification", seed=1))
    return tenant


class Waiting:
    """Calls that wait while the device stands still, and the order in which they were answered."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._threads: list[threading.Thread] = []
        self.answered: list[str] = []
        self.statuses: set[int] = set()

    def send(self, tenant: Tenant, rows: int, **headers: str) -> None:
        """Send a call, which will wait."""
        arguments = (tenant, rows, headers)
        self._threads.append(threading.Thread(target=self._ask, args=arguments))
        self._threads[-1].start()

    def _ask(self, tenant: Tenant, rows: int, headers: dict[str, str]) -> None:
        body = {"instances": [{"history": HISTORY}] * rows}
        with as_caller(self._server, tenant, "predict") as client:
            client.timeout = httpx.Timeout(60)
            answer = client.post(PATH, json=body, headers=headers)
        self.statuses.add(answer.status_code)
        self.answered.append(headers.get("X-Priority", tenant.name))

    def answers(self) -> Sequence[str]:
        """Return the senders in the order of their answers."""
        for thread in self._threads:
            thread.join()
        assert self.statuses == {200}
        return self.answered


def run(server: RunningServer, send: Sequence[Call]) -> Sequence[str]:
    """Let calls wait together, then let the device go on; return the order of the answers."""
    waiting = Waiting(server)
    device = server.child("device")
    device.suspend()
    try:
        for tenant, rows, headers in send:
            waiting.send(tenant, rows, **headers)
        time.sleep(1.5)  # all have come; a late one is only answered later
    finally:
        device.resume()
    return waiting.answers()


def test_a_small_call_does_not_wait_for_another_tenants_flood(shop, workshop):
    flood, polite = tenant_of(shop, workshop), tenant_of(shop, workshop)
    calls: list[Call] = [(flood, ROWS, {})] * CALLS
    calls.append((polite, 1, {}))
    order = run(shop, calls)
    assert order.index(polite.name) < CALLS / 2


def test_tenants_are_served_by_weight(shop, workshop):
    heavy, light = tenant_of(shop, workshop, weight=3.0), tenant_of(shop, workshop, weight=1.0)
    calls: list[Call] = [(tenant, ROWS, {}) for _ in range(CALLS) for tenant in (light, heavy)]
    first = run(shop, calls)[:CALLS]
    assert first.count(heavy.name) >= 1.5 * first.count(light.name)


def test_interactive_calls_go_before_those_of_a_batch(shop, workshop):
    tenant = tenant_of(shop, workshop)
    calls: list[Call] = [(tenant, ROWS, {"X-Priority": "batch"})] * CALLS
    calls += [(tenant, ROWS, {"X-Priority": "interactive"})] * 4
    order = run(shop, calls)
    assert max(at for at, each in enumerate(order) if each == "interactive") < CALLS / 2
