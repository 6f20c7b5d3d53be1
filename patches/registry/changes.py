"""Reading the registry as replicas do: whole, or what changed since."""

from time import monotonic

from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.decode import (
    event_of,
    key_record,
    pairs_of,
    task_entry,
    task_ref,
    text_of,
)
from peterrec.patches.registry.records import ChangeSet, Position, RegistryEvent, RegistrySnapshot
from peterrec.patches.registry.redis_store import Store
from peterrec.patches.registry.scripts import READ_ALL, READ_CHANGES

WAIT_SLICE_S = 2.0
"""A waiting read asks the counter again this often; shorter than any sensible socket timeout."""


class Feed:
    """The registry's revisions, one after another."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def revision(self) -> int:
        """The number of the last change; 0 in an empty registry."""
        with redis_errors():
            return int(await self._store.redis.get(self._store.key("revision")) or 0)

    async def snapshot(self) -> RegistrySnapshot:
        """Everything replicas serve by, read in one atomic step."""
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
        """What was touched since a position, in one atomic step; None calls for a snapshot.

        It is None if too much or too long ago was changed, if another archive was imported, or if
        Redis came back with an older state and went on from there.
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
                await self._store.redis.xread(
                    {self._store.key("changes"): f"{since}-0"}, 1, block_ms
                )

    async def events(self, since: int, limit: int) -> tuple[RegistryEvent, ...]:
        """The changes after a revision, oldest first, at most ``limit``."""
        with redis_errors():
            entries = await self._store.redis.xrange(
                self._store.key("changes"), f"{since + 1}-0", "+", limit
            )
        return tuple(event_of(entry_id, fields) for entry_id, fields in entries or () if fields)

    async def oldest_event(self) -> int:
        """The revision of the oldest change that is still kept; 0 if there is none."""
        with redis_errors():
            entries = await self._store.redis.xrange(self._store.key("changes"), "-", "+", 1)
        return int(text_of(entries[0][0]).partition("-")[0]) if entries else 0
