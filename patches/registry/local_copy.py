"""The last-known-good copy on disk, from which a replica starts while Redis is unavailable."""

import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from peterrec.model.disk import sync
from peterrec.patches.errors import BlobCorrupt, BlobMissing, CacheUnwritable, SnapshotCorrupt
from peterrec.patches.identity import DIGEST_DIGITS, Blob, Digest
from peterrec.patches.interning import shared_digest
from peterrec.patches.registry.api_keys import KeyRecord
from peterrec.patches.registry.records import RegistrySnapshot, TaskEntry, TenantEntry

SNAPSHOT_NAME = "snapshot.json"
SETTLED_AT_ONCE = 64
"""Bundles that one call of ``settle`` writes to the disk."""

_BLOB_NAME = re.compile(r"[0-9a-f]{64}\.bundle\Z")
_TEMPORARY_PREFIX = ".writing-"


class _SavedSnapshot(msgspec.Struct, frozen=True):
    revision: int
    tasks: tuple[TaskEntry, ...]
    keys: tuple[KeyRecord, ...]
    mark: str = ""
    tenants: tuple[TenantEntry, ...] = ()
    identity: str = ""


class BlobCache:
    """Bundles by digest and the last snapshot, in a directory that only this process uses.

    A file is complete or absent whenever the process stops. If the machine stops too, a bundle that
    was not settled may be damaged, which ``get`` notices. All methods block, and only one thread at
    a time may call them. CacheUnwritable if the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._unsettled: set[Path] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left_over in directory.glob(f"{_TEMPORARY_PREFIX}*"):
                left_over.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(error) from error

    def put(self, blob: Blob) -> None:
        """Keep a bundle; ``settle`` makes it survive a crash of the machine later."""
        path = self.path_of(blob.digest)
        self._write(path, blob.data, is_lasting=False)
        self._unsettled.add(path)

    def settle(self) -> bool:
        """Sync a few of the bundles that were put to the disk; False if more are waiting.

        A start puts thousands of bundles, and waiting for the disk after each one would take longer
        than everything else.
        """
        try:
            for path in list(self._unsettled)[:SETTLED_AT_ONCE]:
                self._unsettled.discard(path)
                with suppress(FileNotFoundError):
                    sync(path)
        except OSError as error:
            raise _unwritable(error) from error
        return not self._unsettled

    def get(self, digest: Digest) -> Blob:
        """Read a kept bundle; BlobMissing, or BlobCorrupt after removing a damaged one."""
        path = self.path_of(digest)
        try:
            blob = Blob(path.read_bytes())
        except OSError as error:
            raise BlobMissing(digest) from error
        if blob.digest != digest:
            path.unlink(missing_ok=True)
            raise BlobCorrupt(digest, blob.digest)
        return blob

    def digests(self) -> frozenset[Digest]:
        """Return the digests of the kept bundles, without checking their bytes."""
        names = filter(_BLOB_NAME.match, self._names())
        return frozenset(Digest(name[:DIGEST_DIGITS]) for name in names)

    def size_of(self, digest: Digest) -> int:
        """Return the bytes of a kept bundle; 0 if it is not there."""
        try:
            return self.path_of(digest).stat().st_size
        except OSError:
            return 0

    def retain(self, digests: Collection[Digest]) -> None:
        """Remove all other bundles, and temporary files that an interrupted write left."""
        for name in self._names():
            is_other = _BLOB_NAME.match(name) and Digest(name[:DIGEST_DIGITS]) not in digests
            if is_other or name.startswith(_TEMPORARY_PREFIX):
                path = self.directory / name
                path.unlink(missing_ok=True)
                self._unsettled.discard(path)

    def save_snapshot(self, snapshot: RegistrySnapshot) -> None:
        """Keep the registry's state. Put and settle the bundles that it names before."""
        saved = _SavedSnapshot(
            snapshot.revision,
            tuple(snapshot.tasks.values()),
            tuple(snapshot.keys.values()),
            snapshot.mark,
            tuple(snapshot.tenants.values()),
            snapshot.identity,
        )
        text = msgspec.json.encode(saved)
        path = self.directory / SNAPSHOT_NAME
        self._write(path, _checksum(text) + b"\n" + text, is_lasting=True)

    def load_snapshot(self) -> RegistrySnapshot | None:
        """Read the kept state or None; SnapshotCorrupt after removing a damaged one."""
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
                hint="It was removed; the server waits for Redis.",
            ) from error
        return RegistrySnapshot(
            revision=saved.revision,
            tasks={entry.ref: entry.shared(shared_digest) for entry in saved.tasks},
            keys={record.key_id: record for record in saved.keys},
            mark=saved.mark,
            tenants={each.tenant: each for each in saved.tenants},
            identity=saved.identity,
        )

    def path_of(self, digest: Digest) -> Path:
        """Return the file of a kept bundle."""
        return self.directory / f"{digest}.bundle"

    def _names(self) -> Iterator[str]:
        """List the directory's files one by one, because there may be tens of thousands."""
        with os.scandir(self.directory) as entries:
            yield from (entry.name for entry in entries)

    def _write(self, path: Path, data: bytes, *, is_lasting: bool) -> None:
        """Write a temporary file and rename it, so that readers find the old or the new file.

        A lasting file is synced to the disk before it is renamed, so that a crash of the machine
        also leaves one of the two.
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
                sync(self.directory)
        except OSError as error:
            raise _unwritable(error) from error


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _unwritable(error: OSError) -> CacheUnwritable:
    return CacheUnwritable(
        f"the last-known-good copy cannot be written: {error}.",
        hint="Free space or give the server a writable data directory.",
    )
