"""Series made of events: right names, bounded labels, gone with their task."""

import pytest
from prometheus_client import generate_latest

from peterrec.patches.identity import DEFAULT_TENANT, TaskId, TaskRef, TenantId
from peterrec.service.telemetry.events import (
    AnswerExplained,
    BatchFinished,
    BundleRefused,
    BundleSwapped,
    ChildRestarted,
    DeviceMeasured,
    DeviceShared,
    GuardBroken,
    HeadsMoved,
    ItemsMapped,
    RegistrySynced,
    RegistryUnreachable,
    RequestFinished,
    RowsRefused,
    TasksChanged,
    TenantAsked,
    TenantMeasured,
    TenantServed,
    TenantsMeasured,
    TrafficCounted,
    TrafficEnded,
    TrafficMeasured,
    decode_events,
    encode_events,
)
from peterrec.service.telemetry.metrics import UNKNOWN, Metrics
from peterrec.service.telemetry.receiver import EventReceiver
from peterrec.service.telemetry.sender import EventSender
from tests.waiting import eventually

GENDER = TaskRef(DEFAULT_TENANT, TaskId("gender"))
ACME_GENDER = TaskRef(TenantId("acme"), TaskId("gender"))


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.record(RegistrySynced(7, 123.0))
    metrics.record(TasksChanged(True, [GENDER, ACME_GENDER], []))
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"peterrec_{name}", labels)


def text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_requests_count_by_task_and_outcome(metrics):
    metrics.record(RequestFinished("default", "gender", "ok", 0.004, 3))
    metrics.record(RequestFinished("default", "gender", "deadline", 2.0, 1))
    assert value(metrics, "requests_total", task="gender", outcome="ok") == 1
    assert value(metrics, "requests_total", task="gender", outcome="deadline") == 1
    assert value(metrics, "instances_total", task="gender", outcome="ok") == 3
    assert value(metrics, "instances_total", task="gender", outcome="deadline") == 1

    assert value(metrics, "request_duration_seconds_count", task="gender") == 2
    assert value(metrics, "request_duration_seconds_bucket", task="gender", le="0.005") == 1


def test_instances_count_by_their_own_outcome(metrics):
    instances = {"ok": 2, "client_error": 1}
    metrics.record(RequestFinished("default", "gender", "ok", 0.004, 3, instances))
    assert value(metrics, "requests_total", task="gender", outcome="ok") == 1
    assert value(metrics, "requests_total", task="gender", outcome="client_error") is None
    assert value(metrics, "instances_total", task="gender", outcome="ok") == 2
    assert value(metrics, "instances_total", task="gender", outcome="client_error") == 1


def test_another_tenants_task_of_the_same_name_has_series_of_its_own(metrics):
    metrics.record(RequestFinished("acme", "gender", "ok", 0.1, 1))
    assert value(metrics, "requests_total", task="acme/gender", outcome="ok") == 1
    assert value(metrics, "requests_total", task="gender", outcome="ok") is None


@pytest.mark.parametrize("task", ["", "made-up", "gender\n"])
def test_a_name_that_is_not_registered_never_becomes_a_label(metrics, task):
    metrics.record(RequestFinished("default", task, "client_error", 0.1, 1))
    assert value(metrics, "requests_total", task=UNKNOWN, outcome="client_error") == 1
    assert "made-up" not in text(metrics)


def test_the_series_of_a_task_leave_with_it(metrics):
    metrics.record(RequestFinished("default", "gender", "ok", 0.1, 1))
    assert 'task="gender"' in text(metrics)
    metrics.record(TasksChanged(False, [], [GENDER]))
    assert 'task="gender"' not in text(metrics)
    assert value(metrics, "tasks") == 1


def test_a_new_device_process_tells_which_tasks_are_left(metrics):
    metrics.record(RequestFinished("default", "gender", "ok", 0.1, 1))
    metrics.record(TasksChanged(True, [ACME_GENDER], []))
    assert 'task="gender"' not in text(metrics)
    assert value(metrics, "tasks") == 1


def test_a_task_that_is_told_again_keeps_its_series(metrics):
    metrics.record(RequestFinished("default", "gender", "ok", 0.1, 1))
    metrics.record(TasksChanged(False, [GENDER], []))
    assert value(metrics, "requests_total", task="gender", outcome="ok") == 1
    assert value(metrics, "tasks") == 2


def test_a_task_that_comes_back_starts_from_zero(metrics):
    metrics.record(RequestFinished("default", "gender", "ok", 0.1, 1))
    metrics.record(TasksChanged(False, [], [GENDER]))
    metrics.record(TasksChanged(False, [GENDER], []))
    metrics.record(RequestFinished("default", "gender", "ok", 0.1, 1))
    assert value(metrics, "requests_total", task="gender", outcome="ok") == 1


def test_exactly_one_histogram_is_labelled_by_task(metrics):
    metrics.record(RequestFinished("default", "gender", "ok", 0.1, 1))
    names = {
        line.split("{")[0]
        for line in text(metrics).splitlines()
        if "_bucket{" in line and 'task="' in line
    }
    assert names == {"peterrec_request_duration_seconds_bucket"}


def test_batches_show_rows_distinct_tasks_waits_and_busy_time(metrics):
    metrics.record(BatchFinished(5, 3, 60, 0.25, [0.001] * 5))
    assert value(metrics, "batch_rows_sum") == 5
    assert value(metrics, "batch_distinct_tasks_sum") == 3
    assert value(metrics, "queue_duration_seconds_count") == 5
    assert value(metrics, "device_busy_seconds_total") == 0.25
    assert value(metrics, "batch_positions_total") == 60


def test_the_registry_shows_revision_staleness_and_absence(metrics):
    assert value(metrics, "registry_revision") == 7
    assert value(metrics, "registry_last_sync_timestamp_seconds") == 123.0
    assert (value(metrics, "tasks"), value(metrics, "registry_up")) == (2, 1)
    metrics.record(RegistryUnreachable(130.0))
    assert value(metrics, "registry_up") == 0
    assert value(metrics, "registry_last_sync_timestamp_seconds") == 123.0


def test_the_other_events_have_their_series(metrics):
    metrics.record(ItemsMapped(50, 2))
    metrics.record(AnswerExplained(7, "ok"))
    metrics.record(RowsRefused("queue_full", 4))
    metrics.record(BundleSwapped(0.2, 2, 1))
    metrics.record(BundleRefused(["tensor_shape", "oversize"]))
    metrics.record(DeviceMeasured(6, 5, 4, 3, 2))
    metrics.record(ChildRestarted("device"))
    metrics.record(ChildRestarted("worker", "stuck"))
    metrics.record(HeadsMoved(3, 3000, 1, 1000))
    assert value(metrics, "items_total") == 50
    assert value(metrics, "unknown_items_total") == 2
    assert value(metrics, "explanation_rows_total") == 7
    assert value(metrics, "explanations_total", outcome="ok") == 1
    assert value(metrics, "explanations_total", outcome="deadline") == 0
    assert value(metrics, "rejected_total", code="queue_full") == 4
    assert value(metrics, "swaps_total") == 2
    assert value(metrics, "bundle_rejected_total", reason="oversize") == 1
    assert value(metrics, "queue_depth") == 6
    assert value(metrics, "backbone_bytes") == 2
    assert value(metrics, "head_moves_total", direction="evicted") == 3
    assert value(metrics, "head_moved_bytes_total", direction="returned") == 1000
    assert value(metrics, "child_restarts_total", child="device", reason="died") == 1
    assert value(metrics, "child_restarts_total", child="worker", reason="stuck") == 1
    assert value(metrics, "child_restarts_total", child="redis", reason="died") == 0


def test_names_follow_the_conventions(metrics):
    for line in text(metrics).splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            assert name.startswith("peterrec_")
            assert (kind == "counter") is name.endswith("_total")


def test_events_arrive_from_any_thread_and_the_last_ones_on_closing(tmp_path):
    endpoint = tmp_path / "m"
    received: list[object] = []
    receiver = EventReceiver(endpoint, received.append)
    sender = EventSender(endpoint)
    sender.emit(ItemsMapped(1, 0))
    eventually(lambda: len(received) == 1)
    sender.emit(ItemsMapped(2, 0))
    sender.close()
    receiver.close()
    assert received == [ItemsMapped(1, 0), ItemsMapped(2, 0)]


def test_every_event_survives_the_way():
    events = [RequestFinished("t", "x", "ok", 0.5, 2), BatchFinished(1, 1, 3, 0.5, [0.25])]
    assert decode_events(encode_events(events)) == events


def test_traffic_is_counted_by_role_and_its_gauges_end_with_it(metrics):
    metrics.record(TrafficCounted("default", "gender", "canary", 5, 2))
    metrics.record(TrafficMeasured("default", "gender", "canary", 0.02, None))
    assert value(metrics, "traffic_rows_total", task="gender", role="canary") == 5
    assert value(metrics, "traffic_errors_total", task="gender", role="canary") == 2
    assert value(metrics, "traffic_p99_seconds", task="gender", role="canary") == 0.02
    assert value(metrics, "traffic_divergence", task="gender", role="canary") is None
    metrics.record(TrafficEnded("default", "gender"))
    assert value(metrics, "traffic_p99_seconds", task="gender", role="canary") is None
    assert value(metrics, "traffic_rows_total", task="gender", role="canary") == 5


def test_the_series_of_traffic_go_with_their_task(metrics):
    metrics.record(TrafficCounted("default", "gender", "canary", 5, 2))
    metrics.record(TrafficMeasured("default", "gender", "shadow", 0.02, 0.5))
    metrics.record(GuardBroken("default", "gender", "divergence"))
    assert value(metrics, "guard_trips_total", task="gender", reason="divergence") == 1
    metrics.record(TasksChanged(False, [], [GENDER]))
    assert 'task="gender"' not in text(metrics)


def test_tenants_show_the_work_that_they_were_given_until_they_are_deleted(metrics):
    both = [TenantServed("acme", 120.5, 3), TenantServed("rival", 10.0, 0)]
    metrics.record(DeviceShared(both))
    metrics.record(DeviceShared([TenantServed("acme", 1.5, 0)]))
    assert value(metrics, "tenant_work_total", tenant="acme") == 122
    assert value(metrics, "tenant_work_total", tenant="rival") == 10
    assert value(metrics, "tenant_queued_rows", tenant="acme") is None
    metrics.record(TenantsMeasured([TenantMeasured("acme", {}, {})]))
    assert value(metrics, "tenant_work_total", tenant="acme") == 122
    assert "rival" not in text(metrics)


def test_tenants_show_how_many_of_their_rows_wait(metrics):
    metrics.record(DeviceShared([TenantServed("acme", 0.0, 7)]))
    assert value(metrics, "tenant_queued_rows", tenant="acme") == 7
    metrics.record(DeviceShared([]))
    assert value(metrics, "tenant_queued_rows", tenant="acme") is None


def test_tenants_show_what_they_use_until_they_are_deleted(metrics):
    acme = TenantMeasured("acme", {"tasks": 3, "keys": 1}, {"tasks": 5})
    rival = TenantMeasured("rival", {"tasks": 1, "keys": 0}, {"keys": 9})
    metrics.record(TenantsMeasured([acme, rival]))
    assert value(metrics, "tenant_usage", tenant="acme", resource="tasks") == 3
    assert value(metrics, "tenant_quota", tenant="acme", resource="tasks") == 5
    assert value(metrics, "tenant_quota", tenant="acme", resource="keys") is None
    metrics.record(TenantsMeasured([TenantMeasured("acme", {"tasks": 4, "keys": 1}, {"keys": 2})]))
    assert value(metrics, "tenant_usage", tenant="acme", resource="tasks") == 4
    assert value(metrics, "tenant_quota", tenant="acme", resource="tasks") is None
    assert value(metrics, "tenant_quota", tenant="acme", resource="keys") == 2
    assert "rival" not in text(metrics)


def test_what_tenants_are_given_and_refused_is_counted_until_they_are_deleted(metrics):
    for _ in range(2):
        metrics.record(TenantAsked("acme", {"requests": 3, "rows": 30}, {"rows": 1}))
    metrics.record(TenantsMeasured([TenantMeasured("acme", {}, {}, {"rows": 0.25})]))
    assert value(metrics, "tenant_admitted_total", tenant="acme", resource="rows") == 60
    assert value(metrics, "tenant_refused_total", tenant="acme", resource="rows") == 2
    assert value(metrics, "tenant_share", tenant="acme", resource="rows") == 0.25
    metrics.record(TenantsMeasured([]))
    assert "acme" not in text(metrics)
