"""The records that the registry holds and returns."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Self

import msgspec

from peterrec.model.spec import HeadKind
from peterrec.patches.bundle.outputs import Outputs
from peterrec.patches.bundle.verify import VerifiedBundle
from peterrec.patches.identity import DIGEST_DIGITS, Digest, TaskId, TaskRef, TenantId
from peterrec.patches.interning import shared, shared_mapping
from peterrec.patches.registry.api_keys import KeyRecord
from peterrec.patches.registry.availability import Availability
from peterrec.patches.registry.traffic import GuardReason, Observed, Traffic

SYSTEM = "system"
"""The actor of changes that no API key requested."""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The settings that an owner gives a task."""

    description: str = ""
    is_sensitive: bool = False


MAX_QUOTA = 10**13
"""The largest quota. Redis' scripts write whole numbers exactly up to 14 digits."""


DECIMALS = 4
"""Digits after the point of the work that listings show."""

LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100.0
"""Bounds of a tenant's weight."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """The most that a tenant may have of each; None means that there is no bound.

    ``bundle_bytes``, ``head_bytes`` and ``patch_bytes`` are sums over all versions, so a bundle
    that is registered for two tasks counts twice. ``outputs``, ``row_work`` and ``answer_bytes``
    bound each bundle, as its ``VersionSummary`` tells them. The last four bound what a tenant asks
    of all replicas together: ``requests_per_s`` holds for predictions and, separately, for all
    other calls.
    """

    tasks: int | None = None
    versions: int | None = None
    bundle_bytes: int | None = None
    head_bytes: int | None = None
    patch_bytes: int | None = None
    keys: int | None = None
    outputs: int | None = None
    row_work: int | None = None
    answer_bytes: int | None = None
    requests_per_s: int | None = None
    rows_per_s: int | None = None
    waiting_rows: int | None = None
    streams: int | None = None

    @property
    def bounds_requests(self) -> bool:
        """Whether there is one that is looked at when a request comes."""
        found = (self.requests_per_s, self.rows_per_s, self.waiting_rows, self.streams)
        return found != (None, None, None, None)

    def limits(self) -> dict[str, int]:
        """Return the bounds that there are, by name."""
        return {name: limit for name, limit in asdict(self).items() if limit is not None}


RATES = frozenset({"requests_per_s", "rows_per_s"})
"""The quotas of which 0 is no bound but a lock, and refused."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant has stored of that which ``Quotas`` bound."""

    tasks: int = 0
    versions: int = 0
    bundle_bytes: int = 0
    head_bytes: int = 0
    patch_bytes: int = 0
    keys: int = 0


@dataclass(frozen=True, slots=True)
class TenantOptions:
    """What an operator sets of a tenant.

    While several tenants wait for a device, each gets a part of it in proportion to its ``weight``.
    """

    description: str = ""
    quotas: Quotas = Quotas()
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """A tenant as its operator sees it.

    ``revision`` is the registry's revision at the last change of its options, and its ETag. It is 0
    for a tenant that nobody has put: ``default``, or one that is older than these records.
    """

    tenant: TenantId
    revision: int
    options: TenantOptions
    usage: Usage
    created_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class TenantEntry:
    """The part of a tenant that replicas need.

    ``deleted_revision`` is the registry's revision at which a tenant of this name was last deleted.
    """

    tenant: TenantId
    is_deleted: bool = False
    deleted_revision: int = 0
    quotas: Quotas = Quotas()
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """What listings show of a bundle, so that nobody has to fetch it.

    ``outputs_digest`` is equal for bundles whose answers can say the same; versions that were
    registered before it existed have an empty one.

    ``row_work`` is what a history of ``max_len`` items takes, in positions of the backbone; see
    ``BundleCost``. It is 0 for versions that were registered before it existed.
    """

    name: str
    kind: HeadKind
    outputs: int
    backbone: str
    size_bytes: int
    patch_bytes: int
    head_bytes: int
    metrics: Mapping[str, float]
    signed_by: tuple[str, ...] = ()
    outputs_digest: str = ""
    patch_work: float = 0.0
    row_work: float = 0.0
    answer_bytes: int = 0

    @classmethod
    def of(cls, bundle: VerifiedBundle) -> Self:
        """Summarise a verified bundle. Takes about a second per million items of a catalog."""
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
            outputs_digest=Outputs.of(bundle.manifest, bundle.tensors).digest,
            patch_work=round(bundle.cost.patch_work, DECIMALS),
            row_work=round(bundle.cost.history_work(bundle.manifest.input.max_len), DECIMALS),
            answer_bytes=bundle.cost.answer_bytes,
        )


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One registered bundle of a task. Numbers count 1, 2, 3 … and are never reused."""

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
class ActiveTraffic:
    """A task's traffic with the number of each version that takes part.

    ``revision`` is the registry's revision at which the traffic was put. It identifies the traffic.
    """

    traffic: Traffic
    versions: Mapping[Digest, int]
    revision: int


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task as its owner sees it.

    ``revision`` is the registry's revision at the task's last change, and the task's ETag.
    """

    tenant: TenantId
    task: TaskId
    revision: int
    options: TaskOptions
    aliases: Mapping[str, AliasTarget]
    created_at: datetime
    updated_at: datetime
    traffic: ActiveTraffic | None = None

    @property
    def ref(self) -> TaskRef:
        """The task's identity."""
        return TaskRef(self.tenant, self.task)


class TaskEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The part of a task that replicas need: the versions that its aliases and traffic name.

    Every process keeps tens of thousands, so they are small: equal parts are shared, and there is
    no separate mapping of versions. ``numbers`` are the version numbers in ascending order, and
    ``packed`` has their digests one after another. A single digest is that very string.

    As a replica serves it, ``missing`` has the aliases (name to number) that nothing answers for,
    because their version is not loaded and none was before. These are not in ``aliases``.

    ``availability`` says which items are to be had now; None means all. ``is_sensitive`` is
    what the owner says of the task.
    """

    tenant: TenantId
    task: TaskId
    revision: int
    aliases: Mapping[str, int]
    numbers: tuple[int, ...]
    packed: str
    traffic: ActiveTraffic | None = None
    missing: Mapping[str, int] | None = None
    availability: Availability | None = None
    is_sensitive: bool = False

    @classmethod
    def of(
        cls,
        ref: TaskRef,
        revision: int,
        aliases: Mapping[str, int],
        versions: Mapping[int, Digest],
        traffic: ActiveTraffic | None = None,
        missing: Mapping[str, int] | None = None,
        availability: Availability | None = None,
        is_sensitive: bool = False,
    ) -> Self:
        """Make an entry from aliases (name to number) and versions (number to digest)."""
        numbers = tuple(sorted(versions))
        return cls(
            shared(ref.tenant),
            ref.task,
            revision,
            shared_mapping(aliases),
            shared(numbers),
            "".join(versions[number] for number in numbers),
            traffic,
            missing or None,
            availability,
            is_sensitive,
        )

    @property
    def ref(self) -> TaskRef:
        """The task's identity."""
        return TaskRef(self.tenant, self.task)

    @property
    def digests(self) -> tuple[Digest, ...]:
        """The digests of the versions that an alias or the traffic names."""
        return tuple(map(self._digest_at, range(len(self.numbers))))

    @property
    def versions(self) -> dict[int, Digest]:
        """The digests by version number."""
        return dict(zip(self.numbers, self.digests, strict=True))

    def digest_of(self, number: int) -> Digest | None:
        """Return a version's digest; None if neither an alias nor the traffic names it."""
        return self._digest_at(self.numbers.index(number)) if number in self.numbers else None

    def _digest_at(self, place: int) -> Digest:
        return Digest(self.packed[DIGEST_DIGITS * place : DIGEST_DIGITS * (place + 1)])

    def shared(self, own: Callable[[Digest], Digest]) -> Self:
        """Return an equal entry whose parts are shared with other entries of this process.

        ``own`` returns the string that this process already holds for a digest.
        """
        versions = {number: own(digest) for number, digest in self.versions.items()}
        return self.of(
            self.ref,
            self.revision,
            self.aliases,
            versions,
            self.traffic,
            self.missing,
            self.availability,
            self.is_sensitive,
        )


@dataclass(frozen=True, slots=True)
class TaskDetail:
    """A task with all its versions, oldest first."""

    record: TaskRecord
    versions: tuple[VersionRecord, ...]


class Position(NamedTuple):
    """A point in a registry's history: the number of a change, its random mark, and the registry.

    A number can occur twice if Redis came back with an older state and continued from there. The
    mark distinguishes the two changes. ``identity`` is the random id of the registry, empty if it
    has none yet.
    """

    revision: int
    mark: str
    identity: str = ""


@dataclass(frozen=True, slots=True)
class RegistrySnapshot:
    """Everything that a replica needs to serve, at one revision.

    ``touched`` are the tasks that may differ from the snapshot on which this one is based; None if
    it was read as a whole.
    """

    revision: int
    tasks: Mapping[TaskRef, TaskEntry]
    keys: Mapping[str, KeyRecord]
    mark: str = ""
    tenants: Mapping[TenantId, TenantEntry] = field(default_factory=dict)
    touched: frozenset[TaskRef] | None = field(default=None, compare=False)
    identity: str = ""

    @property
    def position(self) -> Position:
        """The position from which ``ChangeFeed.changes`` continues."""
        return Position(self.revision, self.mark, self.identity)

    @property
    def last_deletion(self) -> int:
        """The revision at which a tenant was deleted last; 0 if none was."""
        return max((each.deleted_revision for each in self.tenants.values()), default=0)


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """The present state of the tasks, keys and tenants that were touched between two positions.

    ``task_count`` and ``key_count`` are how many tasks and keys there are at the second one.
    """

    position: Position
    tasks: tuple[TaskEntry, ...] = ()
    removed_tasks: tuple[TaskRef, ...] = ()
    keys: tuple[KeyRecord, ...] = ()
    removed_keys: tuple[str, ...] = ()
    tenants: tuple[TenantEntry, ...] = ()
    task_count: int = 0
    key_count: int = 0

    def applied_to(self, snapshot: RegistrySnapshot) -> RegistrySnapshot:
        """Return the snapshot of the first position, brought forward to the second."""
        tasks, keys = dict(snapshot.tasks), dict(snapshot.keys)
        changed = {entry.ref: entry for entry in self.tasks}
        tasks.update(changed)
        keys.update((record.key_id, record) for record in self.keys)
        for ref in self.removed_tasks:
            tasks.pop(ref, None)
        for key_id in self.removed_keys:
            keys.pop(key_id, None)
        tenants = {**snapshot.tenants, **{each.tenant: each for each in self.tenants}}
        touched = frozenset(changed).union(self.removed_tasks)
        revision, mark, identity = self.position
        return RegistrySnapshot(revision, tasks, keys, mark, tenants, touched, identity)

    def leaves(self, snapshot: RegistrySnapshot) -> bool:
        """Return whether the registry holds as much as a snapshot that was brought forward."""
        return (self.task_count, self.key_count) == (len(snapshot.tasks), len(snapshot.keys))


class VersionAdded(NamedTuple):
    """The result of registering a version.

    At ``revision`` the version is registered and the alias names it.
    """

    revision: int
    version: int
    was_created: bool


class TaskPut(NamedTuple):
    """The result of creating or changing a task."""

    revision: int
    was_created: bool


class TenantPut(NamedTuple):
    """The result of creating or changing a tenant."""

    revision: int
    was_created: bool


class Erased(NamedTuple):
    """How many tasks, versions and keys were removed with a tenant, and how many stored bundles."""

    tasks: int = 0
    versions: int = 0
    keys: int = 0
    bundles: int = 0


class TenantDeleted(NamedTuple):
    """The result of deleting a tenant."""

    revision: int
    erased: Erased


@dataclass(frozen=True, slots=True)
class AliasMoved:
    """The version that an alias names after a change; ``previous`` is None for a new alias."""

    revision: int
    current: AliasTarget
    previous: Digest | None


@dataclass(frozen=True, slots=True)
class RolledBack(AliasMoved):
    """The whole state that was restored, in addition to the version that the given alias names.

    ``new_outputs`` lists how that version's answers differ from those before, if they do.
    """

    aliases: Mapping[str, AliasTarget]
    traffic: Traffic | None
    new_outputs: tuple[str, ...] = ()


class TrafficChanged(NamedTuple):
    """A task's traffic before and after a change. None means that prod answers everything."""

    revision: int
    current: Traffic | None
    previous: Traffic | None


class AvailabilityChanged(NamedTuple):
    """The result of replacing or removing a task's list; ``was_changed`` is False if it was so."""

    revision: int
    was_changed: bool


class GuardTripped(NamedTuple):
    """The result of a guard's verdict.

    ``was_removed`` is False if the traffic had been changed or removed before.
    """

    revision: int
    was_removed: bool


class Collected(NamedTuple):
    """A number of blobs and their bytes."""

    blobs: int
    size_bytes: int


class EventAction(StrEnum):
    """What a change did."""

    PUT_TASK = "put_task"
    DELETE_TASK = "delete_task"
    ADD_VERSION = "add_version"
    DELETE_VERSION = "delete_version"
    SET_ALIAS = "set_alias"
    DELETE_ALIAS = "delete_alias"
    PUT_TRAFFIC = "put_traffic"
    CLEAR_TRAFFIC = "clear_traffic"
    TRIP_GUARD = "trip_guard"
    ROLLBACK = "rollback"
    PUT_AVAILABILITY = "put_availability"
    CLEAR_AVAILABILITY = "clear_availability"
    CREATE_KEY = "create_key"
    REVOKE_KEY = "revoke_key"
    ROTATE_KEY = "rotate_key"
    REVOKE_SECRET = "revoke_secret"  # noqa: S105  # the name of a change
    PUT_TENANT = "put_tenant"
    DELETE_TENANT = "delete_tenant"
    PUT_WEBHOOK = "put_webhook"
    DELETE_WEBHOOK = "delete_webhook"
    DISABLE_WEBHOOK = "disable_webhook"
    IMPORT = "import"
    RESTORE = "restore"
    ACCEPT = "accept"


@dataclass(frozen=True, slots=True)
class RegistryEvent:
    """One change in the audit trail: who changed what, with the values before and after.

    ``aliases``, ``traffic`` and ``options`` have the values after the change, if it touched them;
    ``reason`` and ``observed`` are why a guard acted, and ``quotas`` and ``weight`` those that a
    tenant got.
    """

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
    options: TaskOptions | None = None
    previous_options: TaskOptions | None = None
    aliases: Mapping[str, AliasTarget] | None = None
    previous_aliases: Mapping[str, AliasTarget] | None = None
    traffic: Traffic | None = None
    previous_traffic: Traffic | None = None
    reason: GuardReason | None = None
    observed: Observed | None = None
    note: str | None = None
    quotas: Quotas | None = None
    weight: float | None = None
