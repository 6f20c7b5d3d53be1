"""Reading the registry as replicas do: as a whole, or what changed since a position."""

from time import monotonic

from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.records import ChangeSet, Position, RegistryEvent, RegistrySnapshot
from peterrec.patches.registry.redis_store import Store
from peterrec.patches.registry.scripts import READ_ALL, READ_CHANGES
from peterrec.patches.registry.serialization import (
    event_of,
    key_record,
    pairs_of,
    task_entry,
    task_ref,
    text_of,
)

WAIT_SLICE_S = 2.0
"""A waiting read looks at the counter this often, which is below any sensible socket timeout."""

EVENT_PAGE = 1000
"""Events that are read at a time unless the caller says otherwise."""


class ChangeFeed:
    """The registry's state and changes, in the order of its revisions."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def revision(self) -> int:
        """Return the number of the last change; 0 in an empty registry."""
        with redis_errors():
            return int(await self._store.redis.get(self._store.key("revision")) or 0)

    async def snapshot(self) -> RegistrySnapshot:
        """Read everything that replicas serve by, in one atomic step."""
        revision, mark, tasks, keys = await self._store.run(READ_ALL, self._store.keys(), {})
        entries = [task_entry(text_of(field), text) for field, text in pairs_of(tasks)]
        key_records = [key_record(text_of(key_id), text) for key_id, text in pairs_of(keys)]
        return RegistrySnapshot(
            revision=int(revision),
            tasks={entry.ref: entry for entry in entries},
            keys={record.key_id: record for record in key_records},
            mark=text_of(mark),
        )

    async def changes(self, since: Position) -> ChangeSet | None:
        """Read what was touched since a position, in one atomic step.

        None means that the caller must take a whole snapshot: there were too many changes, they are
        no longer kept, an archive was imported, or Redis came back with an older state and
        continued from there.
        """
        found = await self._store.run(
            READ_CHANGES, self._store.keys(), {"since": since.revision, "mark": since.mark}
        )
        if found is None:
            return None
        revision, mark, tasks, gone, keys, gone_keys = found
        return ChangeSet(
            position=Position(revision, text_of(mark)),
            tasks=tuple(task_entry(text_of(field), text) for field, text in pairs_of(tasks)),
            removed_tasks=tuple(task_ref(text_of(field)) for field in gone),
            keys=tuple(key_record(text_of(key_id), text) for key_id, text in pairs_of(keys)),
            removed_keys=tuple(map(text_of, gone_keys)),
        )

    async def catch_up(self, known: RegistrySnapshot | None) -> RegistrySnapshot:
        """Bring a snapshot up to date with as little reading as possible.

        Returns ``known`` itself if nothing has changed.
        """
        found = None if known is None else await self.changes(known.position)
        if known is None or found is None:
            return await self.snapshot()
        return known if found.position == known.position else found.applied_to(known)

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
            entries = await self._store.redis.xrange(
                self._store.key("changes"), f"{since + 1}-0", "+", limit
            )
        return tuple(event_of(entry_id, fields) for entry_id, fields in entries or () if fields)

    async def oldest_event(self) -> int:
        """Return the revision of the oldest change that is still kept; 0 if there is none."""
        with redis_errors():
            entries = await self._store.redis.xrange(self._store.key("changes"), "-", "+", 1)
        return int(text_of(entries[0][0]).partition("-")[0]) if entries else 0
