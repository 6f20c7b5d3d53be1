"""Compare the series that dashboards and rules read with those that the server exposes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import promql_parser
import yaml

from peterrec.patches.identity import DEFAULT_TENANT, TaskId, TaskRef
from peterrec.service.protocol.answer_prior import AnswerPrior
from peterrec.service.telemetry.events import (
    AnswersSampled,
    BatchFinished,
    BundleRefused,
    DeviceMeasured,
    DeviceShared,
    FeedbackGiven,
    FeedbackSums,
    GuardBroken,
    Refused,
    RegistrySynced,
    RequestFinished,
    RowsRefused,
    TasksChanged,
    TenantAsked,
    TenantMeasured,
    TenantServed,
    TenantsMeasured,
    TrafficCounted,
    TrafficMeasured,
)
from peterrec.service.telemetry.metrics import CHILDREN, OUTCOMES, Metrics

ROOT = Path(__file__).parent.parent.parent
RULES = sorted((ROOT / "docker" / "prometheus" / "rules").glob("*.yml"))
OF_PROMETHEUS = frozenset({"instance", "job"})
PRIOR = msgspec.msgpack.encode(AnswerPrior(10, (5, 5), b"", (), (10,)))
CLOSED = {"outcome": frozenset(OUTCOMES), "child": frozenset(CHILDREN)}
"""The labels with a fixed set of values."""


@dataclass(frozen=True)
class Selector:
    """A series that a query reads: its name and the labels that select it."""

    name: str
    labels: dict[str, str]


def exposed_labels() -> dict[str, set[str]]:
    """Return every sample that a server can expose, with its labels."""
    metrics = Metrics()
    for event in (
        RegistrySynced(1, 1.0),
        DeviceMeasured(1, 1, 1, 1, 1, backbones={"f" * 64: [1, 1, 1]}),
        TasksChanged(
            True, [TaskRef(DEFAULT_TENANT, TaskId("gender"))], [], [("classification", 1)]
        ),
        TenantsMeasured([TenantMeasured("default", {"tasks": 1}, {"tasks": 2}, {"rows": 1})]),
        TenantAsked("default", {"rows": 1}, {"rows": 1}),
        DeviceShared([TenantServed("default", work=1, waiting=1)]),
        RequestFinished("default", "gender", "ok", 0.1, 1),
        BatchFinished(1, 1, 1, 0.1, [0.1]),
        RowsRefused("queue_full", 1),
        BundleRefused(["tensor_shape"]),
        Refused("head_too_large", 1),
        TrafficCounted("default", "gender", "canary", 1, 0),
        TrafficMeasured("default", "gender", "canary", 0.1, 0.5),
        GuardBroken("default", "gender", "divergence"),
        AnswersSampled("default", "gender", 1, 1, 0, 1, 0, PRIOR, [1, 0], [1], [], [], [], 0),
        FeedbackGiven("default", "gender", 1, FeedbackSums(1, 1.0, 1, 0.5, {9: (1, 0.9, 1.0)})),
    ):
        metrics.record(event)
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def known_labels() -> dict[str, set[str]]:
    """Return all series that queries may read: from the server, recorded, and of Prometheus."""
    recorded = {rule["record"]: grouping_of(rule["expr"]) for rule in rules() if "record" in rule}
    own = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
    return {**exposed_labels(), **recorded, **own}


def rules() -> Iterator[dict[str, Any]]:  # Any: YAML
    """Return every recording and alerting rule."""
    for path in RULES:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


def parse(query: str) -> promql_parser.Expr:
    """Parse a query after filling in Grafana's variables; ValueError if it is not PromQL."""
    filled = re.sub(r"\$__(rate_interval|interval|range)\b", "5m", query)
    return promql_parser.parse(filled)


def selectors_of(query: str) -> list[Selector]:
    """Return the series that a query reads."""
    found = []
    for node in _nodes(query):
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            labels = {matcher.name: matcher.value for matcher in node.matchers.matchers}
            found.append(Selector(node.name or "", labels))
    return found


def grouping_of(query: str) -> set[str]:
    """Return the labels that aggregations of a query group by."""
    found: set[str] = set()
    for node in _nodes(query):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found.update(node.modifier.labels)
    return found


def problems_of(query: str) -> list[str]:
    """Return a description of everything that a query reads but no server exposes."""
    known, found = known_labels(), []
    read: set[str] = set(OF_PROMETHEUS)
    for selector in selectors_of(query):
        if selector.name not in known:
            found.append(f"there is no series {selector.name}")
            continue
        own = known[selector.name] | OF_PROMETHEUS
        read |= own
        found += [f"{selector.name} has no label {label}" for label in set(selector.labels) - own]
        found += [
            f"{selector.name}: {label} is never {value}"
            for label, values in CLOSED.items()
            for value in selector.labels.get(label, "").split("|")
            if value and value not in values
        ]
    found += [f"nothing is labelled by {label}" for label in grouping_of(query) - read]
    return found


def _nodes(query: str) -> list[promql_parser.Expr]:
    nodes: list[promql_parser.Expr] = []
    promql_parser.walk(parse(query), nodes.append)
    return nodes
