"""Import: replace a registry by the contents of an archive, or of a replica's copy, in one step."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import msgspec

from peterrec.model.errors import PeterRecError
from peterrec.model.progress import OnProgress, Progress, no_progress
from peterrec.patches.backup.archive import AUDIT, KEYS, TASKS, TENANTS, Line, open_archive
from peterrec.patches.backup.exporting import StoredTask
from peterrec.patches.errors import ArchiveInvalid, BlobMissing, RegistryChanged, RegistryNotEmpty
from peterrec.patches.identity import Blob, Digest, parse_tenant
from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.blobs import BlobStore
from peterrec.patches.registry.feed import ChangeFeed
from peterrec.patches.registry.records import EventAction, Position
from peterrec.patches.registry.redis_store import Store, field_of
from peterrec.patches.registry.scripts import IMPORT, KEY_NAMES, STAGE_EVENTS, STAGED_NAMES
from peterrec.patches.registry.serialization import (
    availability_of,
    key_record,
    task_record,
    task_ref,
    tenant_entry,
    tenant_record,
    version_record,
)

AT_ONCE = 8
"""Tasks and bundles that are written concurrently."""

MAX_HELD_BYTES = 64 << 20
"""Bytes of the bundles that are in memory together; a larger bundle is uploaded alone."""

STAGED_S = 3600
"""Staged keys expire after this time, in case the import is interrupted."""


class ImportMode(StrEnum):
    """What may be in the registry before an import."""

    EMPTY = "empty"
    REPLACE = "replace"


async def import_archive(
    store: Store,
    path: Path,
    mode: ImportMode,
    actor: str,
    on_progress: OnProgress = no_progress,
) -> int:
    """Replace the registry by an archive's contents, as one change; return its revision.

    Mode ``empty`` refuses a registry that holds anything; ``replace`` discards its contents,
    including the audit trail. The whole archive is checked first. Every task gets the new revision.
    """
    on_progress(Progress("checking the archive"))
    with closing(await asyncio.to_thread(open_archive, path)) as archive:
        revision, tasks = archive.manifest.revision, len(archive.lines(TASKS))
        act = Act(EventAction.IMPORT, actor, f"{tasks} tasks of an archive at revision {revision}")
        return await Import(store, archive, act, on_progress).run(mode)


class Contents(Protocol):
    """A whole registry outside of Redis: an archive, or a replica's copy. Its methods block."""

    @property
    def revision(self) -> int:
        """The registry's revision that the contents show."""

    def lines(self, name: str) -> list[Line]:
        """Read the JSON documents of one member of an archive."""

    def digests(self) -> list[Digest]:
        """The digests of the bundles that are there."""

    def size_of(self, digest: Digest) -> int:
        """A bundle's size in bytes."""

    def bundle(self, digest: Digest) -> Blob:
        """Read and hash one bundle."""


@dataclass(frozen=True, slots=True)
class Act:
    """What the audit trail says of an import, and which registries it replaces.

    ``supersedes`` has the last position of each registry that those who follow it may leave for
    this one, in addition to the one at the destination.
    """

    action: EventAction
    actor: str
    note: str
    supersedes: Sequence[Position] = ()


class Import:
    """One import: its contents, and the keys under which it stages them."""

    def __init__(self, store: Store, contents: Contents, act: Act, on_progress: OnProgress) -> None:
        self._store = store
        self._archive = contents
        self._act = act
        self._on_progress = on_progress
        self._stem = store.key("import", uuid4().hex)

    async def run(self, mode: ImportMode) -> int:
        """Upload the bundles, stage everything else, and swap it in."""
        before = await ChangeFeed(self._store).snapshot()
        if mode is ImportMode.EMPTY and before.revision:
            raise RegistryNotEmpty(before.revision, len(before.tasks))
        revision = max(before.revision, self._archive.revision) + 1
        lines = await asyncio.to_thread(self._archive.lines, TASKS)
        tasks = [_checked_task(line, revision) for line in lines]
        await self._check_bundles(tasks)
        self._on_progress(Progress("writing tasks", len(tasks), unit="tasks"))
        staged = await self._stage_all(tasks)
        blobs, done, total = BlobStore(self._store), 0, len(self._archive.digests())
        for chunk in self._batches():
            self._on_progress(Progress("importing", done, total, unit="bundles"))
            done += len(chunk)
            bundles = [await asyncio.to_thread(self._archive.bundle, digest) for digest in chunk]
            await asyncio.gather(*map(blobs.put, bundles))
        old = [key for ref in before.tasks for key in self._task_keys(field_of(ref))]
        try:
            return await self._swap(before.position, old, staged, revision)
        finally:
            with suppress(PeterRecError):  # otherwise it expires after STAGED_S
                await self._forget(staged)

    async def _check_bundles(self, tasks: list[tuple[str, StoredTask]]) -> None:
        """Raise ArchiveInvalid if a version has no bundle, neither here nor at the destination."""
        named = {Digest(digest) for _, task in tasks for digest in task.versions}
        missing = named.difference(self._archive.digests())
        if missing and self._act.action is EventAction.RESTORE:
            missing = missing - await BlobStore(self._store).digests()
        if missing:
            raise ArchiveInvalid(
                f"the archive does not have {len(missing)} bundles, for instance {min(missing)}."
            )

    def _batches(self) -> Iterator[list[Digest]]:
        """Split the archive's bundles into batches that fit into memory together."""
        batch: list[Digest] = []
        held = 0
        for digest in self._archive.digests():
            size = self._archive.size_of(digest)
            if batch and (len(batch) == AT_ONCE or held + size > MAX_HELD_BYTES):
                yield batch
                batch, held = [], 0
            batch.append(digest)
            held += size
        yield batch

    async def _stage_all(self, tasks: list[tuple[str, StoredTask]]) -> list[str]:
        """Write everything under staged keys; return the staged and final keys of each task."""
        refs: dict[str, int] = {}
        keys: list[str] = []
        for chunk in _chunks(tasks, AT_ONCE):
            staged = await asyncio.gather(*(self._stage_task(*task) for task in chunk))
            keys += [key for own in staged for key in own]
        for digest in (digest for _, task in tasks for digest in task.versions):
            refs[digest] = refs.get(digest, 0) + 1
        await self._stage_hash("tasks", {field: task.record for field, task in tasks})
        lists = {field: task.availability for field, task in tasks if task.availability}
        await self._stage_hash("availability", lists)
        await self._stage_hash("keys", dict(map(_checked_key, self._archive.lines(KEYS))))
        tenants = dict(map(_checked_tenant, self._archive.lines(TENANTS)))
        await self._stage_hash("tenants", tenants)
        await self._stage_hash("refs", {digest: b"%d" % count for digest, count in refs.items()})
        await self._stage_audit()
        return keys

    async def _stage_task(self, field: str, task: StoredTask) -> list[str]:
        redis = self._store.redis
        versions, states = f"{self._stem}:versions:{field}", f"{self._stem}:states:{field}"
        with redis_errors():
            if task.versions:
                await redis.hset(versions, items=_flat(task.versions.items()))
                await redis.expire(versions, STAGED_S)
            if task.states:
                await redis.rpush(states, *task.states)
                await redis.expire(states, STAGED_S)
        final_versions, final_states = self._task_keys(field)
        return [versions, final_versions, states, final_states]

    async def _stage_hash(self, name: str, fields: dict[str, bytes]) -> None:
        key = f"{self._stem}:{name}"
        with redis_errors():
            for chunk in _chunks(list(fields.items())):
                await self._store.redis.hset(key, items=_flat(chunk))
                await self._store.redis.expire(key, STAGED_S)

    async def _stage_audit(self) -> None:
        key = f"{self._stem}:changes"
        events = [_checked_event(line) for line in self._archive.lines(AUDIT)]
        for chunk in _chunks(events):
            await self._store.run(STAGE_EVENTS, [key], {"events": chunk})
        with redis_errors():
            await self._store.redis.expire(key, STAGED_S)

    async def _swap(self, seen: Position, old: list[str], staged: list[str], revision: int) -> int:
        once = [f"{self._stem}:{name}" for name in STAGED_NAMES]
        outcome = await self._store.change_with(
            [*once, *old, *staged],
            IMPORT,
            action=self._act.action,
            actor=self._act.actor,
            supersedes=[[each.identity, each.revision] for each in self._act.supersedes],
            since=seen.revision,
            seen_mark=seen.mark,
            revision=revision,
            own_keys=len(KEY_NAMES),
            old_keys=len(old),
            note=self._act.note,
        )
        if outcome.error == "blob_missing":
            raise BlobMissing(outcome.digest or "")
        if outcome.error:
            raise RegistryChanged
        return outcome.revision

    async def _forget(self, staged: list[str]) -> None:
        names = [f"{self._stem}:{name}" for name in STAGED_NAMES]
        with redis_errors():
            for chunk in _chunks([*names, *staged[::2]]):
                await self._store.redis.unlink(*chunk)

    def _task_keys(self, field: str) -> list[str]:
        return [self._store.key(name, field) for name in ("versions", "states")]


def _chunks(items: list[Any], size: int = 500) -> Iterator[list[Any]]:  # Any: of any type
    return (items[start : start + size] for start in range(0, len(items), size))


def _flat(pairs: Iterable[tuple[str, bytes]]) -> list[str | bytes]:
    return [part for pair in pairs for part in pair]


def _checked_task(line: Line, revision: int) -> tuple[str, StoredTask]:
    """Decode a task of an archive and give it a new revision; ArchiveInvalid."""
    try:
        field, record = field_of(task_ref(line["task"])), dict(line["record"])
        record["revision"] = revision
        if record.get("traffic"):
            record["traffic"] = {**record["traffic"], "revision": revision}
        task = StoredTask(
            msgspec.json.encode(record),
            {digest: msgspec.json.encode(text) for digest, text in line["versions"].items()},
            [msgspec.json.encode(state) for state in line["states"]],
            msgspec.json.encode(line["availability"]) if "availability" in line else b"",
        )
        if task.availability:
            availability_of(field, task.availability)
        found = task_record(field, task.record)
        for digest, text in task.versions.items():
            version_record(digest, text)
    except (PeterRecError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveInvalid(f"a task of the archive cannot be read: {error}.") from error
    targets = {target.digest for target in found.aliases.values()}
    if not targets | set(found.traffic.versions if found.traffic else ()) <= task.versions.keys():
        raise ArchiveInvalid(f"task {field} names a version that it does not have.")
    return field, task


def _checked_key(line: Line) -> tuple[str, bytes]:
    try:
        key_id, text = str(line["key_id"]), msgspec.json.encode(line["record"])
        key_record(key_id, text)
    except (PeterRecError, KeyError) as error:
        raise ArchiveInvalid(f"a key of the archive cannot be read: {error}.") from error
    return key_id, text


def _checked_tenant(line: Line) -> tuple[str, bytes]:
    """Decode a tenant; what it uses is left out, so that it is counted again."""
    try:
        tenant, record = parse_tenant(line["tenant"]), dict(line["record"])
        record.pop("usage", None)
        text = msgspec.json.encode(record)
        tenant_entry(tenant, text)
        tenant_record(tenant, text)
    except (PeterRecError, KeyError, TypeError, ValueError) as error:
        raise ArchiveInvalid(f"a tenant of the archive cannot be read: {error}.") from error
    return tenant, text


def _checked_event(line: Line) -> Line:
    try:
        fields = msgspec.convert(line["fields"], dict[str, str])
        flat = [part for pair in fields.items() for part in pair]
        return {"revision": msgspec.convert(line["revision"], int), "fields": flat}
    except (msgspec.MsgspecError, KeyError) as error:
        raise ArchiveInvalid(f"an event of the archive cannot be read: {error}.") from error
