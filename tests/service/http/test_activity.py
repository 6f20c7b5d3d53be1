"""Counts of calls as the metrics have them."""

import pytest
from prometheus_client import generate_latest

from peterrec.patches.identity import DEFAULT_TENANT, TaskId, TaskRef, TenantId
from peterrec.service.errors import ActivityUnknown
from peterrec.service.http.activity import Activity, TaskCounts, counts_in
from peterrec.service.telemetry.events import RequestFinished, TasksChanged
from peterrec.service.telemetry.metrics import Metrics
from peterrec.service.telemetry.metrics_server import start_metrics_server

ACME = TenantId("acme")


def finished(tenant: str, task: str, outcome: str) -> RequestFinished:
    return RequestFinished(tenant, task, outcome, 0.25, 1)


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    tasks = [TaskRef(DEFAULT_TENANT, TaskId("films")), TaskRef(ACME, TaskId("films"))]
    metrics.record(TasksChanged(is_first=True, tasks=tasks, removed=[]))
    for outcome in ("ok", "ok", "client_error", "rejected"):
        metrics.record(finished("default", "films", outcome))
    metrics.record(finished("acme", "films", "error"))
    return metrics


async def test_each_tenant_has_the_counts_of_its_own_tasks(metrics):
    counts = await counts_in(generate_latest(metrics.registry).decode(), 7.0)
    assert counts.of(TenantId("default")) == {
        "films": TaskCounts(answered=3, failed=1, seconds=1.0)
    }
    assert counts.of(ACME) == {"films": TaskCounts(failed=1, seconds=0.25)}
    assert counts.of(TenantId("other")) == {}


async def test_they_are_read_once_for_all_who_look(metrics):
    server, thread = start_metrics_server(
        0, "127.0.0.1", metrics.registry, recent=metrics.calls.encoded
    )
    try:
        activity = Activity(f"http://127.0.0.1:{server.server_port}")
        first = await activity.counts()
        assert first.of(ACME)["films"].failed == 1
        metrics.record(finished("acme", "films", "error"))
        assert (await activity.counts()) is first
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_metrics_that_do_not_answer_are_an_error_with_a_code():
    with pytest.raises(ActivityUnknown, match="could not be read"):
        await Activity("http://127.0.0.1:1").counts()
