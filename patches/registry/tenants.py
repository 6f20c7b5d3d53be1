"""The tenants: their options and quotas, what they use of them, and the erasure of a tenant."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import (
    BundleQuotaExceeded,
    InvalidQuota,
    InvalidWeight,
    QuotaExceeded,
    RegistryUnavailable,
    StaleTenant,
    TenantNotFound,
    TenantProtected,
)
from peterrec.patches.identity import DEFAULT_TENANT, TenantId, parse_tenant
from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.outcomes import OutcomeStore
from peterrec.patches.registry.records import (
    LEAST_WEIGHT,
    MAX_QUOTA,
    MOST_WEIGHT,
    RATES,
    Erased,
    TenantDeleted,
    TenantOptions,
    TenantPut,
    TenantRecord,
    Usage,
    VersionSummary,
)
from peterrec.patches.registry.redis_store import Argument, Store
from peterrec.patches.registry.scripts import (
    COUNT_TENANT,
    DELETE_TENANT,
    KEY_NAMES,
    PUT_TENANT,
    READ_TASK,
    READ_TENANT,
    READ_TENANTS,
)
from peterrec.patches.registry.serialization import (
    Outcome,
    is_counted,
    pairs_of,
    tenant_record,
    text_of,
    version_record,
)

ATTEMPTS = 20
"""Attempts at a step for which the registry must not change meanwhile."""

READ_AT_ONCE = 16
"""Tasks that are read concurrently while a tenant is counted."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What Redis holds of a tenant, and the position at which it was read.

    ``record`` is empty if there is none; ``fields`` are the tenant's in the hash of tasks.
    """

    revision: int
    mark: str
    record: bytes
    fields: tuple[str, ...]
    key_count: int


class TenantStore:
    """All tenants. What each uses is counted by the scripts that change it.

    A registry that is older than these counts has none. The first change that needs one has the
    tenant counted (``change``).
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, tenant: TenantId) -> TenantRecord:
        """Return a tenant with what it uses; TenantNotFound if there is none."""
        with redis_errors():
            text = await self._store.redis.hget(self._store.key("tenants"), parse_tenant(tenant))
        record = await self._decoded(tenant, text or b"")
        if record is None:
            raise TenantNotFound(tenant)
        return record

    async def has_room(self, tenant: TenantId, bundle_bytes: int) -> bool:
        """Return whether the tenant's quotas leave room for another version of this size."""
        record = await self.get(tenant)
        quotas, usage = record.options.quotas, record.usage
        wanted = {"versions": usage.versions + 1, "bundle_bytes": usage.bundle_bytes + bundle_bytes}
        return all(wanted.get(name, 0) <= limit for name, limit in quotas.limits().items())

    async def list(self) -> tuple[TenantRecord, ...]:
        """Return all tenants in the order of their names."""
        flat, used = await self._store.run(READ_TENANTS, self._store.keys(), {})
        texts = {TenantId(text_of(name)): text for name, text in pairs_of(flat)}
        names = {*texts, *(TenantId(text_of(name)) for name in used), DEFAULT_TENANT}
        found = [await self._decoded(name, texts.get(name, b"")) for name in sorted(names)]
        return tuple(record for record in found if record is not None)

    async def counted(self) -> tuple[TenantRecord, ...]:
        """Return the tenants that were counted, which takes time for these only.

        ``list`` also has those of a registry that is older than the counts.
        """
        with redis_errors():
            stored = await self._store.redis.hgetall(self._store.key("tenants"))
        found = [
            tenant_record(text_of(name), text) for name, text in stored.items() if is_counted(text)
        ]
        return tuple(record for record in found if record is not None)

    async def put(
        self, tenant: TenantId, options: TenantOptions, actor: str, if_match: int | None = None
    ) -> TenantPut:
        """Create a tenant, or replace the options of an existing one.

        ``if_match`` is the tenant's revision that the caller saw, 0 if there must be none yet. A
        quota below what is used already is accepted, and prevents more. InvalidQuota if one is
        negative or above ``MAX_QUOTA``, or a rate of 0; InvalidWeight if the weight is outside its
        bounds.
        """
        if not LEAST_WEIGHT <= options.weight <= MOST_WEIGHT:
            raise InvalidWeight(options.weight, LEAST_WEIGHT, MOST_WEIGHT)
        for name, limit in options.quotas.limits().items():
            smallest = 1 if name in RATES else 0
            if not smallest <= limit <= MAX_QUOTA:
                raise InvalidQuota(name, limit, smallest, MAX_QUOTA)
        outcome = await self.change(
            PUT_TENANT,
            parse_tenant(tenant),
            actor=actor,
            description=options.description,
            quotas=dict(options.quotas.limits()),
            weight=options.weight,
            if_match=if_match,
        )
        if outcome.error == "stale":
            raise StaleTenant(tenant, if_match or 0, outcome.found)
        return TenantPut(outcome.revision, outcome.was_created)

    async def delete(self, tenant: TenantId, actor: str) -> TenantDeleted:
        """Erase a tenant: its tasks, versions and keys, and bundles that no other tenant names.

        The bundles' bytes are freed by the next ``BlobStore.collect``. The name stays known as
        deleted, so that a late change by one of its keys cannot bring a part of it back.
        """
        if parse_tenant(tenant) == DEFAULT_TENANT:
            raise TenantProtected(tenant)
        for _ in range(ATTEMPTS):
            fields = (await self._read(tenant)).fields
            outcome = await self._store.change_with(
                [self._store.key(name, of) for of in fields for name in ("versions", "states")],
                DELETE_TENANT,
                tenant=tenant,
                tasks=list(fields),
                own_keys=len(KEY_NAMES),
                actor=actor,
            )
            if outcome.error == "tenant_not_found":
                raise TenantNotFound(tenant)
            if not outcome.error:
                await OutcomeStore(self._store).forget(tenant)
                return TenantDeleted(outcome.revision, Erased(**outcome.erased))
        raise _too_busy(tenant)

    async def change(
        self, script: str, tenant: TenantId, field: str = "", **argument: Argument
    ) -> Outcome:
        """Run a script that changes something of a tenant, which is counted first if need be.

        Raises TenantNotFound of a deleted tenant, and QuotaExceeded.
        """
        for _ in range(ATTEMPTS):
            outcome = await self._store.change(script, field, tenant=tenant, **argument)
            refusal = _refusal(tenant, outcome)
            if refusal is not None:
                raise refusal
            if outcome.error != "tenant_uncounted":
                return outcome
            await self._make_record(tenant)
        raise _too_busy(tenant)

    async def _make_record(self, tenant: TenantId) -> None:
        """Count a tenant and store that, unless the registry was changed meanwhile."""
        found = await self._read(tenant)
        usage = await self._count(found)
        await self._store.change(
            COUNT_TENANT,
            tenant=tenant,
            since=found.revision,
            seen_mark=found.mark,
            usage=asdict(usage),
        )

    async def _decoded(self, tenant: TenantId, text: bytes | str) -> TenantRecord | None:
        """Decode a tenant's record, which may be empty; None if there is no such tenant."""
        usage = Usage() if is_counted(text) else await self._count(await self._read(tenant))
        record = tenant_record(tenant, text, usage)
        if record is None:
            return None
        is_used = record.revision or record.usage.tasks or record.usage.keys
        return record if is_used or tenant == DEFAULT_TENANT else None

    async def _read(self, tenant: TenantId) -> _Found:
        found = await self._store.run(READ_TENANT, self._store.keys(), {"tenant": tenant})
        revision, mark, record, fields, key_count = found
        return _Found(int(revision), text_of(mark), record, tuple(map(text_of, fields)), key_count)

    async def _count(self, found: _Found) -> Usage:
        """Count what a tenant uses, by reading the versions of all of its tasks."""
        summaries: list[VersionSummary] = []
        listed = 0
        for start in range(0, len(found.fields), READ_AT_ONCE):
            some = found.fields[start : start + READ_AT_ONCE]
            for of_task, list_bytes in await asyncio.gather(*map(self._summaries, some)):
                summaries += of_task
                listed += list_bytes
        return Usage(
            tasks=len(found.fields),
            versions=len(summaries),
            bundle_bytes=sum(each.size_bytes for each in summaries) + listed,
            head_bytes=sum(each.head_bytes for each in summaries),
            patch_bytes=sum(each.patch_bytes for each in summaries),
            keys=found.key_count,
        )

    async def _summaries(self, field: str) -> tuple[Sequence[VersionSummary], int]:
        """Return the summary of each version of a task.

        Then the bytes of its list of items, which count as a bundle's.
        """
        found = await self._store.run(READ_TASK, self._store.keys(field), {"field": field})
        _, versions, list_bytes = found
        records = [version_record(text_of(digest), text) for digest, text in pairs_of(versions)]
        return [each.summary for each in records], list_bytes


def _refusal(tenant: TenantId, outcome: Outcome) -> PeterRecError | None:
    if outcome.error == "tenant_not_found":
        return TenantNotFound(tenant)
    if outcome.error == "quota_exceeded":
        return QuotaExceeded(tenant, outcome.quota, outcome.limit, outcome.found, outcome.wanted)
    if outcome.error == "bundle_quota_exceeded":
        return BundleQuotaExceeded(tenant, outcome.quota, outcome.limit, outcome.found)
    return None


def _too_busy(tenant: TenantId) -> RegistryUnavailable:
    return RegistryUnavailable(
        f"the registry changes faster than tenant {tenant!r} can be read.",
        hint="Try again at a quieter time.",
    )
