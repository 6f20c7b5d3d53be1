"""All Prometheus series, in one registry in the supervisor, made of typed events."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from peterrec.model.kinds import KINDS
from peterrec.patches.identity import DEFAULT_TENANT
from peterrec.patches.registry.traffic import GuardReason
from peterrec.service.protocol.served_task import Role
from peterrec.service.telemetry.events import (
    RESTART_REASONS,
    AnswerExplained,
    AnswersSampled,
    BatchFinished,
    BundleRefused,
    BundleSwapped,
    ChildRestarted,
    DeviceMeasured,
    DevicePrepared,
    DeviceShared,
    Event,
    FeedbackGiven,
    FeedbackSums,
    GuardBroken,
    HeadsMoved,
    ItemsMapped,
    Refused,
    RegistrySynced,
    RegistryUnreachable,
    RequestFinished,
    RequestTraced,
    RowsRefused,
    TasksChanged,
    TenantAsked,
    TenantsMeasured,
    TracesLeftOut,
    TrafficCounted,
    TrafficEnded,
    TrafficMeasured,
    WebhookTried,
)
from peterrec.service.telemetry.feedback import add_bins, calibration_error
from peterrec.service.telemetry.quality import TaskQuality
from peterrec.service.telemetry.recent import CallCounter

UNKNOWN = "__unknown__"
"""Label of requests for tasks that are not registered."""

WEBHOOK_OUTCOMES = ("delivered", "failed", "disabled")

MEMORY_POOLS = ("backbone", "patches", "heads")
"""Values of the label ``pool``."""

SHORT_FINGERPRINT = 12
"""Characters of a fingerprint in the label ``backbone``."""

PROTOCOLS = ("arrow", "json", "msgpack", "ndjson", "open_inference", "open_inference_grpc")
"""Values of the label ``protocol``."""

OUTCOMES = (
    "ok",
    "client_error",
    "over_quota",
    "over_share",
    "rejected",
    "deadline",
    "error",
    "client_left",
)
COMPARED = ("outputs", "scores")
"""What of a task's answers is compared with the training."""

SHARES = ("cold", "unknown_items", "distinct_lists", "catalog")
"""Values of the label ``share``."""

MOST_VERSIONS = 8
"""Versions of a task that have series of feedback."""

HEAD_DIRECTIONS = ("evicted", "returned")
CHILDREN = ("device", "worker", "redis")
CONNECTION_CODES = ("too_many_connections", "idle_connection_closed", "out_of_descriptors")

LATENCY_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
TASK_LATENCY_S = (0.005, 0.01, 0.025, 0.1, 0.25, 1)
"""Bounds of the histogram of each task, in seconds: few, since there may be thousands of tasks."""

SHORT_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SWAP_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Turns events into series. Used by one thread; other threads may scrape."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped; a third of all series
        self.registry = CollectorRegistry()
        self.calls = CallCounter()
        self._known: dict[str, None] = {}  # a set of thousands takes three times the memory
        self._by_label: dict[str, _TaskSeries] = {}
        self._prods: dict[str, int] = {}  # version that answers, by label
        self._qualities: dict[str, TaskQuality] = {}
        self._feedback: dict[tuple[str, str], FeedbackSums] = {}  # by task and version
        self._known_tenants: set[str] = set()  # those with series of their work
        self._make_request_series()
        self._make_batch_series()
        self._make_registry_series()
        self._make_traffic_series()
        self._make_device_series()
        self._make_quality_series()
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
            TenantsMeasured: self._on_tenants,
            TenantAsked: self._on_tenant_asked,
            DeviceShared: self._on_shared,
            AnswerExplained: self._on_explained,
            DevicePrepared: self._on_prepared,
            Refused: self._on_refused,
            TracesLeftOut: self._on_traces_left_out,
            RequestTraced: _ignore,
            AnswersSampled: self._on_sampled,
            FeedbackGiven: self._on_feedback,
            WebhookTried: self._on_webhook,
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
            "From the first byte of a request to its answer.",
            TASK_LATENCY_S,
            "task",
        )
        self._instances = self._counter(
            "instances_total", "Histories in prediction requests.", "task", "outcome"
        )
        by_protocol = self._counter(
            "protocol_requests_total",
            "Prediction requests answered, by protocol.",
            "protocol",
            "outcome",
        )
        self._by_protocol = {
            pair: by_protocol.labels(*pair) for pair in product(PROTOCOLS, OUTCOMES)
        }
        durations = self._histogram(
            "protocol_duration_seconds",
            "From the first byte of a request to its answer, by protocol.",
            LATENCY_S,
            "protocol",
        )
        self._protocol_durations = {name: durations.labels(name) for name in PROTOCOLS}
        self._refused = self._counter(
            "refused_total", "Requests and connections that were refused, by error code.", "code"
        )
        for code in CONNECTION_CODES:
            self._refused.labels(code)
        self._items = self._counter("items_total", "Items in all histories.")
        self._unknown_items = self._counter(
            "unknown_items_total", "Items in histories that the backbone does not know."
        )
        self._traces_left_out = self._counter(
            "traces_left_out_total", "Requests that were not traced as there were too many."
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
        self._registry_lost = self._gauge(
            "registry_lost",
            "1 since Redis was found without what was served, until it is put back or accepted.",
        )
        self._tasks = self._gauge("tasks", "Registered tasks.")
        self._tenant_usage = self._gauge(
            "tenant_usage", "What a tenant has of that which quotas bound.", "tenant", "resource"
        )
        self._tenant_work = self._counter(
            "tenant_work_total",
            "Work that a tenant was given, in positions of the backbone.",
            "tenant",
        )
        self._tenant_rows = self._gauge(
            "tenant_queued_rows", "Rows of a tenant that wait for the device.", "tenant"
        )
        self._tenant_quota = self._gauge(
            "tenant_quota", "The most that a tenant may have.", "tenant", "resource"
        )
        self._tenant_share = self._gauge(
            "tenant_share",
            "Part of a tenant's quota for requests that this replica may use.",
            "tenant",
            "resource",
        )
        self._tenant_admitted = self._counter(
            "tenant_admitted_total",
            "What tenants with quotas for requests were given.",
            "tenant",
            "resource",
        )
        self._tenant_refused = self._counter(
            "tenant_refused_total",
            "Calls that a tenant's quotas have refused.",
            "tenant",
            "resource",
        )

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

    def _make_quality_series(self) -> None:
        self._task_version = self._gauge(
            "task_version", "Number of the version that prod of a task names.", "task", "kind"
        )
        self._sampled = self._counter(
            "quality_answers_total", "Answers of prod that were looked at: a sample.", "task"
        )
        self._drift = self._gauge(
            "quality_drift",
            "Population stability index of prod's answers against the bundle's training.",
            "task",
            "compared",
        )
        self._drift_low = self._gauge(
            "quality_drift_low", "Lower 95 % bound of that index.", "task", "compared"
        )
        self._shares = self._gauge(
            "quality_share", "Shares of prod's answers, items and rankings.", "task", "share"
        )
        self._outcomes = self._counter(
            "feedback_outcomes_total", "Outcomes that were compared.", "task", "version"
        )
        self._hits = self._counter(
            "feedback_hits_total", "How right these answers were, each 0 to 1.", "task", "version"
        )
        self._calibration = self._gauge(
            "feedback_calibration_error",
            "Mean gap between confidence and hits, by tenths of confidence.",
            "task",
            "version",
        )
        self._measured_outcomes = self._counter(
            "feedback_measured_total", "Outcomes that are numbers.", "task", "version"
        )
        self._errors = self._counter(
            "feedback_absolute_error_total",
            "Absolute errors of these numbers.",
            "task",
            "version",
        )

    def _make_device_series(self) -> None:
        self._queue_depth = self._gauge("queue_depth", "Rows that wait for the device.")
        self._resident = self._gauge("resident_bundles", "Bundles on the device.")
        self._unservable = self._gauge(
            "unservable_bundles",
            "Registered bundles that this replica refuses, or can't load for now.",
        )
        self._prod_bundles = self._gauge(
            "prod_bundles", "Tasks with a prod, by what this replica has of it.", "state"
        )
        self._no_bundle_fits = self._gauge(
            "no_bundle_fits", "1 if this replica refuses every bundle that prod names, else 0."
        )
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
        self._backbone_memory = self._gauge(
            "backbone_memory_bytes",
            "Device memory by backbone: its own, and that of its bundles' patches and heads.",
            "backbone",
            "pool",
        )
        self._prepared = self._counter(
            "prepared_total",
            "Kernels compiled or read from the disk, and steps of preparing batches' launches.",
            "what",
        )
        for what in ("kernel", "step"):
            self._prepared.labels(what)
        self._preparation_s = self._counter(
            "preparation_seconds_total", "Time for compiling kernels and preparing launches."
        )
        self._late_kernels = self._counter(
            "late_kernels_total", "Kernels that were compiled while a batch waited."
        )
        self._gpu_bytes = self._gauge("gpu_reserved_bytes", "Memory of the GPU that is reserved.")
        self._restarts = self._counter(
            "child_restarts_total",
            "Child processes that died or hung and were restarted.",
            "child",
            "reason",
        )
        for child, reason in product(CHILDREN, RESTART_REASONS):
            self._restarts.labels(child, reason)
        self._webhooks = self._counter(
            "webhook_attempts_total",
            "Changes sent to webhooks, and webhooks disabled since all failed.",
            "outcome",
        )
        for outcome in WEBHOOK_OUTCOMES:
            self._webhooks.labels(outcome)
        started = self._gauge(
            "start_timestamp_seconds", "Unix time at which the server was started."
        )
        started.set(time.time())
        info = self._gauge(
            "build_info", "Always 1; the labels name the version that runs.", "version"
        )
        info.labels(version("peterrec-serving")).set(1)

    def _on_request(self, event: RequestFinished) -> None:
        label = self._label(event.tenant, event.task)
        self.calls.note(label)
        series = self._series_of(label)
        series.requests_of(event.outcome).inc()
        self._by_protocol[event.protocol, event.outcome].inc()
        self._protocol_durations[event.protocol].observe(event.duration_s)
        exemplar = {"trace_id": event.trace_id} if event.trace_id else None
        series.durations.observe(event.duration_s, exemplar)
        for outcome, rows in (event.instances or {event.outcome: event.rows}).items():
            if rows:
                series.instances_of(outcome).inc(rows)

    def _on_traces_left_out(self, event: TracesLeftOut) -> None:
        self._traces_left_out.inc(event.count)

    def _on_items(self, event: ItemsMapped) -> None:
        self._items.inc(event.items)
        self._unknown_items.inc(event.unknown_items)

    def _on_explained(self, event: AnswerExplained) -> None:
        self._explanations.labels(event.outcome).inc()
        self._explanation_rows.inc(event.rows)

    def _on_refused(self, event: Refused) -> None:
        self._refused.labels(event.code).inc(event.count)

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
        self._registry_lost.set(0)

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
        for label, answering in zip(present, event.answering, strict=False):
            self._name_version(label, answering)

    def _name_version(self, label: str, answering: tuple[str, int] | None) -> None:
        """Tell a task's kind and prod; a version of another number starts to be sampled anew."""
        for kind in KINDS:
            if answering is None or kind != answering[0]:
                self._task_version.remove(label, kind)
        self._prods.pop(label, None)
        if answering is not None:
            self._prods[label] = answering[1]
            self._task_version.labels(label, answering[0]).set(answering[1])
        quality = self._qualities.get(label)
        if quality is not None and (answering is None or answering[1] != quality.version):
            self._forget_quality(label)

    def _on_sampled(self, event: AnswersSampled) -> None:
        label = self._label(event.tenant, event.task)
        if self._prods.get(label) != event.version:
            return  # a late message of the version before
        now, quality = time.monotonic(), self._qualities.get(label)
        if quality is None:
            quality = self._qualities[label] = TaskQuality.begin(event, now)
        quality.add(event, now)
        self._sampled.labels(label).inc(event.answers)
        for compared, drift in quality.drifts().items():
            if drift is not None:
                self._drift.labels(label, compared).set(drift.index)
                self._drift_low.labels(label, compared).set(drift.low)
        for name, share in quality.shares().items():
            if share is not None:
                self._shares.labels(label, name).set(share)

    def _forget_quality(self, label: str) -> None:
        self._qualities.pop(label, None)
        for compared in COMPARED:
            self._drift.remove(label, compared)
            self._drift_low.remove(label, compared)
        for name in SHARES:
            self._shares.remove(label, name)

    def _on_feedback(self, event: FeedbackGiven) -> None:
        labels = (self._label(event.tenant, event.task), str(event.version))
        if labels[0] == UNKNOWN:
            return
        if labels not in self._feedback and not self._makes_room(labels):
            return
        sums, total = event.sums, self._feedback.setdefault(labels, FeedbackSums())
        if sums.compared:
            self._outcomes.labels(*labels).inc(sums.compared)
            self._hits.labels(*labels).inc(sums.hits)
        if sums.measured:
            self._measured_outcomes.labels(*labels).inc(sums.measured)
            self._errors.labels(*labels).inc(sums.error)
        if sums.bins:
            add_bins(total, sums)
            self._calibration.labels(*labels).set(calibration_error(total))

    def _makes_room(self, labels: tuple[str, str]) -> bool:
        """Forget the lowest version of a task with feedback if there are many; False if this is it.

        Callers may tell outcomes of any version that the task has ever had.
        """
        versions = sorted(int(number) for task, number in self._feedback if task == labels[0])
        if len(versions) < MOST_VERSIONS:
            return True
        if int(labels[1]) < versions[0]:
            return False
        self._forget_feedback(labels[0], str(versions[0]))
        return True

    def _forget_feedback(self, label: str, version: str) -> None:
        del self._feedback[label, version]
        for series in (
            self._outcomes,
            self._hits,
            self._calibration,
            self._measured_outcomes,
            self._errors,
        ):
            series.remove(label, version)

    def _on_tenants(self, event: TenantsMeasured) -> None:
        used = {(each.tenant, name): n for each in event.tenants for name, n in each.used.items()}
        limits = {
            (each.tenant, name): n for each in event.tenants for name, n in each.limits.items()
        }
        shares = {
            (each.tenant, name): n for each in event.tenants for name, n in each.shares.items()
        }
        self._forget_tenants({each.tenant for each in event.tenants})
        _replace(self._tenant_usage, used)
        _replace(self._tenant_quota, limits)
        _replace(self._tenant_share, shares)
        for counter in (self._tenant_admitted, self._tenant_refused):
            _keep(counter, {each.tenant for each in event.tenants})

    def _on_tenant_asked(self, event: TenantAsked) -> None:
        for resource, count in event.admitted.items():
            self._tenant_admitted.labels(event.tenant, resource).inc(count)
        for resource, count in event.refused.items():
            self._tenant_refused.labels(event.tenant, resource).inc(count)

    def _on_shared(self, event: DeviceShared) -> None:
        waiting: dict[tuple[str], int] = {}
        for each in event.tenants:
            self._known_tenants.add(each.tenant)
            self._tenant_work.labels(each.tenant).inc(each.work)
            if each.waiting:
                waiting[each.tenant,] = each.waiting
        _replace(self._tenant_rows, waiting)

    def _forget_tenants(self, present: set[str]) -> None:
        """Remove the series of tenants that are no longer registered."""
        for tenant in self._known_tenants - present - {DEFAULT_TENANT}:
            self._tenant_work.remove(tenant)
        self._known_tenants &= present | {DEFAULT_TENANT}

    def _on_unreachable(self, event: RegistryUnreachable) -> None:
        self._registry_up.set(0)
        if event.is_lost:
            self._registry_lost.set(1)

    def _on_measured(self, event: DeviceMeasured) -> None:
        self._queue_depth.set(event.queued_rows)
        self._resident.set(event.resident_bundles)
        self._patch_bytes.set(event.patch_bytes)
        self._head_bytes.set(event.head_bytes)
        self._backbone_bytes.set(event.backbone_bytes)
        self._unservable.set(event.unservable_bundles)
        loading = event.prod_registered - event.prod_answering - event.prod_unfit
        self._prod_bundles.labels("answering").set(event.prod_answering)
        self._prod_bundles.labels("unfit").set(event.prod_unfit)
        self._prod_bundles.labels("missing").set(loading)
        self._no_bundle_fits.set(event.no_bundle_fits)
        for fingerprint, sizes in event.backbones.items():
            for pool, size in zip(MEMORY_POOLS, sizes, strict=True):
                self._backbone_memory.labels(fingerprint[:SHORT_FINGERPRINT], pool).set(size)

    def _on_webhook(self, event: WebhookTried) -> None:
        self._webhooks.labels(event.outcome).inc()

    def _on_heads_moved(self, event: HeadsMoved) -> None:
        counts, sizes = (event.evicted, event.reloaded), (event.evicted_bytes, event.reloaded_bytes)
        for direction, count, size in zip(HEAD_DIRECTIONS, counts, sizes, strict=True):
            self._head_moves.labels(direction).inc(count)
            self._head_moved_bytes.labels(direction).inc(size)

    def _on_prepared(self, event: DevicePrepared) -> None:
        self._prepared.labels("kernel").inc(event.kernels)
        self._prepared.labels("step").inc(event.steps)
        self._preparation_s.inc(event.seconds)
        self._late_kernels.inc(event.late_kernels)
        self._gpu_bytes.set(event.memory_bytes)

    def _on_restart(self, event: ChildRestarted) -> None:
        self._restarts.labels(event.child, event.reason).inc()

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
                partial(self._requests.labels, label),
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
        self._name_version(label, None)
        self._forget_quality(label)
        self._sampled.remove(label)
        for key in [key for key in self._feedback if key[0] == label]:
            self._forget_feedback(*key)
        for role in Role:
            self._traffic_rows.remove(label, role)
            self._traffic_errors.remove(label, role)
        for reason in GuardReason:
            self._guard_trips.remove(label, reason)


@dataclass(frozen=True, slots=True)
class _TaskSeries:
    """A task's series. Those of an outcome are made when it first occurs: few ever do."""

    make_requests: Callable[[str], Counter]
    durations: Histogram
    make_instances: Callable[[str], Counter]
    requests: dict[str, Counter] = field(default_factory=dict)
    instances: dict[str, Counter] = field(default_factory=dict)

    def requests_of(self, outcome: str) -> Counter:
        series = self.requests.get(outcome)
        if series is None:
            series = self.requests[outcome] = self.make_requests(outcome)
        return series

    def instances_of(self, outcome: str) -> Counter:
        series = self.instances.get(outcome)
        if series is None:
            series = self.instances[outcome] = self.make_instances(outcome)
        return series


def _ignore(event: Event) -> None:
    """Traces are no series."""


def _label(tenant: str, task: str) -> str:
    """Return a task's label: its name, preceded by the tenant unless that is the default one."""
    return task if tenant == DEFAULT_TENANT else f"{tenant}/{task}"


def _keep(series: Counter, tenants: Collection[str]) -> None:
    """Remove the counts of all other tenants."""
    for labels in _labels_of(series):
        if labels[0] not in tenants:
            series.remove(*labels)


Labels = TypeVar("Labels", bound=tuple[str, ...])


def _labels_of(series: Gauge | Counter) -> list[tuple[str, ...]]:
    (metric,) = series.collect()
    return [tuple(sample.labels.values()) for sample in metric.samples]


def _replace(series: Gauge, values: Mapping[Labels, float]) -> None:
    """Let a series have exactly these values, by its labels."""
    for labels in _labels_of(series):
        if labels not in values:
            series.remove(*labels)
    for labels, value in values.items():
        series.labels(*labels).set(value)
