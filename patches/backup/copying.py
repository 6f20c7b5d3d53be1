"""Bringing a replica's copy of the registry up to date, by reading what it lacks."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from peterrec.patches.backup.archive import Line
from peterrec.patches.backup.copies import Copies, CopyUpdate
from peterrec.patches.backup.exporting import StoredTask, audit_lines, lines_of
from peterrec.patches.registry.losses import loss
from peterrec.patches.registry.records import Position, RegistrySnapshot
from peterrec.patches.registry.redis_store import Store, field_of
from peterrec.patches.registry.scripts import KEY_NAMES, READ_RECORDS
from peterrec.patches.registry.serialization import pairs_of, text_of

Name = TypeVar("Name", str, int)

READ_AT_ONCE = 64
"""Tasks that one script reads, which takes Redis well below a millisecond."""


async def update_copy(store: Store, copies: Copies, snapshot: RegistrySnapshot) -> None:
    """Bring the newest copy up to a snapshot; RegistryLost if the registry is not its any more.

    Only tasks whose revision differs are read, or all of a registry with another identity.
    """
    state = await asyncio.to_thread(copies.newest.state)
    if state is not None and state.position == snapshot.position:
        return
    is_other = state is not None and state.position.identity != snapshot.identity
    has = {} if is_other else await asyncio.to_thread(copies.newest.revisions)
    since = 0 if is_other else await asyncio.to_thread(copies.newest.last_change)
    names = {field_of(ref): entry.revision for ref, entry in snapshot.tasks.items()}
    stale = [name for name, revision in names.items() if has.get(name) != revision]
    tasks: dict[str, tuple[int, bytes]] = {}
    for some in _chunks(stale):
        tasks |= await _read_tasks(store, snapshot.position, some)
    keys, tenants, changes = await _read_rest(store, snapshot.position, since)
    update = CopyUpdate(
        snapshot.position, names.keys(), tasks, keys, tenants, changes, is_other=is_other
    )
    await asyncio.to_thread(copies.update, update)


async def _read_tasks(
    store: Store, known: Position, names: Sequence[str]
) -> dict[str, tuple[int, bytes]]:
    keys = [store.key(kind, name) for name in names for kind in ("versions", "states")]
    found, _ = await _read(store, known, keys, {"fields": list(names)})
    tasks: dict[str, tuple[int, bytes]] = {}
    for name, (record, versions, states, listed) in zip(names, found, strict=True):
        if record:  # it may have been deleted since
            named = {text_of(digest): text for digest, text in pairs_of(versions)}
            line = StoredTask(record, named, states, listed).line(name)
            revision = msgspec.json.decode(record)["revision"]
            tasks[name] = int(revision), msgspec.json.encode(line)
    return tasks


async def _read_rest(
    store: Store, known: Position, since: int
) -> tuple[dict[str, bytes], dict[str, bytes], dict[int, bytes]]:
    """Read all keys and tenants, and the changes after ``since`` up to the known one."""
    changes: dict[int, bytes] = {}
    while True:
        _, rest = await _read(store, known, [], {"fields": [], "since": since})
        keys, tenants, entries = rest
        page = {int(line["revision"]): line for line in audit_lines(entries)}
        changes |= _encoded({at: line for at, line in page.items() if at <= known.revision})
        if not page or max(page) >= known.revision:
            break
        since = max(page)
    return (
        _encoded({str(line["key_id"]): line for line in lines_of("key_id", keys)}),
        _encoded({str(line["tenant"]): line for line in lines_of("tenant", tenants)}),
        changes,
    )


async def _read(
    store: Store, known: Position, keys: Sequence[str], argument: dict[str, Any]
) -> tuple[list[Any], list[Any]]:  # Any: documents and answers of the script
    document = {**argument, "known": known._asdict(), "own_keys": len(KEY_NAMES)}
    found = await store.unguarded().run(READ_RECORDS, [*store.keys(), *keys], document)
    reason, revision, *body = found
    if reason:
        raise loss(text_of(reason), known, revision)
    _, _, tasks, rest = body
    return tasks, rest


def _encoded(lines: dict[Name, Line]) -> dict[Name, bytes]:
    return {name: msgspec.json.encode(line) for name, line in lines.items()}


def _chunks(names: list[str]) -> Iterator[list[str]]:
    return (names[at : at + READ_AT_ONCE] for at in range(0, len(names), READ_AT_ONCE))
