"""The registry in Redis: tasks, versions, aliases, traffic, API keys and bundles."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from peterrec.model.errors import PeterRecError
from peterrec.patches.bundle.outputs import Outputs, output_differences
from peterrec.patches.errors import (
    AliasInUse,
    AliasNotFound,
    BlobMissing,
    BundleRejected,
    NoProdVersion,
    NothingToRollBack,
    OutputsDiffer,
    RegistryChanged,
    RegistryUnavailable,
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
from peterrec.patches.redis.client import Client, open_redis, redis_errors
from peterrec.patches.registry import scripts
from peterrec.patches.registry.acknowledgement import Acknowledgement
from peterrec.patches.registry.availability import Availability
from peterrec.patches.registry.blobs import BlobStore
from peterrec.patches.registry.feed import ChangeFeed
from peterrec.patches.registry.key_store import KeyStore
from peterrec.patches.registry.losses import Knowledge
from peterrec.patches.registry.outcomes import OutcomeStore
from peterrec.patches.registry.outputs import read_outputs
from peterrec.patches.registry.records import (
    SYSTEM,
    AliasMoved,
    AliasTarget,
    AvailabilityChanged,
    GuardTripped,
    Position,
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
from peterrec.patches.registry.serialization import (
    Outcome,
    availability_of,
    pairs_of,
    task_record,
    text_of,
    traffic_of,
    traffic_text,
    version_record,
)
from peterrec.patches.registry.shares import ShareStore
from peterrec.patches.registry.tenants import TenantStore
from peterrec.patches.registry.traffic import PROD, GuardReason, Observed, Traffic
from peterrec.patches.registry.webhooks import WebhookStore

__all__ = ["DEFAULT_ALIAS", "SYSTEM", "Registry", "open_redis"]

DEFAULT_ALIAS = PROD

OTHER_OUTPUTS = frozenset({"outputs_differ", "outputs_unknown"})
"""What a script reports if a version answers something else, or does not say what it answers."""

COMPARE_TIMEOUT_S = 2.0
"""Seconds for comparing the outputs before and after a rollback, which is done already by then."""


class Registry:
    """Everything that replicas share. Each change is one atomic step and one revision.

    ``blobs`` has the bundles' bytes, ``tenants`` the tenants, ``keys`` the API keys, ``feed`` is
    what replicas follow, ``shares`` what they lend each other, ``outcomes`` what came of
    predictions, and ``webhooks`` who is told of changes; the methods here are about tasks.
    ``if_match`` of a change is the task's revision that the caller saw: 0 means that the task must
    not exist yet, None that any revision is accepted.
    RegistryUnavailable if Redis is away, RegistryLost if it does not hold what ``knowledge`` says.
    """

    def __init__(
        self,
        redis: Client,
        prefix: str = "peterrec",
        knowledge: Knowledge | None = None,
        acknowledgement: Acknowledgement | None = None,
    ) -> None:
        self.store = Store(redis, prefix, knowledge, acknowledgement)
        self.blobs = BlobStore(self.store)
        self.tenants = TenantStore(self.store)
        self.keys = KeyStore(self.store, self.tenants)
        self.feed = ChangeFeed(self.store)
        self.shares = ShareStore(self.store)
        self.outcomes = OutcomeStore(self.store)
        self.webhooks = WebhookStore(self.store, self.tenants)

    async def close(self) -> None:
        """Close the connections."""
        await self.store.close()

    async def drop_idle_connections(self) -> None:
        """Make the next call connect again, because after a silence all connections may be dead."""
        await self.store.drop_idle_connections()

    async def accept(self, lost: Position, seen: Position, actor: str) -> int:
        """Let what Redis holds now take the place of a lost registry; return the revision.

        Replicas that know the registry of ``lost`` go over to it, however much they know.
        RegistryChanged unless Redis is still at the position that the operator has ``seen``.
        """
        outcome = await self.store.unguarded().change(
            scripts.ACCEPT,
            lost={"identity": lost.identity, "revision": lost.revision},
            since=seen.revision,
            seen_mark=seen.mark,
            actor=actor,
            note=f"in place of a registry at revision {lost.revision}",
        )
        if outcome.error:
            raise RegistryChanged
        return outcome.revision

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
        *,
        allow_new_outputs: bool = False,
        origin: str | None = None,
    ) -> VersionAdded:
        """Register a stored bundle as a task's next version and point the alias at it.

        Creates the task if needed. A digest that is registered already keeps its number; the alias
        still moves. OutputsDiffer, with nothing changed, if callers of the alias would get other
        outputs (``docs/rollout.md``), unless they are allowed. ``origin`` is what the audit trail
        notes of where the bundle came from.
        """
        if alias is not None:
            check_name(alias, "alias")
        outcome = await self._switch(
            scripts.ADD_VERSION,
            TaskRef(tenant, task),
            actor,
            if_match,
            allow_new_outputs=allow_new_outputs,
            outputs={digest: summary.outputs_digest} if summary.outputs_digest else {},
            digest=digest,
            summary=msgspec.json.encode(summary).decode(),
            alias=alias,
            origin=origin,
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
        *,
        allow_new_outputs: bool = False,
    ) -> AliasMoved:
        """Point an alias at another registered version; OutputsDiffer as of ``add_version``."""
        check_name(alias, "alias")
        outcome = await self._switch(
            scripts.SET_ALIAS,
            TaskRef(tenant, task),
            actor,
            if_match,
            allow_new_outputs=allow_new_outputs,
            digest=digest,
            alias=alias,
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
        """Remove an alias and return the revision; prod can't be removed while there is traffic."""
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
        """Restore the task's previous state (aliases and traffic) in one step.

        A second rollback restores the state before that one. States in which ``alias`` named
        nothing are skipped, so a rollback never leaves it without a version, and traffic that a
        guard has removed stays removed. The result has the version that ``alias`` names now.

        A rollback restores what callers got before, so other outputs do not prevent it: the result
        lists them.
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
            await self._new_outputs(outcome),
        )

    async def delete_version(
        self,
        tenant: TenantId,
        task: TaskId,
        digest: Digest,
        actor: str,
        if_match: int | None = None,
    ) -> int:
        """Remove a version that neither an alias nor the traffic names; return the revision."""
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
        """Remove a task with its versions, aliases and traffic; return the revision."""
        ref = TaskRef(tenant, task)
        return (await self._change(scripts.DELETE_TASK, ref, actor, if_match)).revision

    async def get_task(self, tenant: TenantId, task: TaskId) -> TaskDetail:
        """Return a task with its versions; TaskNotFound if there is none."""
        field = field_of(TaskRef(tenant, task))
        stored, versions, _ = await self.store.run(
            scripts.READ_TASK, self.store.keys(field), {"field": field}
        )
        if not stored:
            raise TaskNotFound(task)
        records = [version_record(text_of(digest), text) for digest, text in pairs_of(versions)]
        records.sort(key=lambda record: record.version)
        return TaskDetail(task_record(field, stored), tuple(records))

    async def list_tasks(self, tenant: TenantId) -> tuple[TaskRecord, ...]:
        """Return a tenant's tasks in the order of their names."""
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
        *,
        allow_new_outputs: bool = False,
    ) -> TrafficChanged:
        """Split the task's requests among versions.

        Raises VersionNotFound, or NoProdVersion if the alias prod names no version. OutputsDiffer
        if a canary or shadow has other outputs than prod, unless that is allowed.
        """
        outcome = await self._switch(
            scripts.PUT_TRAFFIC,
            TaskRef(tenant, task),
            actor,
            if_match,
            allow_new_outputs=allow_new_outputs,
            traffic=traffic_text(traffic),
            digests=list(traffic.digests()),
        )
        return _traffic_changed(outcome)

    async def clear_traffic(
        self, tenant: TenantId, task: TaskId, actor: str, if_match: int | None = None
    ) -> TrafficChanged:
        """Let prod answer everything again; no change if it already does."""
        outcome = await self._change(scripts.CLEAR_TRAFFIC, TaskRef(tenant, task), actor, if_match)
        return _traffic_changed(outcome)

    # Availability

    async def put_availability(
        self,
        tenant: TenantId,
        task: TaskId,
        availability: Availability,
        actor: str,
        if_match: int | None = None,
    ) -> AvailabilityChanged:
        """Replace the list of the task's items that are to be had, or not; QuotaExceeded."""
        items = len(availability.items)
        outcome = await self._change(
            scripts.PUT_AVAILABILITY,
            TaskRef(tenant, task),
            actor,
            if_match,
            text=availability.stored,
            note=f"{items} {availability.mode}",
        )
        return AvailabilityChanged(outcome.revision, outcome.was_changed)

    async def clear_availability(
        self, tenant: TenantId, task: TaskId, actor: str, if_match: int | None = None
    ) -> AvailabilityChanged:
        """Let the task answer with every item of its catalog again."""
        ref = TaskRef(tenant, task)
        outcome = await self._change(scripts.CLEAR_AVAILABILITY, ref, actor, if_match)
        return AvailabilityChanged(outcome.revision, outcome.was_changed)

    async def get_availability(self, tenant: TenantId, task: TaskId) -> Availability | None:
        """Return the task's list; None if every item is to be had."""
        field = field_of(TaskRef(tenant, task))
        with redis_errors():
            found = await self.store.redis.hget(self.store.key("availability"), field)
        return None if found is None else availability_of(field, found)

    async def trip_guard(
        self,
        tenant: TenantId,
        task: TaskId,
        reason: GuardReason,
        observed: Observed,
        traffic_revision: int,
    ) -> GuardTripped:
        """Remove the traffic that a guard has judged, once for all replicas that judged it.

        ``traffic_revision`` is the revision of the judged ActiveTraffic. If the task now has other
        traffic, or none, nothing changes. Later rollbacks do not restore the removed traffic.
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

    async def compare_outputs(
        self, tenant: TenantId, task: TaskId, alias: str, outputs: Outputs
    ) -> None:
        """Raise OutputsDiffer if the version that the alias names now has other outputs.

        Nothing is compared if there is no such task or alias.
        """
        check_name(alias, "alias")
        with suppress(TaskNotFound):
            target = (await self.get_task(tenant, task)).record.aliases.get(alias)
            if target is not None:
                compared = await self._compare(target.digest, outputs)
                if compared.differences:
                    raise OutputsDiffer(task, target.version, alias, compared.differences)

    async def _switch(
        self,
        script: str,
        ref: TaskRef,
        actor: str,
        if_match: int | None,
        *,
        allow_new_outputs: bool,
        outputs: Mapping[str, str] = {},
        **argument: Argument,
    ) -> Outcome:
        """Run a script that lets another version answer, unless it would answer something else.

        The script compares the digests of the outputs itself, so no other change can come between.
        Those that an old version lacks are read from its bundle and given to the script.
        """
        argument["allow_new_outputs"] = allow_new_outputs
        known: dict[str, Any] = dict(outputs)  # Any: part of a JSON document
        while True:
            outcome = await self._change(script, ref, actor, if_match, outputs=known, **argument)
            if outcome.error not in OTHER_OUTPUTS:
                return outcome
            assert outcome.digest is not None
            assert outcome.previous is not None
            compared = await self._compare(outcome.previous, outcome.digest)
            if compared.differences:
                alias = str(argument.get("alias") or PROD)
                raise OutputsDiffer(ref.task, outcome.found, alias, compared.differences)
            known |= compared.digests

    async def _new_outputs(self, back: Outcome) -> tuple[str, ...]:
        """Return how the answers after a rollback differ; it is done, so this may not fail it."""
        if back.is_same_outputs or not back.previous or not back.digest:
            return ()
        try:
            async with asyncio.timeout(COMPARE_TIMEOUT_S):
                return (await self._compare(back.previous, back.digest)).differences
        except (TimeoutError, RegistryUnavailable):
            return ("the outputs could not be compared",)

    async def _compare(self, before: Digest, after: Digest | Outputs) -> "_Compared":
        """Read and compare the outputs of two versions; one that can't be read counts as other."""
        try:
            one = await read_outputs(await self.blobs.open(before))
            if not isinstance(after, Outputs):
                digest, after = after, await read_outputs(await self.blobs.open(after))
            else:
                digest = Digest("")
        except (BlobMissing, BundleRejected) as error:
            return _Compared(differences=(f"they can't be compared, since {error.message}",))
        return await asyncio.to_thread(_compared, {before: one, digest: after})

    async def _change(
        self, script: str, ref: TaskRef, actor: str, if_match: int | None, **argument: Argument
    ) -> Outcome:
        """Run a script on one task and raise the error that it reports."""
        document = argument | {"task": ref.task, "if_match": if_match, "actor": actor}
        outcome = await self.tenants.change(script, ref.tenant, field_of(ref), **document)
        if outcome.error and outcome.error not in OTHER_OUTPUTS:
            digest = argument.get("digest") or outcome.digest or ""
            alias = argument.get("alias") or ""
            raise _refusal(outcome, ref.task, str(digest), str(alias), if_match)
        return outcome


@dataclass(frozen=True, slots=True)
class _Compared:
    """The digests of the outputs that were read, by version, and the differences of two of them."""

    digests: Mapping[str, str] = field(default_factory=dict)
    differences: tuple[str, ...] = ()


def _compared(outputs: Mapping[Digest, Outputs]) -> _Compared:
    """Compare two versions' outputs; blocks for about a second per million items of a catalog."""
    before, after = outputs.values()
    differences = tuple(output_differences(before, after))
    if not differences:  # more than before, which replaces it like the same
        return _Compared(dict.fromkeys(map(str, outputs), after.digest))
    digests = {str(digest): each.digest for digest, each in outputs.items()}
    return _Compared(digests, differences)


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
