"""What Grafana's dashboards show, as data; ``python -m tests.docker.boards`` writes their files.

Every query names ``$job`` and ``$instance``, so that a dashboard can be imported anywhere.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode, LegendDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent.parent.parent / "docker" / "grafana" / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

OF = 'job="$job", instance=~"$instance"'
"""Selects the chosen replicas."""

OF_TASK = OF + ', task=~"$task"'
OF_TENANT = OF + ', tenant=~"$tenant"'
FAILED = 'outcome=~"error|rejected|deadline"'
JUDGED = 'outcome=~"ok|error|rejected|deadline"'
RATE = "[$__rate_interval]"

Form = Literal["lines", "number", "heatmap", "table"]
WIDTHS: dict[Form, int] = {"lines": 12, "number": 4, "heatmap": 12, "table": 24}
HEIGHTS: dict[Form, int] = {"lines": 8, "number": 4, "heatmap": 8, "table": 7}


@dataclass(frozen=True)
class Query:
    """A query, and the name of its series."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture. ``text`` says what to see in it."""

    title: str
    text: str
    queries: Sequence[Query]
    unit: str = "short"
    form: Form = "lines"
    highest: float | None = None


@dataclass(frozen=True)
class Variable:
    """A choice among the values of a series' label."""

    name: str
    series: str
    label: str


@dataclass(frozen=True)
class Mark:
    """Moments that all panels show: those at which a query has a value."""

    name: str
    expr: str
    color: str


@dataclass(frozen=True)
class Board:
    """One dashboard: rows of panels by title."""

    name: str
    text: str
    rows: dict[str, Sequence[Panel]]
    variables: Sequence[Variable] = ()

    @property
    def panels(self) -> list[Panel]:
        return [panel for panels in self.rows.values() for panel in panels]


def rate(series: str, by: str = "", of: str = OF) -> str:
    """The sum of a counter's rates."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({series}{{{of}}}{RATE}))"


def quantile(share: float, series: str, by: str = "", of: str = OF) -> str:
    """A quantile of a histogram over all chosen replicas."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({series}_bucket{{{of}}}{RATE})))"


def quantiles(series: str, of: str = OF) -> list[Query]:
    return [
        Query(quantile(share, series, of=of), name)
        for share, name in ((0.5, "median"), (0.9, "90 %"), (0.99, "99 %"))
    ]


def lasting(series: str, by: str, of: str = OF) -> str:
    """The highest value of a gauge among the replicas."""
    return f"max by ({by}) ({series}{{{of}}})"


def ratio(one: str, other: str) -> str:
    return f"{one} / {other}"


KIND = f"on (job, instance, task) group_left (kind) (peterrec_task_version{{{OF}}} * 0 + 1)"
"""Gives series of a task the kind of its head."""


def by_kind(series: str, labels: str, extra: str = "") -> str:
    """Sum the rates of a task's counter by the kind of its head, and further labels."""
    selected = f"rate({series}{{{OF}{extra}}}{RATE})"
    return f"sum by ({labels}) ({selected} * {KIND})"


INSTANCE = Variable("instance", 'peterrec_build_info{job="$job"}', "instance")
TASK = Variable("task", f"peterrec_task_version{{{OF}}}", "task")
TENANT = Variable("tenant", f"peterrec_tenant_usage{{{OF}}}", "tenant")

MARKS = (
    Mark("Swaps", f"sum by (instance) (increase(peterrec_swaps_total{{{OF}}}[1m])) > 0", "blue"),
    Mark(
        "Restarts",
        f"sum by (instance, child) (increase(peterrec_child_restarts_total{{{OF}}}[1m])) > 0",
        "red",
    ),
)
REGISTRATIONS = Mark(
    "Registrations", f"changes(peterrec_task_version{{{OF_TASK}}}[1m]) > 0", "green"
)

SERVICE = Board(
    "Service",
    "Are callers served well? The objective is that 99.9 % of the requests in 30 days succeed.",
    {
        "Objective": (
            Panel(
                "Answered",
                "Share of the requests in the shown time that were answered; mistakes of callers "
                "are left out.",
                [
                    Query(
                        f"1 - sum(increase(peterrec_protocol_requests_total{{{OF}, {FAILED}}}"
                        f"[$__range])) / sum(increase(peterrec_protocol_requests_total{{{OF}, "
                        f"{JUDGED}}}[$__range]))"
                    )
                ],
                "percentunit",
                "number",
            ),
            Panel(
                "Budget burn",
                "How fast the month's error budget is used: 1 uses it up in exactly 30 days.",
                [Query('max(job:peterrec_requests_failed:ratio_rate1h{job="$job"}) / 0.001')],
                "short",
                "number",
            ),
            Panel(
                "Requests",
                "Predictions a second.",
                [Query(rate("peterrec_protocol_requests_total"))],
                "reqps",
                "number",
            ),
            Panel(
                "99th percentile",
                "One request in a hundred takes longer.",
                [Query(quantile(0.99, "peterrec_protocol_duration_seconds"))],
                "s",
                "number",
            ),
            Panel(
                "Replicas up",
                "Replicas whose metrics can be read.",
                [Query('sum(up{job="$job"})')],
                "short",
                "number",
            ),
            Panel(
                "Firing alerts",
                "Alerts that fire now; 0 is well.",
                [Query('count(ALERTS{job="$job", alertstate="firing"}) or vector(0)')],
                "short",
                "number",
            ),
            Panel(
                "Burn by window",
                "An alert needs a short and a long window above its threshold: it neither fires "
                "for a moment nor goes on when all is well again.",
                [
                    Query(
                        f'job:peterrec_requests_failed:ratio_rate{window}{{job="$job"}} / 0.001',
                        window,
                    )
                    for window in ("5m", "30m", "1h", "6h", "3d")
                ],
            ),
            Panel(
                "Requests by outcome",
                "`rejected`, `deadline` and `error` use the budget.",
                [Query(rate("peterrec_protocol_requests_total", "outcome"), "{{outcome}}")],
                "reqps",
            ),
        ),
        "By endpoint": (
            Panel(
                "Requests by protocol",
                "JSON and MessagePack are `/tasks/…/predict` and `/users/predict`; the Open "
                "Inference Protocol has endpoints of its own.",
                [Query(rate("peterrec_protocol_requests_total", "protocol"), "{{protocol}}")],
                "reqps",
            ),
            Panel(
                "Failed share by protocol",
                "Failures of the service.",
                [
                    Query(
                        ratio(
                            rate("peterrec_protocol_requests_total", "protocol", f"{OF}, {FAILED}"),
                            rate("peterrec_protocol_requests_total", "protocol", f"{OF}, {JUDGED}"),
                        ),
                        "{{protocol}}",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Latency",
                "From a request's first byte to its answer.",
                quantiles("peterrec_protocol_duration_seconds"),
                "s",
            ),
            Panel(
                "99th percentile by protocol",
                "A slow protocol beside a fast one: look at the size of its requests.",
                [
                    Query(
                        quantile(0.99, "peterrec_protocol_duration_seconds", "protocol"),
                        "{{protocol}}",
                    )
                ],
                "s",
            ),
            Panel(
                "Latency distribution",
                "Two separate groups of latencies are hidden by percentiles.",
                [
                    Query(
                        f"sum by (le) (increase(peterrec_protocol_duration_seconds_bucket{{{OF}}}"
                        f"{RATE}))",
                        "{{le}}",
                    )
                ],
                "s",
                "heatmap",
            ),
            Panel(
                "Refused by code",
                "Requests and connections of all routes that were refused, by error code.",
                [Query(rate("peterrec_refused_total", "code"), "{{code}}")],
                "reqps",
            ),
        ),
        "By kind of head": (
            Panel(
                "Requests by kind",
                "Requests to tasks whose head is of this kind.",
                [Query(by_kind("peterrec_requests_total", "kind"), "{{kind}}")],
                "reqps",
            ),
            Panel(
                "Failed share by kind",
                "Failures of the service; no line means that nothing failed.",
                [
                    Query(
                        f"({by_kind('peterrec_requests_total', 'kind', f', {FAILED}')} or "
                        f"{by_kind('peterrec_requests_total', 'kind')} * 0) / "
                        f"{by_kind('peterrec_requests_total', 'kind', f', {JUDGED}')}",
                        "{{kind}}",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "99th percentile by kind",
                "Rankings of large catalogs take longer than classes.",
                [
                    Query(
                        "histogram_quantile(0.99, "
                        + by_kind("peterrec_request_duration_seconds_bucket", "kind, le")
                        + ")",
                        "{{kind}}",
                    )
                ],
                "s",
            ),
            Panel(
                "Explanations",
                "Explained answers by outcome, and rows that were run for them.",
                [
                    Query(rate("peterrec_explanations_total", "outcome"), "{{outcome}}"),
                    Query(rate("peterrec_explanation_rows_total"), "rows"),
                ],
            ),
        ),
    },
    (INSTANCE,),
)

ENGINE = Board(
    "Engine",
    "Is it load? Waiting rows and a busy device mean too much traffic; waiting rows and an idle "
    "device mean a fault.",
    {
        "Queue": (
            Panel(
                "Rows waiting",
                "Rows that wait for the device.",
                [Query(f"peterrec_queue_depth{{{OF}}}", "{{instance}}")],
            ),
            Panel(
                "Wait for a batch",
                "Time that a row waits.",
                quantiles("peterrec_queue_duration_seconds"),
                "s",
            ),
            Panel(
                "Rows that were not run",
                "Expired, refused, or the client left.",
                [Query(rate("peterrec_rejected_total", "code"), "{{code}}")],
            ),
            Panel(
                "Busy",
                "Share of the time that the device computes; 100 % is full.",
                [Query(f"rate(peterrec_device_busy_seconds_total{{{OF}}}{RATE})", "{{instance}}")],
                "percentunit",
                highest=1,
            ),
        ),
        "Batches": (
            Panel(
                "Rows in a batch",
                "Under load it should rise, while latency rises only slowly.",
                [
                    Query(
                        f"sum by (le) (increase(peterrec_batch_rows_bucket{{{OF}}}{RATE}))",
                        "{{le}}",
                    )
                ],
                form="heatmap",
            ),
            Panel(
                "Distinct tasks in a batch",
                "How many bundles are mixed in one forward.",
                [
                    Query(
                        f"sum by (le) (increase(peterrec_batch_distinct_tasks_bucket{{{OF}}}"
                        f"{RATE}))",
                        "{{le}}",
                    )
                ],
                form="heatmap",
            ),
            Panel(
                "Time of a batch",
                "One forward, heads included.",
                quantiles("peterrec_batch_duration_seconds"),
                "s",
            ),
            Panel(
                "Positions",
                "Sequence positions that are run: the cost of rows.",
                [Query(rate("peterrec_batch_positions_total", "instance"), "{{instance}}")],
            ),
        ),
        "Memory": (
            Panel(
                "Memory by pool",
                "Device memory; `reserved` is what the process holds of a GPU.",
                [
                    Query(f"max(peterrec_{name}_bytes{{{OF}}})", legend)
                    for name, legend in (
                        ("backbone", "backbone"),
                        ("patch", "patches"),
                        ("head", "heads and item tables"),
                        ("gpu_reserved", "reserved"),
                    )
                ],
                "bytes",
            ),
            Panel(
                "Memory by backbone",
                "Device memory of each backbone: its own, and that of its bundles. While tasks "
                "move to a new backbone, the old one's patches and heads shrink.",
                [
                    Query(
                        lasting("peterrec_backbone_memory_bytes", "backbone, pool"),
                        "{{backbone}} {{pool}}",
                    )
                ],
                "bytes",
            ),
            Panel(
                "Bundles and tasks",
                "Bundles on the device, and tasks in the registry.",
                [
                    Query(f"peterrec_resident_bundles{{{OF}}}", "bundles {{instance}}"),
                    Query(f"peterrec_tasks{{{OF}}}", "tasks {{instance}}"),
                ],
            ),
            Panel(
                "Heads moved",
                "Ranking heads and item tables that left to make room, or came back.",
                [Query(rate("peterrec_head_moves_total", "direction"), "{{direction}}")],
            ),
            Panel(
                "Bytes moved",
                "The same in bytes a second.",
                [Query(rate("peterrec_head_moved_bytes_total", "direction"), "{{direction}}")],
                "Bps",
            ),
        ),
        "Preparation": (
            Panel(
                "Prepared kernels and graph captures",
                "Kernels that were compiled or read (`kernel`), and steps in which launches and "
                "CUDA graphs were prepared (`step`).",
                [Query(lasting("peterrec_prepared_total", "what"), "{{what}}")],
            ),
            Panel(
                "Time of preparation",
                "Seconds since the start that it took.",
                [Query(lasting("peterrec_preparation_seconds_total", "instance"), "{{instance}}")],
                "s",
            ),
            Panel(
                "Late kernels",
                "Kernels that were compiled while a batch waited: 0 is well.",
                [Query(lasting("peterrec_late_kernels_total", "instance"), "{{instance}}")],
            ),
            Panel(
                "Restarts",
                "Processes that died or hung, and were restarted.",
                [
                    Query(
                        f"sum by (child, reason) (increase(peterrec_child_restarts_total{{{OF}}}"
                        f"{RATE}))",
                        "{{child}} {{reason}}",
                    )
                ],
            ),
        ),
    },
    (INSTANCE,),
)

TASKS = Board(
    "Tasks",
    "Is one task affected, or all? The last row shows the chosen tasks; their new versions are "
    "marked in all panels.",
    {
        "The first ten": (
            Panel(
                "Requests by task",
                "The tasks with most traffic.",
                [Query(f"topk(10, {rate('peterrec_requests_total', 'task')})", "{{task}}")],
                "reqps",
            ),
            Panel(
                "99th percentile by task",
                "The slowest tasks.",
                [
                    Query(
                        f"topk(10, {quantile(0.99, 'peterrec_request_duration_seconds', 'task')})",
                        "{{task}}",
                    )
                ],
                "s",
            ),
            Panel(
                "Failed share by task",
                "The tasks that fail most; failures of the service.",
                [
                    Query(
                        "topk(10, ("
                        + rate("peterrec_requests_total", "task", f"{OF}, {FAILED}")
                        + " or "
                        + rate("peterrec_requests_total", "task")
                        + " * 0) / "
                        + rate("peterrec_requests_total", "task", f"{OF}, {JUDGED}")
                        + ")",
                        "{{task}}",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Unknown items by task",
                "Tasks whose histories the backbone knows least.",
                [
                    Query(
                        f"topk(10, max by (task) (peterrec_quality_share{{{OF}, "
                        'share="unknown_items"}))',
                        "{{task}}",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Unknown items",
                "Of all tasks, now and in the mean of a week.",
                [
                    Query(
                        ratio(rate("peterrec_unknown_items_total"), rate("peterrec_items_total")),
                        "now",
                    ),
                    Query(
                        'avg_over_time(job:peterrec_unknown_items:ratio_rate30m{job="$job"}[7d])',
                        "week",
                    ),
                ],
                "percentunit",
            ),
            Panel(
                "Histories by task",
                "One request may have up to 256.",
                [Query(f"topk(10, {rate('peterrec_instances_total', 'task')})", "{{task}}")],
            ),
        ),
        "The chosen tasks": (
            Panel(
                "Versions",
                "Kind of head, and the version that prod names.",
                [Query(lasting("peterrec_task_version", "task, kind", OF_TASK), "{{task}}")],
                form="table",
            ),
            Panel(
                "Outcomes",
                "Requests of the chosen tasks.",
                [
                    Query(
                        rate("peterrec_requests_total", "task, outcome", OF_TASK),
                        "{{task}} {{outcome}}",
                    )
                ],
                "reqps",
            ),
            Panel(
                "Duration",
                "Of all chosen tasks together.",
                quantiles("peterrec_request_duration_seconds", OF_TASK),
                "s",
            ),
        ),
    },
    (INSTANCE, TASK),
)

TENANTS = Board(
    "Tenants",
    "Who uses how much of what they may have, and is anybody throttled?",
    {
        "Quotas": (
            Panel(
                "Usage of quotas",
                "What a tenant has of its quota; at 100 % it is refused.",
                [
                    Query(
                        lasting("peterrec_tenant_usage", "tenant, resource", OF_TENANT)
                        + " / "
                        + lasting("peterrec_tenant_quota", "tenant, resource", OF_TENANT),
                        "{{tenant}} {{resource}}",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Throttled",
                "Calls a second that a quota refused.",
                [
                    Query(
                        rate("peterrec_tenant_refused_total", "tenant, resource", OF_TENANT),
                        "{{tenant}} {{resource}}",
                    )
                ],
                "reqps",
            ),
            Panel(
                "Admitted",
                "What tenants with quotas for requests were given.",
                [
                    Query(
                        rate("peterrec_tenant_admitted_total", "tenant, resource", OF_TENANT),
                        "{{tenant}} {{resource}}",
                    )
                ],
            ),
            Panel(
                "Quota by replica",
                "Part of a quota that each replica may use; the parts add up to 1.",
                [
                    Query(
                        f"peterrec_tenant_share{{{OF_TENANT}}}",
                        "{{tenant}} {{resource}} {{instance}}",
                    )
                ],
                "percentunit",
            ),
        ),
        "Fair share": (
            Panel(
                "Share of the device",
                "Work that each tenant is given; while several wait, it follows their weights.",
                [
                    Query(
                        rate("peterrec_tenant_work_total", "tenant", OF_TENANT)
                        + " / ignoring (tenant) group_left () "
                        + rate("peterrec_tenant_work_total"),
                        "{{tenant}}",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Rows waiting by tenant",
                "A tenant that floods waits by itself. Nothing is shown while nobody waits.",
                [
                    Query(
                        f"(sum by (tenant) (peterrec_tenant_queued_rows{{{OF_TENANT}}})) or "
                        f"sum by (tenant) (peterrec_tenant_work_total{{{OF_TENANT}}}) * 0",
                        "{{tenant}}",
                    )
                ],
            ),
            Panel(
                "Stored",
                "Tasks, versions, bytes and keys of each tenant.",
                [
                    Query(
                        lasting("peterrec_tenant_usage", "tenant, resource", OF_TENANT),
                        "{{tenant}}",
                    )
                ],
                form="table",
            ),
        ),
    },
    (INSTANCE, TENANT),
)

REGISTRY = Board(
    "Registry",
    "What changed, and do all replicas know it?",
    {
        "State": (
            Panel(
                "Revision",
                "Equal on all replicas within a second.",
                [Query(f"peterrec_registry_revision{{{OF}}}", "{{instance}}")],
            ),
            Panel(
                "Staleness",
                "Time since a replica has read the registry.",
                [
                    Query(
                        f"time() - peterrec_registry_last_sync_timestamp_seconds{{{OF}}}",
                        "{{instance}}",
                    )
                ],
                "s",
            ),
            Panel(
                "Registry answers",
                "1 if it answered the last time, and was the one that is known.",
                [Query(f"peterrec_registry_up{{{OF}}}", "{{instance}}")],
            ),
            Panel(
                "Registry lost",
                "1 since Redis was found without what is served.",
                [Query(f"peterrec_registry_lost{{{OF}}}", "{{instance}}")],
            ),
        ),
        "Changes": (
            Panel(
                "Swaps",
                "Bundles that began to serve.",
                [
                    Query(
                        f"sum by (instance) (increase(peterrec_swaps_total{{{OF}}}{RATE}))",
                        "{{instance}}",
                    )
                ],
            ),
            Panel(
                "Time of a swap",
                "From noticing a change to serving it.",
                quantiles("peterrec_swap_duration_seconds"),
                "s",
            ),
            Panel(
                "Refused bundles",
                "Refused on a push, or when a replica loaded them, by reason.",
                [Query(f"sum by (reason) (peterrec_bundle_rejected_total{{{OF}}})", "{{reason}}")],
            ),
            Panel(
                "Tasks",
                "Tasks in the registry, as each replica serves them.",
                [Query(f"peterrec_tasks{{{OF}}}", "{{instance}}")],
            ),
            Panel(
                "Replicas",
                "When each was started, and its version.",
                [
                    Query(
                        f"peterrec_start_timestamp_seconds{{{OF}}} * 1000 * on (job, instance) "
                        f"group_left (version) peterrec_build_info{{{OF}}}",
                        "{{instance}}",
                    )
                ],
                "dateTimeAsIso",
                "table",
            ),
        ),
    },
    (INSTANCE,),
)


def of_outcomes(series: str) -> str:
    """What was told of each version in the shown time."""
    return f"sum by (task, version) (rate({series}{{{OF_TASK}}}[$__range]))"


HIT_RATE = ratio(
    of_outcomes("peterrec_feedback_hits_total"), of_outcomes("peterrec_feedback_outcomes_total")
)

ROLLOUT = Board(
    "Rollout",
    "How do the versions of a task with a canary or a shadow compare?",
    {
        "Versions": (
            Panel(
                "Share by role",
                "Histories that each role computed: of canaries, it is their weight.",
                [
                    Query(
                        rate("peterrec_traffic_rows_total", "task, role", OF_TASK)
                        + " / ignoring (role) group_left () "
                        + rate("peterrec_traffic_rows_total", "task", OF_TASK),
                        "{{task}} {{role}}",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Failed share by role",
                "Where a canary fails, prod answers.",
                [
                    Query(
                        ratio(
                            rate("peterrec_traffic_errors_total", "task, role", OF_TASK),
                            rate("peterrec_traffic_rows_total", "task, role", OF_TASK),
                        ),
                        "{{task}} {{role}}",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Divergence from prod",
                "Mean difference from prod's answers in the guard's window, 0 to 1.",
                [
                    Query(
                        lasting("peterrec_traffic_divergence", "task, role", OF_TASK),
                        "{{task}} {{role}}",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "99th percentile by role",
                "Latency in the guard's window, of the worst version.",
                [
                    Query(
                        lasting("peterrec_traffic_p99_seconds", "task, role", OF_TASK),
                        "{{task}} {{role}}",
                    )
                ],
                "s",
            ),
            Panel(
                "Guards that tripped",
                "How often each replica ended traffic since a bound was broken.",
                [
                    Query(
                        f"sum by (task, reason) (peterrec_guard_trips_total{{{OF_TASK}}})",
                        "{{task}} {{reason}}",
                    )
                ],
            ),
            Panel(
                "Hit rate by version",
                "How right answers were, by the outcomes that callers told.",
                [Query(HIT_RATE, "{{task}} version {{version}}")],
                "percentunit",
                highest=1,
            ),
        ),
    },
    (INSTANCE, TASK),
)


def drift(compared: str) -> Panel:
    """How far a task's answers have moved from its training, and the lower bound of that."""
    of = f'{OF_TASK}, compared="{compared}"'
    return Panel(
        f"Drift of {compared}",
        "Population stability index against the bundle's own training, without bias, and its "
        "lower 95 % bound. Above 0.25 the answers are others than those that were tested.",
        [
            Query(f"max by (task) (peterrec_quality_drift{{{of}}})", "{{task}}"),
            Query(f"max by (task) (peterrec_quality_drift_low{{{of}}})", "{{task}} at least"),
        ],
    )


def share(name: str, title: str, text: str) -> Panel:
    """A share of a task's answers."""
    expr = f'max by (task) (peterrec_quality_share{{{OF_TASK}, share="{name}"}})'
    return Panel(title, text, [Query(expr, "{{task}}")], "percentunit", highest=1)


QUALITY = Board(
    "Quality",
    "Are the answers still those that were tested, and were they right? A sample of prod's "
    "answers; old ones weigh half after 30 minutes.",
    {
        "Against the training": (
            drift("outputs"),
            drift("scores"),
            share("cold", "Cold answers", "Answers that rest on no known item."),
            share(
                "unknown_items",
                "Items that are unknown",
                "Items of the histories that the backbone does not know.",
            ),
        ),
        "Diversity of rankings": (
            share(
                "distinct_lists",
                "Distinct lists",
                "Different lists of best items per different history: near 0, everybody gets the "
                "same.",
            ),
            share("catalog", "Coverage", "Share of the catalog in the last 256 lists."),
        ),
        "Outcomes that callers told": (
            Panel(
                "Hit rate",
                "Accuracy of classes, overlap of tags, hit rate of rankings, by version.",
                [Query(HIT_RATE, "{{task}} version {{version}}")],
                "percentunit",
                highest=1,
            ),
            Panel(
                "Calibration error",
                "Mean gap between an answer's probability and how often it was right.",
                [
                    Query(
                        lasting("peterrec_feedback_calibration_error", "task, version", OF_TASK),
                        "{{task}} version {{version}}",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Mean absolute error",
                "Of tasks that answer with a number, in its unit.",
                [
                    Query(
                        ratio(
                            of_outcomes("peterrec_feedback_absolute_error_total"),
                            of_outcomes("peterrec_feedback_measured_total"),
                        ),
                        "{{task}} version {{version}}",
                    )
                ],
            ),
            Panel(
                "Answers looked at",
                "Size of the sample that the panels above rest on.",
                [Query(rate("peterrec_quality_answers_total", "task", OF_TASK), "{{task}}")],
                "ops",
            ),
        ),
    },
    (INSTANCE, TASK),
)

BOARDS = (SERVICE, ENGINE, TASKS, TENANTS, REGISTRY, ROLLOUT, QUALITY)


def written() -> dict[str, str]:
    """The text of each dashboard's file by its name."""
    return {f"{board.name.lower()}.json": _text(board) for board in BOARDS}


def _text(board: Board) -> str:
    encoded = JSONEncoder(sort_keys=True, indent=2).encode(_built(board))
    return json.dumps(json.loads(encoded), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _built(board: Board) -> Any:  # Any: the library's own document
    built = (
        dashboard.Dashboard(f"PeterRec: {board.name}")
        .uid(f"peterrec-{board.name.lower()}")
        .description(board.text)
        .tags(["peterrec"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Source").type("prometheus")
        )
        .with_variable(_job())
        .link(_link())
    )
    for variable in board.variables:
        built = built.with_variable(_choice(variable))
    marks = (*MARKS, REGISTRATIONS) if TASK in board.variables else MARKS
    for mark in marks:
        built = built.annotation(
            dashboard.AnnotationQuery()
            .name(mark.name)
            .datasource(SOURCE)
            .enable(True)
            .icon_color(mark.color)
            .expr(mark.expr)
        )
    numbers = count(1)
    for title, panels in board.rows.items():
        built = built.with_row(dashboard.Row(title).id(next(numbers)))
        for panel in panels:
            built = built.with_panel(_panel(panel).id(next(numbers)))
    return built.build()


def _link() -> Any:  # Any: the library's builder
    return (
        dashboard.DashboardLink("PeterRec")
        .type(DashboardLinkType.DASHBOARDS)
        .tags(["peterrec"])
        .as_dropdown(True)
        .keep_time(True)
        .include_vars(True)
    )


def _job() -> Any:  # Any: the library's builder
    return (
        dashboard.QueryVariable("job")
        .label("Job")
        .datasource(SOURCE)
        .query("label_values(peterrec_build_info, job)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def _choice(variable: Variable) -> Any:  # Any: the library's builder
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.name.capitalize())
        .datasource(SOURCE)
        .query(f"label_values({variable.series}, {variable.label})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _panel(panel: Panel) -> Any:  # Any: a builder of the panel's form
    makers: dict[Form, Any] = {  # Any: builders of different forms
        "lines": timeseries.Panel,
        "number": stat.Panel,
        "heatmap": heatmap.Panel,
        "table": table.Panel,
    }
    built = (
        makers[panel.form]()
        .title(panel.title)
        .description(panel.text)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(WIDTHS[panel.form])
        .height(HEIGHTS[panel.form])
    )
    if panel.form == "lines":
        legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).show_legend(True)
        built = built.min(0).fill_opacity(8).legend(legend)
        built = built if panel.highest is None else built.max(panel.highest)
    if panel.form == "number":
        built = built.graph_mode(BigValueGraphMode.AREA)
    for at, query in enumerate(panel.queries):
        built = built.with_target(_target(query, panel.form, "ABCDEFGH"[at]))
    return built


def _target(query: Query, form: Form, ref_id: str) -> Any:  # Any: the library's builder
    target = prometheus.Dataquery().expr(query.expr).ref_id(ref_id).datasource(SOURCE)
    if query.legend:
        target = target.legend_format(query.legend)
    if form == "table":
        return target.instant().format(PromQueryFormat.TABLE)
    return target.format(PromQueryFormat.HEATMAP) if form == "heatmap" else target.range()


if __name__ == "__main__":
    for name, text in written().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
