"""The last-known-good copy on disk: what a replica starts from while Redis is away."""

import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from peterrec.patches.errors import BlobCorrupt, BlobMissing, CacheUnwritable, SnapshotCorrupt
from peterrec.patches.identity import DIGEST_DIGITS, Digest, digest_of
from peterrec.patches.interning import shared_digest
from peterrec.patches.registry.api_keys import KeyRecord
from peterrec.patches.registry.records import RegistrySnapshot, TaskEntry

SNAPSHOT_NAME = "snapshot.json"
SETTLED_AT_ONCE = 64
_BLOB_NAME = re.compile(r"[0-9a-f]{64}\.bundle\Z")
_TEMPORARY_PREFIX = ".writing-"


class _SavedSnapshot(msgspec.Struct, frozen=True):
    revision: int
    tasks: tuple[TaskEntry, ...]
    keys: tuple[KeyRecord, ...]
    mark: str = ""


class BlobCache:
    """Bundles by digest and the last snapshot, in a directory of this process alone.

    Every file is complete or absent, whenever the process ends; should the machine end too, a
    bundle that was not settled may be damaged, which ``get`` notices. All methods block; one
    thread at a time. Raises CacheUnwritable if the directory can't be written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._unsettled: set[Path] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise _unwritable(error) from error

    def put(self, digest: Digest, data: bytes) -> None:
        """Keep a bundle, whose digest was verified; ``settle`` it later."""
        path = self.path_of(digest)
        self._write(path, data, is_lasting=False)
        self._unsettled.add(path)

    def settle(self) -> bool:
        """Have the disk write a few bundles that were put; False if there may be more.

        Thousands are put at a start: waiting for the disk at each would take longer than all else.
        """
        try:
            for path in list(self._unsettled)[:SETTLED_AT_ONCE]:
                self._unsettled.discard(path)
                with suppress(FileNotFoundError):
                    _sync(path)
        except OSError as error:
            raise _unwritable(error) from error
        return not self._unsettled

    def get(self, digest: Digest) -> bytes:
        """A kept bundle; BlobMissing, or BlobCorrupt after dropping one that was damaged."""
        path = self.path_of(digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BlobMissing(digest) from error
        found = digest_of(data)
        if found != digest:
            path.unlink(missing_ok=True)
            raise BlobCorrupt(digest, found)
        return data

    def digests(self) -> frozenset[Digest]:
        """The bundles that are kept, unverified."""
        names = filter(_BLOB_NAME.match, self._names())
        return frozenset(Digest(name[:DIGEST_DIGITS]) for name in names)

    def retain(self, digests: Collection[Digest]) -> None:
        """Drop all other bundles, and what an interrupted write left."""
        for name in self._names():
            is_other = _BLOB_NAME.match(name) and Digest(name[:DIGEST_DIGITS]) not in digests
            if is_other or name.startswith(_TEMPORARY_PREFIX):
                path = self.directory / name
                path.unlink(missing_ok=True)
                self._unsettled.discard(path)

    def save_snapshot(self, snapshot: RegistrySnapshot) -> None:
        """Keep the registry's state; put and settle the bundles that it names first."""
        saved = _SavedSnapshot(
            snapshot.revision,
            tuple(snapshot.tasks.values()),
            tuple(snapshot.keys.values()),
            snapshot.mark,
        )
        text = msgspec.json.encode(saved)
        path = self.directory / SNAPSHOT_NAME
        self._write(path, _checksum(text) + b"\n" + text, is_lasting=True)

    def load_snapshot(self) -> RegistrySnapshot | None:
        """The kept state, None if there is none; SnapshotCorrupt after dropping a damaged one."""
        path = self.directory / SNAPSHOT_NAME
        try:
            checksum, _, text = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        try:
            if checksum != _checksum(text):
                raise msgspec.DecodeError("its checksum is wrong")
            saved = msgspec.json.decode(text, type=_SavedSnapshot)
        except msgspec.MsgspecError as error:
            path.unlink(missing_ok=True)
            raise SnapshotCorrupt(
                f"the copy of the registry in {path} is damaged: {error}.",
                hint="It was dropped; the server waits for Redis.",
            ) from error
        return RegistrySnapshot(
            revision=saved.revision,
            tasks={entry.ref: entry.shared(shared_digest) for entry in saved.tasks},
            keys={record.key_id: record for record in saved.keys},
            mark=saved.mark,
        )

    def path_of(self, digest: Digest) -> Path:
        """Where a kept bundle lies."""
        return self.directory / f"{digest}.bundle"

    def _names(self) -> Iterator[str]:
        """The directory's files one after the other: there may be ten thousands."""
        with os.scandir(self.directory) as entries:
            yield from (entry.name for entry in entries)

    def _write(self, path: Path, data: bytes, *, is_lasting: bool) -> None:
        """Write beside, rename: whoever reads finds the old file or the new one.

        A lasting file is on the disk before it takes the old one's place: a crash of the machine
        leaves one of the two as well.
        """
        try:
            number, name = tempfile.mkstemp(prefix=_TEMPORARY_PREFIX, dir=self.directory)
            try:
                with os.fdopen(number, "wb") as file:
                    file.write(data)
                    if is_lasting:
                        file.flush()
                        os.fsync(file.fileno())
                Path(name).replace(path)
            finally:
                with suppress(FileNotFoundError):
                    Path(name).unlink()
            if is_lasting:
                _sync(self.directory)
        except OSError as error:
            raise _unwritable(error) from error


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _unwritable(error: OSError) -> CacheUnwritable:
    return CacheUnwritable(
        f"the last-known-good copy can't be written: {error}.",
        hint="Free space or give the server a writable data directory.",
    )
