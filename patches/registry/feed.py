"""Reading the registry as replicas do: as a whole, or what changed since a position."""

from collections.abc import Iterator, Sequence
from time import monotonic

from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.losses import loss, vanished
from peterrec.patches.registry.records import (
    ChangeSet,
    Position,
    RegistryEvent,
    RegistrySnapshot,
    TaskEntry,
    TenantEntry,
)
from peterrec.patches.registry.redis_store import Store, field_of
from peterrec.patches.registry.scripts import READ_ALL, READ_CHANGES, READ_LINEAGE
from peterrec.patches.registry.serialization import (
    event_of,
    key_record,
    pairs_of,
    task_entry,
    task_ref,
    tenant_entry,
    text_of,
)

WAIT_SLICE_S = 2.0
"""A waiting read looks at the counter this often, which is below any sensible socket timeout."""

EVENT_PAGE = 1000
"""Events that are read at a time unless the caller says otherwise."""


class ChangeFeed:
    """The registry's state and changes, in the order of its revisions.

    Those who follow may look while the registry is lost: they are told so (RegistryLost) if what
    they know is not in it. ``events`` and ``oldest_event`` are refused then.
    """

    def __init__(self, store: Store) -> None:
        self._guarded = store
        self._store = store.unguarded()

    async def revision(self) -> int:
        """Return the number of the last change; 0 in an empty registry."""
        with redis_errors():
            return int(await self._store.redis.get(self._store.key("revision")) or 0)

    async def position(self) -> Position:
        """Return the position of the last change, whatever anybody knows."""
        revision, mark, identity, *_ = await self._store.run(READ_LINEAGE, self._store.keys(), {})
        return Position(revision, text_of(mark), text_of(identity))

    async def snapshot(self, known: RegistrySnapshot | None = None) -> RegistrySnapshot:
        """Read everything that replicas serve by, in one atomic step.

        RegistryLost if that is no recorded continuation of what was ``known``.
        """
        before = None if known is None else known.position
        argument = {} if before is None else {"known": before._asdict()}
        reason, revision, *found = await self._store.run(READ_ALL, self._store.keys(), argument)
        if reason:
            raise loss(text_of(reason), before, revision)
        mark, identity, tasks, keys, tenants, removed, lists = found
        entries = _entries(tasks, lists)
        key_records = [key_record(text_of(key_id), text) for key_id, text in pairs_of(keys)]
        snapshot = RegistrySnapshot(
            revision=revision,
            tasks={entry.ref: entry for entry in entries},
            keys={record.key_id: record for record in key_records},
            mark=text_of(mark),
            tenants={each.tenant: each for each in _tenants(tenants)},
            identity=text_of(identity),
        )
        if known is not None and removed is not None:
            _check_removed(known, snapshot, frozenset(map(text_of, removed)))
        return snapshot

    async def changes(self, since: Position) -> ChangeSet | None:
        """Read what was touched since a position, in one atomic step.

        None means that the caller must take a whole snapshot: there were too many changes, they are
        no longer kept, an operator has replaced the registry, or a tenant was deleted. RegistryLost
        if the registry is no continuation of that position.
        """
        argument = {"known": since._asdict()}
        answer = await self._store.run(READ_CHANGES, self._store.keys(), argument)
        if answer is None:
            return None
        reason, revision, *found = answer
        if reason:
            raise loss(text_of(reason), since, revision)
        mark, identity, tasks, gone, keys, gone_keys, tenants, task_count, key_count, lists = found
        return ChangeSet(
            position=Position(revision, text_of(mark), text_of(identity)),
            tasks=tuple(_entries(tasks, lists)),
            removed_tasks=tuple(task_ref(text_of(field)) for field in gone),
            keys=tuple(key_record(text_of(key_id), text) for key_id, text in pairs_of(keys)),
            removed_keys=tuple(map(text_of, gone_keys)),
            tenants=tuple(_tenants(tenants)),
            task_count=task_count,
            key_count=key_count,
        )

    async def catch_up(self, known: RegistrySnapshot | None) -> RegistrySnapshot:
        """Bring a snapshot up to date with as little reading as possible.

        Returns ``known`` itself if nothing has changed. RegistryLost if the registry has lost what
        is known: also if tasks or keys are gone that no change has removed.
        """
        found = None if known is None else await self.changes(known.position)
        if known is None or found is None:
            return await self.snapshot(known)
        snapshot = known if found.position == known.position else found.applied_to(known)
        return snapshot if found.leaves(snapshot) else await self.snapshot(known)

    async def wait_for_change(self, since: int, timeout_s: float) -> int:
        """Wait until the revision differs from ``since``; return it, also after the timeout.

        The stream of changes only ends the wait early. The counter decides, so this also works
        after Redis came back with an older state.
        """
        deadline = monotonic() + timeout_s
        while True:
            revision = await self.revision()
            left_s = deadline - monotonic()
            if revision != since or left_s <= 0:
                return revision
            block_ms = max(1, int(min(left_s, WAIT_SLICE_S) * 1000))
            with redis_errors():
                await self._store.redis.xread(
                    {self._store.key("changes"): f"{since}-0"}, 1, block_ms
                )

    async def events(self, since: int = 0, limit: int = EVENT_PAGE) -> tuple[RegistryEvent, ...]:
        """Return the changes after a revision, oldest first, at most ``limit``.

        Changes that are no longer kept are missing.
        """
        with redis_errors():
            entries = await self._guarded.redis.xrange(
                self._store.key("changes"), f"{since + 1}-0", "+", limit
            )
        return tuple(event_of(entry_id, fields) for entry_id, fields in entries or () if fields)

    async def oldest_event(self) -> int:
        """Return the revision of the oldest change that is still kept; 0 if there is none."""
        with redis_errors():
            entries = await self._guarded.redis.xrange(self._store.key("changes"), "-", "+", 1)
        return int(text_of(entries[0][0]).partition("-")[0]) if entries else 0


def _entries(tasks: Sequence[bytes], lists: Sequence[bytes]) -> list[TaskEntry]:
    listed = dict(pairs_of(lists))
    return [task_entry(text_of(field), text, listed.get(field)) for field, text in pairs_of(tasks)]


def _check_removed(
    known: RegistrySnapshot, found: RegistrySnapshot, removed: frozenset[str]
) -> None:
    """Raise RegistryLost if something is gone that was known, and that no change has removed.

    ``removed`` are the names of the tasks, keys and tenants that changes have removed since.
    """
    tasks = [
        ref
        for ref in known.tasks
        if ref not in found.tasks and not {ref.tenant, field_of(ref)} & removed
    ]
    keys = [
        key_id
        for key_id, record in known.keys.items()
        if key_id not in found.keys and not {record.tenant, key_id} & removed
    ]
    tenants = [tenant for tenant in known.tenants if tenant not in found.tenants]
    if tasks or keys or tenants:
        raise vanished(len(tasks), len(keys), len(tenants))


def _tenants(flat: Sequence[bytes]) -> Iterator[TenantEntry]:
    found = (tenant_entry(text_of(tenant), text) for tenant, text in pairs_of(flat))
    return (entry for entry in found if entry is not None)
