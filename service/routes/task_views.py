"""How tasks and versions look in answers."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from patches.identity import format_digest
from patches.records import TaskRecord, VersionRecord


class AliasView(BaseModel):
    """The version that an alias names."""

    version: int
    digest: str


class TaskView(BaseModel):
    """A task as registered; ``revision`` is its ETag."""

    task: str
    tenant: str
    revision: int
    description: str
    is_sensitive: bool
    aliases: dict[str, AliasView]
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, record: TaskRecord) -> "TaskView":
        """The view of a record."""
        return cls(**_task_fields(record))


class VersionView(BaseModel):
    """One registered bundle of a task."""

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
    metrics: dict[str, float]

    @classmethod
    def of(cls, record: VersionRecord) -> "VersionView":
        """The view of a record."""
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
            metrics=dict(summary.metrics),
        )


class TaskDetailView(TaskView):
    """A task with its versions, oldest first."""

    versions: list[VersionView]


class Changed(BaseModel):
    """A change that every worker of this replica serves; other replicas follow."""

    task: str
    registry_revision: int


class AliasMovedView(Changed):
    """Where an alias points now, and pointed before."""

    alias: str
    version: int
    digest: str
    previous: str | None


def task_detail(record: TaskRecord, versions: tuple[VersionRecord, ...]) -> TaskDetailView:
    """The view of a task with its versions."""
    return TaskDetailView(
        **_task_fields(record), versions=[VersionView.of(version) for version in versions]
    )


def _task_fields(record: TaskRecord) -> dict[str, Any]:  # Any: checked by the model they fill
    return {
        "task": record.task,
        "tenant": record.tenant,
        "revision": record.revision,
        "description": record.options.description,
        "is_sensitive": record.options.is_sensitive,
        "aliases": {
            alias: AliasView(version=target.version, digest=format_digest(target.digest))
            for alias, target in record.aliases.items()
        },
        "created_at": record.created_at,
        "updated_at": record.updated_at,
    }
