"""All Prometheus series, in one registry in the supervisor, made of typed events."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from peterrec.patches.identity import DEFAULT_TENANT
from peterrec.patches.registry.traffic import GuardReason
from peterrec.service.protocol.served_task import Role
from peterrec.service.telemetry.events import (
    AnswerExplained,
    BatchFinished,
    BundleRefused,
    BundleSwapped,
    ChildRestarted,
    DeviceMeasured,
    Event,
    GuardBroken,
    HeadsMoved,
    ItemsMapped,
    RegistrySynced,
    RegistryUnreachable,
    RequestFinished,
    RowsRefused,
    TasksChanged,
    TrafficCounted,
    TrafficEnded,
    TrafficMeasured,
)

UNKNOWN = "__unknown__"
"""Label of requests for tasks that are not registered."""

OUTCOMES = ("ok", "client_error", "rejected", "deadline", "error", "client_left")
HEAD_DIRECTIONS = ("evicted", "returned")
CHILDREN = ("device", "worker", "redis")

LATENCY_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
SHORT_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SWAP_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Turns events into series. Used by one thread; other threads may scrape."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped; a third of all series
        self.registry = CollectorRegistry()
        self._known: dict[str, None] = {}  # a set of thousands takes three times the memory
        self._by_label: dict[str, _TaskSeries] = {}
        self._make_request_series()
        self._make_batch_series()
        self._make_registry_series()
        self._make_traffic_series()
        self._make_device_series()
        self._handlers: Mapping[type[Event], Callable[[Any], None]] = {
            # Any: each handler takes its own event, which the key names
            RequestFinished: self._on_request,
            ItemsMapped: self._on_items,
            BatchFinished: self._on_batch,
            RowsRefused: self._on_rows_refused,
            BundleSwapped: self._on_swap,
            BundleRefused: self._on_bundle_refused,
            RegistrySynced: self._on_synced,
            RegistryUnreachable: self._on_unreachable,
            DeviceMeasured: self._on_measured,
            ChildRestarted: self._on_restart,
            TrafficCounted: self._on_traffic_counted,
            TrafficMeasured: self._on_traffic_measured,
            TrafficEnded: self._on_traffic_ended,
            GuardBroken: self._on_guard_broken,
            HeadsMoved: self._on_heads_moved,
            TasksChanged: self._on_tasks,
            AnswerExplained: self._on_explained,
        }

    def record(self, event: Event) -> None:
        """Count one event."""
        self._handlers[type(event)](event)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"peterrec_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"peterrec_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"peterrec_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _make_request_series(self) -> None:
        self._requests = self._counter(
            "requests_total", "Prediction requests answered.", "task", "outcome"
        )
        self._durations = self._histogram(
            "request_duration_seconds",
            "From the headers of a request to its answer.",
            LATENCY_S,
            "task",
        )
        self._instances = self._counter(
            "instances_total", "Histories in prediction requests.", "task", "outcome"
        )
        self._items = self._counter("items_total", "Items in all histories.")
        self._unknown_items = self._counter(
            "unknown_items_total", "Items in histories that the backbone does not know."
        )

        self._explanations = self._counter(
            "explanations_total", "Explanations of answers.", "outcome"
        )
        for outcome in set(OUTCOMES) - {"client_left"}:
            self._explanations.labels(outcome)
        self._explanation_rows = self._counter(
            "explanation_rows_total", "Rows that were run for explanations."
        )

    def _make_batch_series(self) -> None:
        self._queue = self._histogram(
            "queue_duration_seconds", "Time that a row waits for its batch.", SHORT_S
        )
        self._batch_rows = self._histogram("batch_rows", "Rows in one forward.", ROWS)
        self._batch_tasks = self._histogram(
            "batch_distinct_tasks", "Distinct bundles in one forward.", ROWS
        )
        self._batch_seconds = self._histogram(
            "batch_duration_seconds", "One mixed-task forward, heads included.", SHORT_S
        )
        self._batch_positions = self._counter(
            "batch_positions_total",
            "Sequence positions of all histories that were run, [CLS] included.",
        )
        self._busy = self._counter("device_busy_seconds_total", "Time spent in forwards.")
        self._rejected = self._counter(
            "rejected_total", "Rows that were not run, by error code.", "code"
        )

    def _make_registry_series(self) -> None:
        self._swaps = self._counter("swaps_total", "Bundles that began to serve.")
        self._swap_seconds = self._histogram(
            "swap_duration_seconds", "From noticing a registry change to serving it.", SWAP_S
        )
        self._bundle_rejected = self._counter(
            "bundle_rejected_total", "Reasons for which bundles were refused.", "reason"
        )
        self._revision = self._gauge(
            "registry_revision", "Revision of the registry that is served."
        )
        self._synced_at = self._gauge(
            "registry_last_sync_timestamp_seconds", "Unix time at which the registry was last read."
        )
        self._registry_up = self._gauge(
            "registry_up", "1 if the registry answered the last time, else 0."
        )
        self._tasks = self._gauge("tasks", "Registered tasks.")

    def _make_traffic_series(self) -> None:
        self._traffic_rows = self._counter(
            "traffic_rows_total",
            "Rows computed for tasks with a canary or a shadow.",
            "task",
            "role",
        )
        self._traffic_errors = self._counter(
            "traffic_errors_total", "Rows that a version of such a task failed.", "task", "role"
        )
        self._traffic_p99 = self._gauge(
            "traffic_p99_seconds",
            "99th percentile of latency in the guard's window, of the worst version.",
            "task",
            "role",
        )
        self._divergence = self._gauge(
            "traffic_divergence",
            "Mean divergence from prod's answers in the guard's window.",
            "task",
            "role",
        )
        self._guard_trips = self._counter(
            "guard_trips_total",
            "Traffic that this replica ended since a guard's bound was broken.",
            "task",
            "reason",
        )

    def _make_device_series(self) -> None:
        self._queue_depth = self._gauge("queue_depth", "Rows that wait for the device.")
        self._resident = self._gauge("resident_bundles", "Bundles on the device.")
        self._patch_bytes = self._gauge("patch_bytes", "Device memory of patches.")
        self._head_bytes = self._gauge("head_bytes", "Device memory of heads and item tables.")
        self._head_moves = self._counter(
            "head_moves_total",
            "Ranking heads and item tables evicted (evicted) or reloaded (returned).",
            "direction",
        )
        self._head_moved_bytes = self._counter(
            "head_moved_bytes_total",
            "Bytes of the ranking heads and item tables that were evicted or reloaded.",
            "direction",
        )
        for direction in HEAD_DIRECTIONS:
            self._head_moves.labels(direction)
            self._head_moved_bytes.labels(direction)
        self._backbone_bytes = self._gauge("backbone_bytes", "Device memory of the backbone.")
        self._restarts = self._counter(
            "child_restarts_total", "Child processes that died and were restarted.", "child"
        )
        for child in CHILDREN:
            self._restarts.labels(child)
        started = self._gauge(
            "start_timestamp_seconds", "Unix time at which the server was started."
        )
        started.set(time.time())
        info = self._gauge(
            "build_info", "Always 1; the labels name the version that runs.", "version"
        )
        info.labels(version("peterrec-serving")).set(1)

    def _on_request(self, event: RequestFinished) -> None:
        series = self._series_of(self._label(event.tenant, event.task))
        series.requests[event.outcome].inc()
        series.durations.observe(event.duration_s)
        for outcome, rows in (event.instances or {event.outcome: event.rows}).items():
            if rows:
                series.instances_of(outcome).inc(rows)

    def _on_items(self, event: ItemsMapped) -> None:
        self._items.inc(event.items)
        self._unknown_items.inc(event.unknown_items)

    def _on_explained(self, event: AnswerExplained) -> None:
        self._explanations.labels(event.outcome).inc()
        self._explanation_rows.inc(event.rows)

    def _on_batch(self, event: BatchFinished) -> None:
        self._batch_rows.observe(event.rows)
        self._batch_tasks.observe(event.distinct_bundles)
        self._batch_seconds.observe(event.duration_s)
        self._batch_positions.inc(event.positions)
        self._busy.inc(event.duration_s)
        for wait_s in event.queue_waits_s:
            self._queue.observe(wait_s)

    def _on_rows_refused(self, event: RowsRefused) -> None:
        self._rejected.labels(event.code).inc(event.rows)

    def _on_swap(self, event: BundleSwapped) -> None:
        self._swaps.inc(event.loaded)
        self._swap_seconds.observe(event.duration_s)

    def _on_bundle_refused(self, event: BundleRefused) -> None:
        for reason in event.reasons:
            self._bundle_rejected.labels(reason).inc()

    def _on_synced(self, event: RegistrySynced) -> None:
        self._revision.set(event.revision)
        self._synced_at.set(event.at)
        self._registry_up.set(1)

    def _on_tasks(self, event: TasksChanged) -> None:
        present = dict.fromkeys(_label(tenant, task) for tenant, task in event.tasks)
        removed = {_label(tenant, task) for tenant, task in event.removed}
        gone = (
            self._known.keys() - present.keys() if event.is_first else removed & self._known.keys()
        )
        for label in gone:
            self._forget(label)
            del self._known[label]
        self._known |= present
        self._tasks.set(len(self._known))

    def _on_unreachable(self, event: RegistryUnreachable) -> None:
        self._registry_up.set(0)

    def _on_measured(self, event: DeviceMeasured) -> None:
        self._queue_depth.set(event.queued_rows)
        self._resident.set(event.resident_bundles)
        self._patch_bytes.set(event.patch_bytes)
        self._head_bytes.set(event.head_bytes)
        self._backbone_bytes.set(event.backbone_bytes)

    def _on_heads_moved(self, event: HeadsMoved) -> None:
        counts, sizes = (event.evicted, event.reloaded), (event.evicted_bytes, event.reloaded_bytes)
        for direction, count, size in zip(HEAD_DIRECTIONS, counts, sizes, strict=True):
            self._head_moves.labels(direction).inc(count)
            self._head_moved_bytes.labels(direction).inc(size)

    def _on_restart(self, event: ChildRestarted) -> None:
        self._restarts.labels(event.child).inc()

    def _on_traffic_counted(self, event: TrafficCounted) -> None:
        label = self._label(event.tenant, event.task)
        self._traffic_rows.labels(label, event.role).inc(event.rows)
        self._traffic_errors.labels(label, event.role).inc(event.errors)

    def _on_traffic_measured(self, event: TrafficMeasured) -> None:
        label = self._label(event.tenant, event.task)
        self._traffic_p99.labels(label, event.role).set(event.p99_s)
        if event.divergence is not None:
            self._divergence.labels(label, event.role).set(event.divergence)

    def _on_traffic_ended(self, event: TrafficEnded) -> None:
        self._forget_gauges(self._label(event.tenant, event.task))

    def _on_guard_broken(self, event: GuardBroken) -> None:
        self._guard_trips.labels(self._label(event.tenant, event.task), event.reason).inc()

    def _forget_gauges(self, label: str) -> None:
        for role in Role:
            self._traffic_p99.remove(label, role)
            self._divergence.remove(label, role)

    def _label(self, tenant: str, task: str) -> str:
        label = _label(tenant, task)
        return label if label in self._known else UNKNOWN

    def _series_of(self, label: str) -> "_TaskSeries":
        """Return the series of a task, cached since prometheus_client's look-up is slow."""
        series = self._by_label.get(label)
        if series is None:
            series = self._by_label[label] = _TaskSeries(
                {outcome: self._requests.labels(label, outcome) for outcome in OUTCOMES},
                self._durations.labels(label),
                partial(self._instances.labels, label),
            )
        return series

    def _forget(self, label: str) -> None:
        """Remove every series of a task that has left the registry."""
        if self._by_label.pop(label, None) is not None:
            for outcome in OUTCOMES:
                self._requests.remove(label, outcome)
                self._instances.remove(label, outcome)
            self._durations.remove(label)
        self._forget_gauges(label)
        for role in Role:
            self._traffic_rows.remove(label, role)
            self._traffic_errors.remove(label, role)
        for reason in GuardReason:
            self._guard_trips.remove(label, reason)


@dataclass(frozen=True, slots=True)
class _TaskSeries:
    """A task's series. Those of instances are made when an outcome first occurs: few ever do."""

    requests: Mapping[str, Counter]
    durations: Histogram
    make_instances: Callable[[str], Counter]
    instances: dict[str, Counter] = field(default_factory=dict)

    def instances_of(self, outcome: str) -> Counter:
        series = self.instances.get(outcome)
        if series is None:
            series = self.instances[outcome] = self.make_instances(outcome)
        return series


def _label(tenant: str, task: str) -> str:
    """Return a task's label: its name, preceded by the tenant unless that is the default one."""
    return task if tenant == DEFAULT_TENANT else f"{tenant}/{task}"
