"""What the registry holds and answers, as frozen data."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Self

from model.spec import HeadKind
from patches.api_keys import KeyRecord
from patches.identity import Digest, TaskId, TaskRef, TenantId
from patches.verify import VerifiedBundle


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What an owner says about a task."""

    description: str = ""
    is_sensitive: bool = False


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """What listings show of a bundle without fetching it."""

    name: str
    kind: HeadKind
    outputs: int
    backbone: str
    size_bytes: int
    patch_bytes: int
    head_bytes: int
    metrics: Mapping[str, float]
    signed_by: tuple[str, ...] = ()

    @classmethod
    def of(cls, bundle: VerifiedBundle) -> Self:
        """The summary of a verified bundle."""
        return cls(
            name=bundle.manifest.name,
            kind=bundle.manifest.kind,
            outputs=bundle.manifest.head.outputs,
            backbone=bundle.manifest.backbone,
            size_bytes=bundle.size_bytes,
            patch_bytes=bundle.patch_bytes,
            head_bytes=bundle.head_bytes,
            metrics=bundle.manifest.metrics,
            signed_by=bundle.signed_by,
        )


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One registered bundle of a task; ``version`` counts 1, 2, 3 … and is never used again."""

    digest: Digest
    version: int
    created_at: datetime
    actor: str
    summary: VersionSummary


@dataclass(frozen=True, slots=True)
class AliasTarget:
    """The version that an alias names."""

    digest: Digest
    version: int


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task as replicas need it; ``revision`` is its ETag: the registry's at its last change."""

    tenant: TenantId
    task: TaskId
    revision: int
    options: TaskOptions
    aliases: Mapping[str, AliasTarget]
    created_at: datetime
    updated_at: datetime

    @property
    def ref(self) -> TaskRef:
        """The task's identity."""
        return TaskRef(self.tenant, self.task)


@dataclass(frozen=True, slots=True)
class TaskDetail:
    """A task with all its versions, oldest first."""

    record: TaskRecord
    versions: tuple[VersionRecord, ...]


@dataclass(frozen=True, slots=True)
class RegistrySnapshot:
    """Everything a replica serves by, at one revision."""

    revision: int
    tasks: Mapping[TaskRef, TaskRecord]
    keys: Mapping[str, KeyRecord]


class VersionAdded(NamedTuple):
    """``revision`` is one at which the version is registered and the alias names it."""

    revision: int
    version: int
    was_created: bool


class TaskPut(NamedTuple):
    """A task's revision after it was created or changed."""

    revision: int
    was_created: bool


class AliasMoved(NamedTuple):
    """Where an alias points now; ``previous`` is None if it is new."""

    revision: int
    current: AliasTarget
    previous: Digest | None


class EventAction(StrEnum):
    """What a change did."""

    PUT_TASK = "put_task"
    DELETE_TASK = "delete_task"
    ADD_VERSION = "add_version"
    DELETE_VERSION = "delete_version"
    SET_ALIAS = "set_alias"
    ROLLBACK = "rollback"
    CREATE_KEY = "create_key"
    REVOKE_KEY = "revoke_key"


@dataclass(frozen=True, slots=True)
class RegistryEvent:
    """One change, as the audit trail keeps it: who did what to which task, from and to what."""

    revision: int
    action: EventAction
    actor: str
    at: datetime
    tenant: TenantId | None = None
    task: TaskId | None = None
    alias: str | None = None
    previous: Digest | None = None
    current: Digest | None = None
    version: int | None = None
    key_id: str | None = None
