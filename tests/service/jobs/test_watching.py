"""What ``peterrec top`` makes of two readings of the metrics."""

from math import isnan

import pytest
from prometheus_client import generate_latest

from peterrec.patches.identity import TaskId, TaskRef, TenantId
from peterrec.service.jobs.watching import compare, parse_metrics
from peterrec.service.telemetry.events import BatchFinished, RequestFinished, TasksChanged
from peterrec.service.telemetry.metrics import Metrics

FILMS = TaskRef(TenantId("default"), TaskId("films"))
AGE = TaskRef(TenantId("acme"), TaskId("age"))


def reading(metrics: Metrics, at: float):
    return parse_metrics(generate_latest(metrics.registry).decode(), at)


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.record(TasksChanged(True, [FILMS, AGE], []))
    return metrics


def test_rates_and_quantiles_are_those_between_the_readings(metrics):
    for _ in range(50):
        metrics.record(RequestFinished("default", "films", "error", 4.0, 1))
    before = reading(metrics, 10.0)
    for number in range(100):
        metrics.record(RequestFinished("default", "films", "ok", 0.004 + number / 1e6, 1))
    for _ in range(100):
        metrics.record(RequestFinished("acme", "age", "deadline", 2.0, 1))
    metrics.record(BatchFinished(8, 2, 80, 0.5, [0.001] * 8))
    view = compare(before, reading(metrics, 12.0))
    assert view.all_tasks.per_s == 100
    assert view.all_tasks.failed == 0.5
    films, age = view.tasks["films"], view.tasks["acme/age"]
    assert (films.per_s, films.failed) == (50, 0.0)
    assert films.p50_s == pytest.approx(0.0025)  # the middle of the bucket up to 5 ms
    assert (age.per_s, age.failed) == (50, 1.0)
    assert (view.rows_per_batch, view.tasks_per_batch, view.busy) == (8, 2, 0.25)


def test_an_idle_server_has_no_latency_and_no_busy_tasks(metrics):
    view = compare(reading(metrics, 10.0), reading(metrics, 12.0))
    assert view.tasks == {}
    assert isnan(view.all_tasks.p99_s)
    assert isnan(view.rows_per_batch)


def test_a_server_that_restarted_meanwhile_counts_from_zero(metrics):
    for _ in range(50):
        metrics.record(RequestFinished("default", "films", "ok", 0.1, 1))
    before = reading(metrics, 10.0)
    again = Metrics()
    again.record(TasksChanged(True, [FILMS], []))
    for _ in range(4):
        again.record(RequestFinished("default", "films", "ok", 0.1, 1))
    assert compare(before, reading(again, 12.0)).all_tasks.per_s == 2
