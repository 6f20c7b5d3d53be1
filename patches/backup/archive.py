"""The archive of a registry: a tar of JSON lines and bundles that ends in a manifest of digests.

It is written in one pass, one bundle at a time, and exists completely or not at all. Reading checks
every byte before any of it is used, and unpacks nothing to the disk. Why this is not BagIt:
``docs/decisions/0043-registry-archive.md``.
"""

import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from peterrec.model.disk import file_in_one_step, refusal
from peterrec.patches.errors import ArchiveInvalid
from peterrec.patches.identity import Blob, Digest

ARCHIVE_FORMAT = "peterrec.registry/2"
READABLE_FORMATS = (ARCHIVE_FORMAT, "peterrec.registry/1")
"""The first form had no tenants."""

MANIFEST_NAME, CHECKSUM_NAME = "manifest.json", "manifest.sha256"
TASKS, KEYS, AUDIT, TENANTS = "tasks.jsonl", "keys.jsonl", "audit.jsonl", "tenants.jsonl"

CHUNK_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 256 << 20
"""Largest manifest that is read: over a million bundles."""

_BLOB_NAME = re.compile(r"blobs/([0-9a-f]{64})\.bundle\Z")

Line = dict[str, Any]  # Any: a JSON document
Form = TypeVar("Form")


class ArchivedFile(msgspec.Struct, frozen=True):
    """The size and sha256 of a member."""

    sha256: str
    size_bytes: int


class ArchiveManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of an archive, and the registry's revision and time that they show."""

    format: str
    revision: int
    exported_at: str
    files: dict[str, ArchivedFile]

    @property
    def blob_count(self) -> int:
        """The number of bundles."""
        return sum(_BLOB_NAME.match(name) is not None for name in self.files)

    @property
    def size_bytes(self) -> int:
        """The bytes of all members together."""
        return sum(file.size_bytes for file in self.files.values())


@dataclass(frozen=True, slots=True)
class ArchiveWriter:
    """An archive that is being written; its methods block."""

    tar: tarfile.TarFile
    files: dict[str, ArchivedFile]

    def add_lines(self, name: str, lines: list[Line]) -> None:
        """Add JSON documents as one member, one per line."""
        self._add(name, Blob(b"".join(msgspec.json.encode(line) + b"\n" for line in lines)))

    def add_bundle(self, blob: Blob) -> None:
        """Add a bundle as one member."""
        self._add(f"blobs/{blob.digest}.bundle", blob)

    def finish(self, revision: int, exported_at: str) -> ArchiveManifest:
        """Write the manifest, after which nothing may be added."""
        manifest = ArchiveManifest(ARCHIVE_FORMAT, revision, exported_at, dict(self.files))
        text = msgspec.json.encode(manifest)
        self._write(MANIFEST_NAME, text)
        self._write(CHECKSUM_NAME, _sha256(text).encode())
        return manifest

    def _add(self, name: str, blob: Blob) -> None:
        self.files[name] = ArchivedFile(blob.digest, len(blob.data))
        self._write(name, blob.data)

    def _write(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o600
        self.tar.addfile(member, BytesIO(data))


@contextmanager
def writing_archive(path: Path) -> Iterator[ArchiveWriter]:
    """Write an archive next to ``path`` and rename it to ``path`` if the block succeeds."""
    with (
        file_in_one_step(path, mode=0o600) as partial,
        tarfile.open(partial, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        yield ArchiveWriter(tar, {})


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive of which every byte was checked against the manifest. Its methods block."""

    tar: tarfile.TarFile
    manifest: ArchiveManifest

    @property
    def revision(self) -> int:
        """The registry's revision that the archive shows."""
        return self.manifest.revision

    def lines(self, name: str) -> list[Line]:
        """Read the JSON documents of one member; none if an older archive does not have it."""
        if name not in self.manifest.files:
            return []
        return [_decode(line, Line, name) for line in self._read(name).splitlines()]

    def digests(self) -> list[Digest]:
        """Return the bundles' digests."""
        matches = map(_BLOB_NAME.match, self.manifest.files)
        return [Digest(match.group(1)) for match in matches if match]

    def size_of(self, digest: Digest) -> int:
        """Return a bundle's size in bytes."""
        return self.manifest.files[f"blobs/{digest}.bundle"].size_bytes

    def bundle(self, digest: Digest) -> Blob:
        """Read and hash one bundle."""
        return Blob(self._read(f"blobs/{digest}.bundle"))

    def close(self) -> None:
        """Close the file."""
        self.tar.close()

    def _read(self, name: str) -> bytes:
        try:
            file = self.tar.extractfile(name)
            assert file is not None, "only regular files pass the check"
            return file.read()
        except (OSError, tarfile.TarError) as error:
            raise ArchiveInvalid(f"{name} can no longer be read: {error}.") from error


def open_archive(path: Path) -> Archive:
    """Open and check an archive; ArchiveInvalid with the first problem. Reads the whole file."""
    with ExitStack() as undo:
        try:
            tar = undo.enter_context(tarfile.open(path, mode="r:"))
            members = tar.getmembers()
            _check_members(members)
            manifest = _manifest(tar, *members[-2:])
            _check_files(tar, members[:-2], manifest.files)
        except tarfile.TarError as error:
            raise ArchiveInvalid(f"{path} cannot be read as an archive: {error}.") from error
        except OSError as error:
            raise refusal(error, path, doing="read") from error
        undo.pop_all()
    return Archive(tar, manifest)


def _check_members(members: list[tarfile.TarInfo]) -> None:
    names = [member.name for member in members]
    if names[-2:] != [MANIFEST_NAME, CHECKSUM_NAME]:
        raise ArchiveInvalid(
            f"the archive does not end in {MANIFEST_NAME} and {CHECKSUM_NAME}.",
            hint="It was cut off; copy it again.",
        )
    odd = [member.name for member in members if not member.isreg()]
    if odd:
        raise ArchiveInvalid(f"{odd[0][:100]!r} is not a regular file.")
    if len(set(names)) != len(names):
        raise ArchiveInvalid("a name occurs twice in the archive.")


def _manifest(
    tar: tarfile.TarFile, member: tarfile.TarInfo, checksum: tarfile.TarInfo
) -> ArchiveManifest:
    if member.size > MAX_MANIFEST_BYTES or checksum.size != 64:
        raise ArchiveInvalid(
            f"{MANIFEST_NAME} has {member.size} bytes and {CHECKSUM_NAME} has {checksum.size}.",
            hint=f"At most {MAX_MANIFEST_BYTES} and exactly 64 are accepted.",
        )
    file, expected = tar.extractfile(member), tar.extractfile(checksum)
    assert file is not None
    assert expected is not None
    text = file.read()
    if _sha256(text).encode() != expected.read():
        raise ArchiveInvalid(f"{CHECKSUM_NAME} does not match {MANIFEST_NAME}.")
    if _decode(text, Line, MANIFEST_NAME).get("format") not in READABLE_FORMATS:
        raise ArchiveInvalid(
            f"the archive's format is none of {', '.join(READABLE_FORMATS)}.",
            hint="Import it with the version that wrote it.",
        )
    return _decode(text, ArchiveManifest, MANIFEST_NAME)


def _check_files(
    tar: tarfile.TarFile, members: list[tarfile.TarInfo], files: Mapping[str, ArchivedFile]
) -> None:
    if {member.name for member in members} != files.keys():
        raise ArchiveInvalid("the archive's members are not those that its manifest lists.")
    for name in (TASKS, KEYS, AUDIT):
        if name not in files:
            raise ArchiveInvalid(f"the archive does not have {name}.")
    for member in members:
        found = _digest(tar, member)
        blob = _BLOB_NAME.match(member.name)
        is_named_right = blob is None or blob.group(1) == found.sha256
        if found != files[member.name] or not is_named_right:
            raise ArchiveInvalid(
                f"{member.name[:100]} does not match the manifest.",
                hint="The archive was damaged; copy it again.",
            )


def _digest(tar: tarfile.TarFile, member: tarfile.TarInfo) -> ArchivedFile:
    file = tar.extractfile(member)
    assert file is not None
    whole = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        whole.update(chunk)
    return ArchivedFile(whole.hexdigest(), member.size)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _decode(text: bytes, form: type[Form], what: str) -> Form:
    try:
        return msgspec.json.decode(text, type=form)
    except msgspec.MsgspecError as error:
        raise ArchiveInvalid(f"{what} cannot be read: {error}.") from error
