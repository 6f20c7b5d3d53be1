"""The registry: tasks, versions, aliases, keys and bundles in Redis, content-addressed."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from time import monotonic
from typing import Any
from uuid import uuid4

import msgspec
from redis.asyncio import Redis

from model.errors import PeterRecError
from patches import scripts
from patches.api_keys import KeyRecord, Scope, mint_key
from patches.blobs import BlobLocation, read_pieces, write_pieces
from patches.errors import (
    BlobCorrupt,
    BlobMissing,
    InvalidScope,
    KeyNotFound,
    NothingToRollBack,
    RegistryUnavailable,
    StaleRevision,
    TaskNotFound,
    VersionInUse,
    VersionNotFound,
)
from patches.identity import (
    Digest,
    TaskId,
    TaskRef,
    TenantId,
    check_name,
    digest_of,
    format_digest,
    parse_task,
    parse_tenant,
)
from patches.records import (
    AliasMoved,
    AliasTarget,
    RegistryEvent,
    RegistrySnapshot,
    TaskDetail,
    TaskOptions,
    TaskPut,
    TaskRecord,
    VersionAdded,
    VersionSummary,
)
from patches.redis_client import open_redis, redis_errors
from patches.stored import (
    Outcome,
    event_of,
    key_record,
    outcome_of,
    pairs_of,
    task_record,
    text_of,
    time_of,
    version_record,
)

__all__ = ["DEFAULT_ALIAS", "SYSTEM", "Registry", "open_redis"]

DEFAULT_ALIAS = "prod"
SYSTEM = "system"
"""The actor of changes that no key asked for."""

WAIT_SLICE_S = 2.0
"""A waiting read asks the counter again this often; shorter than any sensible socket timeout."""

UPLOAD_TIMEOUT_S = 3600
BLOB_GRACE_S = 3600
"""An unreferenced blob stays this long: its version may be about to be registered."""

EVENT_PAGE = 1000


Argument = str | int | bool | None | dict[str, Any]  # Any: a JSON document


class Registry:
    """All that replicas share. Every change is one atomic step and one revision.

    ``if_match`` of a change is the task's revision that the caller saw: 0 means that the task must
    not exist yet, None that it does not matter. Raises RegistryUnavailable if Redis is away.
    """

    def __init__(self, redis: Redis, prefix: str = "peterrec") -> None:
        self._redis = redis
        self._prefix = check_name(prefix, "key prefix")
        self._scripts: dict[str, Callable[..., Any]] = {}  # Any: redis-py does not type answers

    async def close(self) -> None:
        """Give the connections back."""
        await self._redis.aclose()

    # Bundles

    async def put_blob(self, data: bytes) -> Digest:
        """Store a bundle's bytes, all or nothing; storing them again only keeps them alive."""
        digest = await asyncio.to_thread(digest_of, data)
        location = BlobLocation.fresh(digest, len(data))
        found = await self._call(
            scripts.BEGIN_UPLOAD,
            digest=digest,
            location=str(location),
            expires_ms=UPLOAD_TIMEOUT_S * 1000,
        )
        if not found.is_present:
            await self._upload(location, data)
        return digest

    async def get_blob(self, digest: Digest) -> bytes:
        """A bundle's bytes, checked against their digest; BlobMissing or BlobCorrupt otherwise."""
        with redis_errors():
            text = await self._redis.hget(self._key("blobs"), digest)
            location = BlobLocation.parse(text_of(text)) if text else None
            keys = location.keys(self._prefix) if location else []
            data = await read_pieces(self._redis, keys) if keys else None
        if data is None:
            raise BlobMissing(digest)
        found = await asyncio.to_thread(digest_of, data)
        if found != digest:
            raise BlobCorrupt(digest, found)
        return data

    async def has_blob(self, digest: Digest) -> bool:
        """True if the bundle's bytes are stored completely."""
        with redis_errors():
            return bool(await self._redis.hexists(self._key("blobs"), digest))

    async def collect_blobs(self, grace_s: float = BLOB_GRACE_S) -> int:
        """Free the bytes that no version has named for ``grace_s``; returns how many blobs."""
        released = await self._script(
            scripts.RELEASE_UNUSED, self._keys(""), {"grace_ms": int(grace_s * 1000)}
        )
        for text in released:
            await self._discard(BlobLocation.parse(text_of(text)))
        return len(released)

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
        return _moved(outcome)

    async def rollback(
        self,
        tenant: TenantId,
        task: TaskId,
        actor: str,
        alias: str = DEFAULT_ALIAS,
        if_match: int | None = None,
    ) -> AliasMoved:
        """Let an alias name what it named before; each further call goes one step further back."""
        check_name(alias, "alias")
        ref = TaskRef(tenant, task)
        return _moved(await self._change(scripts.ROLLBACK, ref, actor, if_match, alias=alias))

    async def delete_version(
        self,
        tenant: TenantId,
        task: TaskId,
        digest: Digest,
        actor: str,
        if_match: int | None = None,
    ) -> int:
        """Forget a version that no alias names; returns the revision."""
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
        """Forget a task with its versions, aliases and history; returns the revision."""
        ref = TaskRef(tenant, task)
        return (await self._change(scripts.DELETE_TASK, ref, actor, if_match)).revision

    async def get_task(self, tenant: TenantId, task: TaskId) -> TaskDetail:
        """A task with its versions; TaskNotFound otherwise."""
        field = _field(TaskRef(tenant, task))
        stored, versions = await self._script(
            scripts.READ_TASK, self._keys(field), {"field": field}
        )
        if not stored:
            raise TaskNotFound(task)
        records = [version_record(text_of(digest), text) for digest, text in pairs_of(versions)]
        records.sort(key=lambda record: record.version)
        return TaskDetail(task_record(field, stored), tuple(records))

    async def list_tasks(self, tenant: TenantId) -> tuple[TaskRecord, ...]:
        """A tenant's tasks by name."""
        with redis_errors():
            stored = await self._redis.hgetall(self._key("tasks"))
        mine = (field for field in map(text_of, stored) if field.startswith(f"{tenant}/"))
        return tuple(task_record(field, stored[field.encode()]) for field in sorted(mine))

    # API keys

    async def create_key(
        self, tenant: TenantId, scopes: Sequence[Scope], name: str, actor: str = SYSTEM
    ) -> tuple[str, KeyRecord]:
        """A new key's plain text, which is stored nowhere, and its record."""
        created = await self._create_key(tenant, scopes, name, actor, is_first_only=False)
        assert created is not None
        return created

    async def ensure_first_key(self, tenant: TenantId, name: str) -> tuple[str, KeyRecord] | None:
        """A key with both scopes if there is no key at all; None otherwise. Atomic."""
        scopes = (Scope("predict"), Scope("admin"))
        return await self._create_key(tenant, scopes, name, SYSTEM, is_first_only=True)

    async def list_keys(self, tenant: TenantId) -> tuple[KeyRecord, ...]:
        """A tenant's keys, oldest first."""
        with redis_errors():
            stored = await self._redis.hgetall(self._key("keys"))
        records = (key_record(text_of(key_id), text) for key_id, text in stored.items())
        mine = (record for record in records if record.tenant == tenant)
        return tuple(sorted(mine, key=lambda record: (record.created_at, record.key_id)))

    async def revoke_key(self, tenant: TenantId, key_id: str, actor: str = SYSTEM) -> int:
        """Forget a key; returns the revision. KeyNotFound if the tenant has no such key."""
        outcome = await self._call(
            scripts.REVOKE_KEY, tenant=parse_tenant(tenant), key_id=key_id, actor=actor
        )
        if outcome.error:
            raise KeyNotFound(key_id)
        return outcome.revision

    # Following

    async def revision(self) -> int:
        """The number of the last change; 0 in an empty registry."""
        with redis_errors():
            return int(await self._redis.get(self._key("revision")) or 0)

    async def snapshot(self) -> RegistrySnapshot:
        """Everything replicas serve by, read in one atomic step."""
        revision, tasks, keys = await self._script(scripts.READ_ALL, self._keys(""), {})
        task_records = [task_record(text_of(field), text) for field, text in pairs_of(tasks)]
        key_records = [key_record(text_of(key_id), text) for key_id, text in pairs_of(keys)]
        return RegistrySnapshot(
            revision=int(revision),
            tasks={record.ref: record for record in task_records},
            keys={record.key_id: record for record in key_records},
        )

    async def wait_for_change(self, since: int, timeout_s: float) -> int:
        """Wait until the revision is another than ``since``; returns what it is, changed or not.

        The stream of changes only wakes the wait: the counter is the truth, also after Redis came
        back with an older state.
        """
        deadline = monotonic() + timeout_s
        while True:
            revision = await self.revision()
            left_s = deadline - monotonic()
            if revision != since or left_s <= 0:
                return revision
            block_ms = max(1, int(min(left_s, WAIT_SLICE_S) * 1000))
            with redis_errors():
                await self._redis.xread({self._key("changes"): f"{since}-0"}, 1, block_ms)

    async def events(self, since: int = 0, limit: int = EVENT_PAGE) -> tuple[RegistryEvent, ...]:
        """The changes after a revision, oldest first, at most ``limit``; the oldest are dropped."""
        with redis_errors():
            entries = await self._redis.xrange(self._key("changes"), f"{since + 1}-0", "+", limit)
        return tuple(event_of(entry_id, fields) for entry_id, fields in entries or () if fields)

    # Plumbing

    async def _upload(self, location: BlobLocation, data: bytes) -> None:
        try:
            with redis_errors():
                await write_pieces(self._redis, location.keys(self._prefix), data)
        except PeterRecError:
            with suppress(PeterRecError):  # it would be freed in an hour anyway
                await self._discard(location)
            raise
        outcome = await self._call(
            scripts.FINISH_UPLOAD, digest=location.digest, location=str(location)
        )
        if outcome.error:
            raise RegistryUnavailable(
                f"storing the bundle took longer than {UPLOAD_TIMEOUT_S} s.", hint="Push it again."
            )

    async def _discard(self, location: BlobLocation) -> None:
        with redis_errors():
            await self._redis.unlink(*location.keys(self._prefix))
            await self._redis.zrem(self._key("garbage"), str(location))

    async def _create_key(
        self,
        tenant: TenantId,
        scopes: Sequence[Scope],
        name: str,
        actor: str,
        *,
        is_first_only: bool,
    ) -> tuple[str, KeyRecord] | None:
        if not scopes:
            raise InvalidScope("")
        minted = mint_key()
        key = {
            "tenant": parse_tenant(tenant),
            "name": name,
            "scopes": [asdict(scope) for scope in scopes],
            "secret_digest": minted.secret_digest,
        }
        outcome = await self._call(
            scripts.CREATE_KEY,
            tenant=tenant,
            key_id=minted.key_id,
            key=key,
            actor=actor,
            is_first_only=is_first_only,
        )
        if outcome.error:
            return None
        record = KeyRecord(
            minted.key_id,
            tenant,
            name,
            tuple(scopes),
            minted.secret_digest,
            time_of(outcome.created_ms),
        )
        return minted.plain_text, record

    async def _change(
        self, script: str, ref: TaskRef, actor: str, if_match: int | None, **argument: Argument
    ) -> Outcome:
        """Run a script on one task; its refusals become errors."""
        document = argument | {"tenant": ref.tenant, "task": ref.task, "if_match": if_match}
        outcome = await self._call(script, field=_field(ref), actor=actor, **document)
        if outcome.error:
            digest = argument.get("digest") or ""
            alias = argument.get("alias") or ""
            raise _refusal(outcome, ref.task, str(digest), str(alias), if_match)
        return outcome

    async def _call(self, script: str, field: str = "", **argument: Argument) -> Outcome:
        given = {name: value for name, value in argument.items() if value is not None}
        answer = await self._script(script, self._keys(field), {**given, "field": field})
        return outcome_of(answer)

    async def _script(
        self, script: str, keys: Sequence[str], argument: Mapping[str, Argument]
    ) -> Any:  # Any: what the script returns
        run = self._scripts.get(script)
        if run is None:
            run = self._scripts[script] = self._redis.register_script(script)
        with redis_errors():
            return await run(keys=keys, args=[msgspec.json.encode(argument)])

    def _keys(self, field: str) -> list[str]:
        own = {"request": uuid4().hex, "versions": field, "history": field}
        return [self._key(name, own.get(name)) for name in scripts.KEY_NAMES]

    def _key(self, name: str, of: str | None = None) -> str:
        key = f"{{{self._prefix}}}:{name}"
        return key if of is None else f"{key}:{of}"


def _field(ref: TaskRef) -> str:
    return f"{parse_tenant(ref.tenant)}/{parse_task(ref.task)}"


def _moved(outcome: Outcome) -> AliasMoved:
    assert outcome.digest is not None
    current = AliasTarget(outcome.digest, outcome.version)
    return AliasMoved(outcome.revision, current, outcome.previous)


def _refusal(
    outcome: Outcome, task: str, digest: str, alias: str, if_match: int | None
) -> PeterRecError:
    makers: dict[str, Callable[[], PeterRecError]] = {
        "stale": lambda: StaleRevision(task, if_match or 0, outcome.found),
        "task_not_found": lambda: TaskNotFound(task),
        "version_not_found": lambda: VersionNotFound(task, format_digest(Digest(digest))),
        "version_in_use": lambda: VersionInUse(task, outcome.aliases),
        "nothing_to_roll_back": lambda: NothingToRollBack(task, alias),
        "blob_missing": lambda: BlobMissing(digest),
    }
    assert outcome.error is not None
    return makers[outcome.error]()
