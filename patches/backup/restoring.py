"""Restore: put a lost registry back from a replica's copy, in one step, as an import does."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peterrec.model.progress import OnProgress, no_progress
from peterrec.patches.backup.archive import AUDIT, KEYS, TASKS, TENANTS, Line
from peterrec.patches.backup.copies import Copies, CopyState, RegistryCopy
from peterrec.patches.backup.importing import Act, Import, ImportMode
from peterrec.patches.errors import BlobCorrupt, BlobMissing, NoCopy
from peterrec.patches.identity import Blob, Digest
from peterrec.patches.registry.blobs import BlobStore
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.records import EventAction
from peterrec.patches.registry.redis_store import Store


@dataclass(frozen=True)
class Restorable:
    """What a copy can put back, given the bundles that are in the cache or in Redis already.

    A version whose bundle is in neither is left out, with the aliases, the traffic and the earlier
    states that name it; ``left_out`` has a sentence for each.
    """

    copy: RegistryCopy
    state: CopyState
    cache: BlobCache
    stored: frozenset[Digest]

    @property
    def revision(self) -> int:
        """The registry's revision that the copy shows."""
        return self.state.position.revision

    def lines(self, name: str) -> list[Line]:
        """Read the JSON documents of one member of an archive."""
        return self._tasks[0] if name == TASKS else self.copy.lines(name)

    def digests(self) -> list[Digest]:
        """The bundles of the cache that versions name and Redis does not have."""
        return [digest for digest in self.named if digest not in self.stored]

    def size_of(self, digest: Digest) -> int:
        """A bundle's size in bytes."""
        return self.cache.path_of(digest).stat().st_size

    def bundle(self, digest: Digest) -> Blob:
        """Read and hash one bundle."""
        return self.cache.get(digest)

    @cached_property
    def named(self) -> list[Digest]:
        """The bundles that the versions name which are put back."""
        return sorted({Digest(d) for line in self.lines(TASKS) for d in line["versions"]})

    @property
    def left_out(self) -> list[str]:
        """What the copy knows of and cannot put back."""
        return self._tasks[1]

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many there are of each that is put back."""
        return {
            "tasks": len(self.lines(TASKS)),
            "versions": sum(len(line["versions"]) for line in self.lines(TASKS)),
            "keys": len(self.copy.lines(KEYS)),
            "tenants": len(self.copy.lines(TENANTS)),
            "changes": len(self.copy.lines(AUDIT)),
            "bundles": len(self.digests()),
            "bundle_bytes": sum(map(self.size_of, self.digests())),
        }

    @cached_property
    def _tasks(self) -> tuple[list[Line], list[str]]:
        available = self.stored | self._intact
        left_out: list[str] = []
        return [_kept(line, available, left_out) for line in self.copy.lines(TASKS)], left_out

    @cached_property
    def _intact(self) -> frozenset[Digest]:
        """The bundles of the cache whose bytes are right, of those that Redis does not have."""
        return frozenset(d for d in self.cache.digests() - self.stored if self._is_intact(d))

    def _is_intact(self, digest: Digest) -> bool:
        try:
            self.cache.get(digest)
        except (BlobMissing, BlobCorrupt):
            return False
        return True


def copies_in(cache: Path) -> list[tuple[RegistryCopy, CopyState]]:
    """Return the copies in a replica's cache, the newest first; NoCopy if there is none."""
    copies = Copies(cache)
    found = [(copy, copy.state()) for copy in (copies.newest, *copies.older())]
    some = [(copy, state) for copy, state in found if state is not None]
    if not some:
        raise NoCopy(str(cache))
    return some


async def restorable(store: Store, cache: Path, number: int = 0) -> Restorable:
    """Look what a copy can put back: the newest, or the older one with this number.

    NoCopy if there is no such copy, SnapshotCorrupt if it is damaged.
    """
    copies = await asyncio.to_thread(copies_in, cache)
    if not 0 <= number < len(copies):
        raise NoCopy(str(cache), number, len(copies))
    stored = await BlobStore(store).digests()
    found = Restorable(*copies[number], BlobCache(cache), stored)
    await asyncio.to_thread(lambda: found.counts)
    return found


async def restore(
    store: Store,
    found: Restorable,
    mode: ImportMode,
    actor: str,
    on_progress: OnProgress = no_progress,
) -> int:
    """Put the registry back as one change; return its revision, which is above the copy's.

    Replicas that knew the registry go over to it, unless they know later changes than the copy.
    """
    position = found.state.position
    note = f"{len(found.lines(TASKS))} tasks of a replica's copy at revision {position.revision}"
    act = Act(EventAction.RESTORE, actor, note, [position])
    return await Import(store, found, act, on_progress).run(mode)


def _kept(line: Line, available: Collection[Digest], left_out: list[str]) -> Line:
    """Return a task's line without the versions whose bundles are missing."""
    versions: Mapping[str, Any] = line["versions"]  # Any: a JSON document, as below
    missing = {digest for digest in versions if digest not in available}
    if not missing:
        return line
    task, record = line["task"], dict(line["record"])
    left_out += [f"{task}: version {versions[digest]['version']}" for digest in sorted(missing)]
    aliases = record["aliases"] or {}
    lost = sorted(name for name, target in aliases.items() if target["digest"] in missing)
    left_out += [f"{task}: alias {name}" for name in lost]
    record["aliases"] = {name: aliases[name] for name in aliases if name not in lost}
    if missing & set((record.get("traffic") or {}).get("versions") or {}):
        left_out.append(f"{task}: its traffic")
        del record["traffic"]
    states = [state for state in line["states"] if not missing & _named(state)]
    if len(states) < len(line["states"]):
        left_out.append(f"{task}: {len(line['states']) - len(states)} earlier states")
    kept = {digest: text for digest, text in versions.items() if digest not in missing}
    return {**line, "record": record, "versions": kept, "states": states}


def _named(state: Mapping[str, Any]) -> set[str]:
    targets: Sequence[Mapping[str, Any]] = list((state["aliases"] or {}).values())
    in_traffic = (state.get("traffic") or {}).get("versions") or {}
    return {target["digest"] for target in targets} | set(in_traffic)
