"""Tasks, versions and traffic in answers."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from peterrec.patches.identity import Digest, format_digest
from peterrec.patches.registry.records import (
    ActiveTraffic,
    AliasTarget,
    TaskDetail,
    TaskEntry,
    TaskRecord,
    VersionRecord,
)
from peterrec.patches.registry.traffic import Guard, Traffic


class AliasView(BaseModel):
    """The version that an alias names."""

    version: int
    digest: str

    @classmethod
    def of(cls, target: AliasTarget) -> "AliasView":
        """Make the view of a record."""
        return cls(version=target.version, digest=format_digest(target.digest))


class TrafficVersionView(BaseModel):
    """A version of a traffic; ``version`` is null if it was deleted meanwhile."""

    version: int | None
    digest: str


class CanaryView(TrafficVersionView):
    """A version that answers a share of the users."""

    weight: int


class GuardView(BaseModel):
    """Bounds for every canary and shadow; null means that there is no bound."""

    max_error_share: float | None
    max_p99_ms: float | None
    max_divergence: float | None
    max_hit_drop: float | None
    min_requests: int
    window_s: int

    @classmethod
    def of(cls, guard: Guard) -> "GuardView":
        """Make the view of a guard."""
        return cls(
            max_error_share=guard.max_error_share,
            max_p99_ms=guard.max_p99_ms,
            max_divergence=guard.max_divergence,
            max_hit_drop=guard.max_hit_drop,
            min_requests=guard.min_requests,
            window_s=guard.window_s,
        )


class TrafficView(BaseModel):
    """How the requests of a task that do not ask for a version are split among versions."""

    prod_weight: int
    canary: list[CanaryView]
    shadow: list[TrafficVersionView]
    guard: GuardView | None

    @classmethod
    def of(cls, traffic: Traffic | None, numbers: Mapping[Digest, int]) -> "TrafficView | None":
        """Make the view of a traffic, given the numbers of its versions."""
        if traffic is None:
            return None

        def named(digest: Digest) -> dict[str, Any]:  # Any: checked by the models it fills
            return {"version": numbers.get(digest), "digest": format_digest(digest)}

        return cls(
            prod_weight=traffic.prod_weight,
            canary=[CanaryView(**named(c.digest), weight=c.weight) for c in traffic.canary],
            shadow=[TrafficVersionView(**named(digest)) for digest in traffic.shadow],
            guard=None if traffic.guard is None else GuardView.of(traffic.guard),
        )

    @classmethod
    def of_active(cls, active: ActiveTraffic | None) -> "TrafficView | None":
        """Make the view of the traffic that a task has now."""
        return None if active is None else cls.of(active.traffic, active.versions)


class TaskView(BaseModel):
    """A registered task; ``revision`` is its ETag."""

    task: str
    tenant: str
    revision: int
    description: str
    is_sensitive: bool
    aliases: dict[str, AliasView]
    traffic: TrafficView | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, record: TaskRecord) -> "TaskView":
        """Make the view of a record."""
        return cls(**_task_fields(record))


class VersionView(BaseModel):
    """One registered bundle of a task, and what it costs to run.

    ``patch_work`` is the work of the patch relative to the backbone's, ``row_work`` that of one
    full history in positions of the backbone, and ``answer_bytes`` the size of an answer with every
    output.
    """

    version: int
    digest: str
    created_at: datetime
    actor: str
    name: str
    kind: str
    outputs: int
    backbone: str
    size_bytes: int
    patch_bytes: int
    head_bytes: int
    patch_work: float
    row_work: float
    answer_bytes: int
    metrics: dict[str, float]
    signed_by: list[str]

    @classmethod
    def of(cls, record: VersionRecord) -> "VersionView":
        """Make the view of a record."""
        summary = record.summary
        return cls(
            version=record.version,
            digest=format_digest(record.digest),
            created_at=record.created_at,
            actor=record.actor,
            name=summary.name,
            kind=summary.kind,
            outputs=summary.outputs,
            backbone=summary.backbone,
            size_bytes=summary.size_bytes,
            patch_bytes=summary.patch_bytes,
            head_bytes=summary.head_bytes,
            patch_work=summary.patch_work,
            row_work=summary.row_work,
            answer_bytes=summary.answer_bytes,
            metrics=dict(summary.metrics),
            signed_by=list(summary.signed_by),
        )


class TaskDetailView(TaskView):
    """A task with its versions, oldest first.

    ``served`` has the aliases as this replica answers for them, by version number. It differs from
    ``aliases`` while a version is loaded, and if this server refuses its bundle.
    """

    versions: list[VersionView]
    served: dict[str, int]


class Changed(BaseModel):
    """A change that every worker of this replica serves. Other replicas follow within a second."""

    task: str
    registry_revision: int


class AliasMovedView(Changed):
    """The version that an alias names now, and the digest of the one that it named before.

    ``is_served`` is false if this replica has not loaded that version, and answers by the one
    before: it may need more time, or refuse the bundle.
    """

    alias: str
    version: int
    digest: str
    previous: str | None
    is_served: bool


class RolledBackView(AliasMovedView):
    """The restored state of a task: all aliases and the traffic.

    ``new_outputs`` lists how the answers of the alias's version differ in kind, labels, catalog or
    unit from those before the rollback; it is empty if they do not.
    """

    aliases: dict[str, AliasView]
    traffic: TrafficView | None
    new_outputs: list[str]


def numbers_of(detail: TaskDetail) -> dict[Digest, int]:
    """Return the number of each version of a task, by digest."""
    return {record.digest: record.version for record in detail.versions}


def task_detail(
    record: TaskRecord, versions: tuple[VersionRecord, ...], served: TaskEntry | None
) -> TaskDetailView:
    """Make the view of a task with its versions, and with what this replica serves of it."""
    return TaskDetailView(
        **_task_fields(record),
        versions=[VersionView.of(version) for version in versions],
        served={} if served is None else dict(served.aliases),
    )


def _task_fields(record: TaskRecord) -> dict[str, Any]:  # Any: checked by the model they fill
    return {
        "task": record.task,
        "tenant": record.tenant,
        "revision": record.revision,
        "description": record.options.description,
        "is_sensitive": record.options.is_sensitive,
        "aliases": {alias: AliasView.of(target) for alias, target in record.aliases.items()},
        "traffic": TrafficView.of_active(record.traffic),
        "created_at": record.created_at,
        "updated_at": record.updated_at,
    }
