"""The registry: tasks, versions, aliases, traffic, keys and bundles in Redis, content-addressed."""

from collections.abc import Callable, Sequence

import msgspec

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import (
    AliasInUse,
    AliasNotFound,
    BlobMissing,
    NoProdVersion,
    NothingToRollBack,
    StaleRevision,
    TaskNotFound,
    VersionInUse,
    VersionNotFound,
)
from peterrec.patches.identity import (
    Digest,
    TaskId,
    TaskRef,
    TenantId,
    check_name,
    format_digest,
)
from peterrec.patches.redis.client import Client, drop_idle_connections, open_redis, redis_errors
from peterrec.patches.registry import scripts
from peterrec.patches.registry.api_keys import KeyRecord, Scope
from peterrec.patches.registry.blob_store import BLOB_GRACE_S, Blobs, BlobStore
from peterrec.patches.registry.changes import Feed
from peterrec.patches.registry.decode import (
    Outcome,
    pairs_of,
    task_record,
    text_of,
    traffic_of,
    traffic_text,
    version_record,
)
from peterrec.patches.registry.key_store import KeyStore
from peterrec.patches.registry.records import (
    AliasMoved,
    AliasTarget,
    ChangeSet,
    Collected,
    GuardTripped,
    Position,
    RegistryEvent,
    RegistrySnapshot,
    RolledBack,
    TaskDetail,
    TaskOptions,
    TaskPut,
    TaskRecord,
    TrafficChanged,
    VersionAdded,
    VersionSummary,
)
from peterrec.patches.registry.redis_store import Argument, Store, field_of
from peterrec.patches.registry.traffic import PROD, GuardReason, Observed, Traffic

__all__ = ["DEFAULT_ALIAS", "SYSTEM", "Registry", "open_redis"]

DEFAULT_ALIAS = PROD
SYSTEM = "system"
"""The actor of changes that no key asked for."""

EVENT_PAGE = 1000


class Registry:
    """All that replicas share. Every change is one atomic step and one revision.

    ``if_match`` of a change is the task's revision that the caller saw: 0 means that the task must
    not exist yet, None that it does not matter. Raises RegistryUnavailable if Redis is away.
    """

    def __init__(self, redis: Client, prefix: str = "peterrec") -> None:
        self.store = Store(redis, prefix)
        self._blobs = BlobStore(self.store)
        self._keys = KeyStore(self.store)
        self._feed = Feed(self.store)

    async def close(self) -> None:
        """Give the connections back."""
        await self.store.redis.aclose()

    async def drop_idle_connections(self) -> None:
        """Connect anew at the next call: after a silence the others may be dead as well."""
        await drop_idle_connections(self.store.redis)

    # Bundles

    async def put_blob(self, data: bytes) -> Digest:
        """Store a bundle's bytes, all or nothing; storing them again only keeps them alive."""
        return await self._blobs.put(data)

    async def get_blob(self, digest: Digest) -> bytes:
        """A bundle's bytes, checked against their digest; BlobMissing or BlobCorrupt otherwise."""
        return await self._blobs.get(digest)

    async def get_blobs(self, digests: Sequence[Digest], max_bytes: int) -> Blobs:
        """The first bundle's bytes, and as many more as ``max_bytes`` leaves room for.

        A value is what is wrong if a bundle is missing or damaged.
        """
        return await self._blobs.get_some(digests, max_bytes)

    async def has_blob(self, digest: Digest) -> bool:
        """True if the bundle's bytes are stored completely."""
        return await self._blobs.has(digest)

    async def blob_totals(self) -> Collected:
        """How many blobs are stored, and their bytes."""
        return await self._blobs.totals()

    async def gc(self, *, dry_run: bool, grace_s: float = BLOB_GRACE_S) -> Collected:
        """Free, or only count, the bytes that no version has named for ``grace_s``."""
        return await self._blobs.collect(grace_s, dry_run=dry_run)

    # Tasks and versions

    async def add_version(
        self,
        tenant: TenantId,
        task: TaskId,
        digest: Digest,
        summary: VersionSummary,
        actor: str,
        alias: str | None = DEFAULT_ALIAS,
        if_match: int | None = None,
    ) -> VersionAdded:
        """Register a stored bundle as a task's next version and let the alias name it.

        Creates the task if needed. The same digest again keeps its number; the alias still moves.
        """
        if alias is not None:
            check_name(alias, "alias")
        outcome = await self._change(
            scripts.ADD_VERSION,
            TaskRef(tenant, task),
            actor,
            if_match,
            digest=digest,
            summary=msgspec.json.encode(summary).decode(),
            alias=alias,
        )
        return VersionAdded(outcome.revision, outcome.version, outcome.was_created)

    async def set_alias(
        self,
        tenant: TenantId,
        task: TaskId,
        alias: str,
        digest: Digest,
        actor: str,
        if_match: int | None = None,
    ) -> AliasMoved:
        """Let an alias name another registered version."""
        check_name(alias, "alias")
        ref = TaskRef(tenant, task)
        outcome = await self._change(
            scripts.SET_ALIAS, ref, actor, if_match, digest=digest, alias=alias
        )
        assert outcome.digest is not None
        current = AliasTarget(outcome.digest, outcome.version)
        return AliasMoved(outcome.revision, current, outcome.previous)

    async def delete_alias(
        self,
        tenant: TenantId,
        task: TaskId,
        alias: str,
        actor: str,
        if_match: int | None = None,
    ) -> int:
        """Let an alias name nothing; returns the revision. Not prod while there is traffic."""
        check_name(alias, "alias")
        ref = TaskRef(tenant, task)
        return (
            await self._change(scripts.DELETE_ALIAS, ref, actor, if_match, alias=alias)
        ).revision

    async def rollback(
        self,
        tenant: TenantId,
        task: TaskId,
        actor: str,
        alias: str = DEFAULT_ALIAS,
        if_match: int | None = None,
    ) -> RolledBack:
        """Restore the task's previous state, aliases and traffic, in one step; again: one further.

        States in which ``alias`` named nothing are passed over, so that a rollback never leaves it
        without a version; so is what a guard removed. The answer tells where ``alias`` points.
        """
        check_name(alias, "alias")
        ref = TaskRef(tenant, task)
        outcome = await self._change(scripts.ROLLBACK, ref, actor, if_match, alias=alias)
        assert outcome.digest is not None
        return RolledBack(
            outcome.revision,
            AliasTarget(outcome.digest, outcome.version),
            outcome.previous,
            outcome.aliases,
            traffic_of(outcome.traffic),
        )

    async def delete_version(
        self,
        tenant: TenantId,
        task: TaskId,
        digest: Digest,
        actor: str,
        if_match: int | None = None,
    ) -> int:
        """Forget a version that neither an alias nor the traffic names; returns the revision."""
        ref = TaskRef(tenant, task)
        return (
            await self._change(scripts.DELETE_VERSION, ref, actor, if_match, digest=digest)
        ).revision

    async def put_task(
        self,
        tenant: TenantId,
        task: TaskId,
        options: TaskOptions,
        actor: str,
        if_match: int | None = None,
    ) -> TaskPut:
        """Create a task without versions, or replace the options of an existing one."""
        ref = TaskRef(tenant, task)
        outcome = await self._change(
            scripts.PUT_TASK,
            ref,
            actor,
            if_match,
            description=options.description,
            is_sensitive=options.is_sensitive,
        )
        return TaskPut(outcome.revision, outcome.was_created)

    async def delete_task(
        self, tenant: TenantId, task: TaskId, actor: str, if_match: int | None = None
    ) -> int:
        """Forget a task with its versions, aliases and traffic; returns the revision."""
        ref = TaskRef(tenant, task)
        return (await self._change(scripts.DELETE_TASK, ref, actor, if_match)).revision

    async def get_task(self, tenant: TenantId, task: TaskId) -> TaskDetail:
        """A task with its versions; TaskNotFound otherwise."""
        field = field_of(TaskRef(tenant, task))
        stored, versions = await self.store.run(
            scripts.READ_TASK, self.store.keys(field), {"field": field}
        )
        if not stored:
            raise TaskNotFound(task)
        records = [version_record(text_of(digest), text) for digest, text in pairs_of(versions)]
        records.sort(key=lambda record: record.version)
        return TaskDetail(task_record(field, stored), tuple(records))

    async def list_tasks(self, tenant: TenantId) -> tuple[TaskRecord, ...]:
        """A tenant's tasks by name."""
        with redis_errors():
            stored = await self.store.redis.hgetall(self.store.key("tasks"))
        mine = (field for field in map(text_of, stored) if field.startswith(f"{tenant}/"))
        return tuple(task_record(field, stored[field.encode()]) for field in sorted(mine))

    # Traffic

    async def put_traffic(
        self,
        tenant: TenantId,
        task: TaskId,
        traffic: Traffic,
        actor: str,
        if_match: int | None = None,
    ) -> TrafficChanged:
        """Split the task's requests. VersionNotFound, or NoProdVersion if prod names nothing."""
        outcome = await self._change(
            scripts.PUT_TRAFFIC,
            TaskRef(tenant, task),
            actor,
            if_match,
            traffic=traffic_text(traffic),
            digests=list(traffic.digests()),
        )
        return _traffic_changed(outcome)

    async def clear_traffic(
        self, tenant: TenantId, task: TaskId, actor: str, if_match: int | None = None
    ) -> TrafficChanged:
        """Let prod answer everything; nothing happens if it does already."""
        outcome = await self._change(scripts.CLEAR_TRAFFIC, TaskRef(tenant, task), actor, if_match)
        return _traffic_changed(outcome)

    async def trip_guard(
        self,
        tenant: TenantId,
        task: TaskId,
        reason: GuardReason,
        observed: Observed,
        traffic_revision: int,
    ) -> GuardTripped:
        """Remove the traffic that a guard has judged, once, whoever else saw it too.

        ``traffic_revision`` is that of the judged ActiveTraffic: if the task has other traffic by
        now, or none, nothing happens. Rollbacks do not bring the judged versions' traffic back.
        """
        outcome = await self._change(
            scripts.TRIP_GUARD,
            TaskRef(tenant, task),
            SYSTEM,
            None,
            traffic_revision=traffic_revision,
            reason=reason,
            observed=msgspec.json.encode(observed).decode(),
        )
        return GuardTripped(outcome.revision, outcome.was_removed)

    # API keys

    async def create_key(
        self, tenant: TenantId, scopes: Sequence[Scope], name: str, actor: str = SYSTEM
    ) -> tuple[str, KeyRecord]:
        """A new key's plain text, which is stored nowhere, and its record."""
        created = await self._keys.create(tenant, scopes, name, actor, is_first_only=False)
        assert created is not None
        return created

    async def ensure_first_key(self, tenant: TenantId, name: str) -> tuple[str, KeyRecord] | None:
        """A key with both scopes if there is no key at all; None otherwise. Atomic."""
        scopes = (Scope("predict"), Scope("admin"))
        return await self._keys.create(tenant, scopes, name, SYSTEM, is_first_only=True)

    async def list_keys(self, tenant: TenantId) -> tuple[KeyRecord, ...]:
        """A tenant's keys, oldest first."""
        return await self._keys.listed(tenant)

    async def revoke_key(self, tenant: TenantId, key_id: str, actor: str = SYSTEM) -> int:
        """Forget a key; returns the revision. KeyNotFound if the tenant has no such key."""
        return await self._keys.revoke(tenant, key_id, actor)

    # Following

    async def revision(self) -> int:
        """The number of the last change; 0 in an empty registry."""
        return await self._feed.revision()

    async def snapshot(self) -> RegistrySnapshot:
        """Everything replicas serve by, read in one atomic step."""
        return await self._feed.snapshot()

    async def changes(self, since: Position) -> ChangeSet | None:
        """What was touched since a snapshot's or change set's position, in one atomic step.

        None calls for a whole snapshot: too much was changed, or too long ago, or Redis came back
        with another past.
        """
        return await self._feed.changes(since)

    async def catch_up(self, known: RegistrySnapshot | None) -> RegistrySnapshot:
        """The registry as it is now, from what is known of it if possible; the same if it is so."""
        found = None if known is None else await self._feed.changes(known.position)
        if known is None or found is None:
            return await self._feed.snapshot()
        return known if found.position == known.position else found.applied_to(known)

    async def wait_for_change(self, since: int, timeout_s: float) -> int:
        """Wait until the revision is another than ``since``; returns what it is, changed or not."""
        return await self._feed.wait_for_change(since, timeout_s)

    async def events(self, since: int = 0, limit: int = EVENT_PAGE) -> tuple[RegistryEvent, ...]:
        """The changes after a revision, oldest first, at most ``limit``; the oldest are dropped."""
        return await self._feed.events(since, limit)

    async def oldest_event(self) -> int:
        """The revision of the oldest change that is still kept; 0 if there is none."""
        return await self._feed.oldest_event()

    # Plumbing

    async def _change(
        self, script: str, ref: TaskRef, actor: str, if_match: int | None, **argument: Argument
    ) -> Outcome:
        """Run a script on one task; its refusals become errors."""
        document = argument | {"tenant": ref.tenant, "task": ref.task, "if_match": if_match}
        outcome = await self.store.change(script, field_of(ref), actor=actor, **document)
        if outcome.error:
            digest = argument.get("digest") or outcome.digest or ""
            alias = argument.get("alias") or ""
            raise _refusal(outcome, ref.task, str(digest), str(alias), if_match)
        return outcome


def _traffic_changed(outcome: Outcome) -> TrafficChanged:
    return TrafficChanged(
        outcome.revision, traffic_of(outcome.traffic), traffic_of(outcome.previous_traffic)
    )


def _refusal(
    outcome: Outcome, task: str, digest: str, alias: str, if_match: int | None
) -> PeterRecError:
    makers: dict[str, Callable[[], PeterRecError]] = {
        "stale": lambda: StaleRevision(task, if_match or 0, outcome.found),
        "task_not_found": lambda: TaskNotFound(task),
        "version_not_found": lambda: VersionNotFound(task, format_digest(Digest(digest))),
        "version_in_use": lambda: VersionInUse(
            task, list(outcome.aliases), is_in_traffic=outcome.is_in_traffic
        ),
        "alias_not_found": lambda: AliasNotFound(task, alias),
        "alias_in_use": lambda: AliasInUse(task, alias),
        "no_prod_version": lambda: NoProdVersion(task),
        "nothing_to_roll_back": lambda: NothingToRollBack(task, alias),
        "blob_missing": lambda: BlobMissing(digest),
    }
    assert outcome.error is not None
    return makers[outcome.error]()
