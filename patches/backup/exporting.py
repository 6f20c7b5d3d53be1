"""Export: write a registry into one archive, in its state at one revision."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from peterrec.model.progress import OnProgress, Progress, no_progress
from peterrec.patches.backup.archive import (
    AUDIT,
    KEYS,
    TASKS,
    TENANTS,
    ArchiveManifest,
    Line,
    writing_archive,
)
from peterrec.patches.errors import RegistryUnavailable
from peterrec.patches.identity import Digest, TaskRef
from peterrec.patches.registry.blobs import BlobStore
from peterrec.patches.registry.feed import ChangeFeed
from peterrec.patches.registry.redis_store import Store, field_of
from peterrec.patches.registry.scripts import READ_REST, READ_STORED_TASK
from peterrec.patches.registry.serialization import pairs_of, text_of

READ_AT_ONCE = 16
"""Tasks that are read concurrently."""

MAX_PASSES = 100
"""Passes over tasks that keep changing, after which the export gives up."""


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task as Redis holds it."""

    record: bytes
    versions: dict[str, bytes]
    states: list[bytes]
    availability: bytes = b""

    def line(self, field: str) -> Line:
        """Return the task's line of the archive."""
        listed = {"availability": msgspec.Raw(self.availability)} if self.availability else {}
        return {
            "task": field,
            "record": msgspec.Raw(self.record),
            "versions": {digest: msgspec.Raw(text) for digest, text in self.versions.items()},
            "states": [msgspec.Raw(text) for text in self.states],
            **listed,
        }


@dataclass(frozen=True, slots=True)
class _Stored:
    """Everything except the bundles, at one revision."""

    revision: int
    tasks: dict[str, StoredTask]
    keys: list[Line]
    audit: list[Line]
    tenants: list[Line]

    def digests(self) -> list[Digest]:
        named = {digest for task in self.tasks.values() for digest in task.versions}
        return [Digest(digest) for digest in sorted(named)]


async def export_archive(
    store: Store, path: Path, on_progress: OnProgress = no_progress
) -> ArchiveManifest:
    """Write an archive with the registry's state at one revision; replace ``path`` when complete.

    It has tasks, versions, aliases, traffic, states, the sha256 of keys, tenants, the audit trail
    and every registered bundle. Other clients may change the registry meanwhile; what they touch is
    read again.
    """
    blobs = BlobStore(store)
    with writing_archive(path) as archive:
        on_progress(Progress("reading the registry"))
        stored = await _read_stored(store)
        lines = [task.line(field) for field, task in sorted(stored.tasks.items())]
        await asyncio.to_thread(archive.add_lines, TASKS, lines)
        await asyncio.to_thread(archive.add_lines, KEYS, stored.keys)
        await asyncio.to_thread(archive.add_lines, AUDIT, stored.audit)
        await asyncio.to_thread(archive.add_lines, TENANTS, stored.tenants)
        digests = stored.digests()
        for done, digest in enumerate(digests):
            on_progress(Progress("exporting", done, len(digests), unit="bundles"))
            await asyncio.to_thread(archive.add_bundle, await blobs.get(digest))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return archive.finish(stored.revision, now)


async def _read_stored(store: Store) -> _Stored:
    """Read all tasks, and repeatedly those that were touched meanwhile, until none was."""
    feed = ChangeFeed(store)
    snapshot = await feed.snapshot()
    position, pending = snapshot.position, list(snapshot.tasks)
    tasks: dict[str, StoredTask] = {}
    for _ in range(MAX_PASSES):
        await _read_tasks(store, pending, tasks)
        revision, *rest = await store.run(READ_REST, store.keys(), {})
        found = await feed.changes(position)
        if found is None:
            break
        position = found.position
        pending = [*(entry.ref for entry in found.tasks), *found.removed_tasks]
        if not pending and int(revision) == position.revision:
            keys, audit, tenants = rest
            return _Stored(
                position.revision,
                tasks,
                lines_of("key_id", keys),
                audit_lines(audit),
                lines_of("tenant", tenants),
            )
    raise RegistryUnavailable(
        "the registry changes faster than it can be read.", hint="Export it at a quieter time."
    )


async def _read_tasks(store: Store, refs: list[TaskRef], into: dict[str, StoredTask]) -> None:
    for start in range(0, len(refs), READ_AT_ONCE):
        chunk = [field_of(ref) for ref in refs[start : start + READ_AT_ONCE]]
        found = await asyncio.gather(
            *(store.run(READ_STORED_TASK, store.keys(field), {"field": field}) for field in chunk)
        )
        for field, (record, versions, states, listed) in zip(chunk, found, strict=True):
            if record:
                named = {text_of(digest): text for digest, text in pairs_of(versions)}
                into[field] = StoredTask(record, named, states, listed)
            else:
                into.pop(field, None)


def lines_of(name: str, flat: list[bytes]) -> list[Line]:
    """Return a line for each field of a hash, which stands under ``name``."""
    return [{name: text_of(field), "record": msgspec.Raw(text)} for field, text in pairs_of(flat)]


def audit_lines(entries: list[Any]) -> list[Line]:  # Any: entries of a stream as Redis lists them
    return [
        {
            "revision": int(entry_id.partition(b"-")[0]),
            "fields": {text_of(name): text_of(text) for name, text in pairs_of(fields)},
        }
        for entry_id, fields in entries
    ]
