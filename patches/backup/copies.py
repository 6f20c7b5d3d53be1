"""Copies of a registry on a replica's disk, the newest and older ones, to put it back from.

A copy has what an archive has, except for bundles, which are in the replica's cache. It is kept up
to date in steps, and only by what was read from a registry that holds what was known before
(``docs/decisions/0165-copies-of-the-registry.md``). SQLite makes each step complete or absent.
"""

import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from peterrec.model.disk import sync
from peterrec.patches.backup.archive import AUDIT, KEYS, TASKS, TENANTS, Line
from peterrec.patches.errors import CacheUnwritable, SnapshotCorrupt
from peterrec.patches.identity import Digest, TenantId
from peterrec.patches.registry.records import Position

FOLDER = "registry"
"""The copies' folder within a replica's cache."""

NEWEST = "newest.db"

OLDER_KEPT = 4
OLDER_BYTES = 1 << 30
"""Older copies that are kept, and the bytes of those with the bundles that only they name."""

OLDER_INTERVAL_S = 3600.0
"""Seconds between two of the older copies, except before another registry takes its place."""

CHANGES_KEPT = 10_000
"""Changes of the audit trail in a copy: as many as the registry keeps at least."""

BUSY_TIMEOUT_S = 5.0

_REFUSED_BY_THE_SYSTEM = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)
"""What SQLite reports of a file that is as it should be."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY CHECK (id = 0), text BLOB, sha256 TEXT);
CREATE TABLE IF NOT EXISTS records (
    kind TEXT, name TEXT, revision INTEGER, text BLOB, sha256 TEXT, PRIMARY KEY (kind, name)
) WITHOUT ROWID;
"""


class CopyState(msgspec.Struct, frozen=True):
    """What a copy is of: the registry's position, when it was read (Unix time), and its size."""

    position: Position
    saved_at: float
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class CopyUpdate:
    """What changed from a copy's position to this one; texts are lines of an archive.

    ``tasks`` have the revision of each that differs, and ``task_names`` all that there are.
    ``keys`` and ``tenants`` are all that there are. ``changes`` are those after the copy's last
    one, by revision. ``is_other`` means that nothing of the copy belongs to this registry.
    """

    position: Position
    task_names: Collection[str]
    tasks: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)
    keys: Mapping[str, bytes] = field(default_factory=dict)
    tenants: Mapping[str, bytes] = field(default_factory=dict)
    changes: Mapping[int, bytes] = field(default_factory=dict)
    is_other: bool = False


class RegistryCopy:
    """One copy in one file. All methods block; only one thread at a time may call them.

    CacheUnwritable if the file cannot be written, SnapshotCorrupt if it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def state(self) -> CopyState | None:
        """Return what the copy is of; None if there is none."""
        if not self.path.exists():
            return None
        with self._open() as file:
            row = file.execute("SELECT text, sha256 FROM state").fetchone()
        if row is None:
            return None
        _check_sum(self.path, *row)
        return msgspec.json.decode(row[0], type=CopyState)

    def revisions(self) -> dict[str, int]:
        """Return the revision of each task."""
        if not self.path.exists():
            return {}
        with self._open() as file:
            rows = file.execute("SELECT name, revision FROM records WHERE kind = ?", (TASKS,))
            return dict(rows.fetchall())

    def last_change(self) -> int:
        """Return the revision of the last change of the trail; 0 if there is none."""
        if not self.path.exists():
            return 0
        with self._open() as file:
            row = file.execute("SELECT MAX(revision) FROM records WHERE kind = ?", (AUDIT,))
            return int(row.fetchone()[0] or 0)

    def lines(self, kind: str) -> list[Line]:
        """Read the JSON documents of one member of an archive, each checked by its sum."""
        with self._open() as file:
            rows = file.execute(
                "SELECT text, sha256 FROM records WHERE kind = ? ORDER BY revision, name", (kind,)
            ).fetchall()
        for row in rows:
            _check_sum(self.path, *row)
        state = self.state()
        if state is None or state.counts.get(kind, 0) != len(rows):
            raise _damaged(self.path, f"it has {len(rows)} lines of {kind}")
        return [msgspec.json.decode(text, type=Line) for text, _ in rows]

    def apply(self, update: CopyUpdate) -> None:
        """Bring the copy up to date, completely or not at all."""
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        with self._open() as file, file:
            if update.is_other:
                file.execute("DELETE FROM records")
            _keep_only(file, TASKS, update.task_names)
            for kind, texts in ((KEYS, update.keys), (TENANTS, update.tenants)):
                _keep_only(file, kind, texts)
                _put(file, kind, ((name, 0, text) for name, text in texts.items()))
            _put(file, TASKS, ((name, *each) for name, each in update.tasks.items()))
            _put(file, AUDIT, ((f"{at:020}", at, text) for at, text in update.changes.items()))
            oldest = update.position.revision - CHANGES_KEPT
            file.execute("DELETE FROM records WHERE kind = ? AND revision <= ?", (AUDIT, oldest))
            _set_state(file, update.position, time.time())

    def erase(self, tenants: Collection[TenantId]) -> None:
        """Erase the tasks and keys of tenants that were deleted; their bytes are overwritten."""
        if not self.path.exists():
            return
        with self._open() as file:
            file.execute("PRAGMA secure_delete = ON")
            with file:
                for tenant in tenants:
                    like = (TASKS, f"{tenant}/", len(tenant) + 1)
                    file.execute(
                        "DELETE FROM records WHERE kind = ? AND ? = SUBSTR(name, 1, ?)", like
                    )
                rows = file.execute("SELECT name, text FROM records WHERE kind = ?", (KEYS,))
                for name, text in rows.fetchall():
                    if msgspec.json.decode(text)["record"]["tenant"] in tenants:
                        file.execute(
                            "DELETE FROM records WHERE kind = ? AND name = ?", (KEYS, name)
                        )
                before = self.state()
                if before is not None:
                    _set_state(file, before.position, before.saved_at)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)) as file:
                file.executescript(_SCHEMA)
                yield file
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _REFUSED_BY_THE_SYSTEM:
                raise _damaged(self.path, f"{error}") from error
            raise CacheUnwritable(
                f"the copy of the registry {self.path} cannot be opened or written: {error}.",
                hint="Free space or give the server a writable data directory.",
            ) from error
        except msgspec.MsgspecError as error:
            raise _damaged(self.path, f"{error}") from error


class Copies:
    """The copies in a replica's cache: the newest, and older ones that may have what it lost.

    An older copy is kept at first, every hour, and before another registry takes the place of
    one. All methods block.
    """

    def __init__(self, cache: Path) -> None:
        self._folder = cache / FOLDER
        self._served: dict[Path, frozenset[Digest]] = {}  # by older copy, which does not change
        self.newest = RegistryCopy(self._folder / NEWEST)

    def older(self) -> list[RegistryCopy]:
        """Return the older copies, the latest first."""
        if not self._folder.is_dir():
            return []
        names = (path for path in self._folder.glob("*.db") if path.stem.isdecimal())
        return [RegistryCopy(path) for path in sorted(names, key=_age)]

    def update(self, update: CopyUpdate) -> None:
        """Bring the newest copy up to date; keep what it was if that is due."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise CacheUnwritable(
                f"{self._folder} cannot be made: {error}.", hint="Give the server room to write."
            ) from error
        self._keep_older(is_other=update.is_other)
        self.newest.apply(update)

    def bundles(self, sizes: Mapping[Digest, int]) -> frozenset[Digest]:
        """Return the bundles that older copies name, of those whose sizes are given.

        Copies for which there is no room any more are removed, the oldest first.
        """
        named: set[Digest] = set()
        room = OLDER_BYTES
        for number, copy in enumerate(self.older()):
            if copy.path not in self._served:
                self._served[copy.path] = frozenset(_served(copy))
            more = self._served[copy.path] & sizes.keys() - named
            room -= copy.path.stat().st_size + sum(sizes[digest] for digest in more)
            if number >= OLDER_KEPT or room < 0:
                copy.path.unlink(missing_ok=True)
            else:
                named |= more
        return frozenset(named)

    def erase(self, tenants: Collection[TenantId]) -> None:
        """Erase what all copies hold of tenants that were deleted."""
        for copy in (self.newest, *self.older()):
            try:
                copy.erase(tenants)
            except SnapshotCorrupt:
                copy.path.unlink(missing_ok=True)

    def _keep_older(self, *, is_other: bool) -> None:
        state = self.newest.state()
        if state is None:
            return
        older = self.older()
        last = older[0].path.stem if older else "0"
        if is_other or state.saved_at - int(last) / 1000 >= OLDER_INTERVAL_S:
            target = self._folder / f"{int(state.saved_at * 1000)}.db"
            partial = target.with_suffix(".partial")
            try:
                shutil.copy(self.newest.path, partial)
                sync(partial)
                partial.replace(target)
            except OSError as error:
                raise CacheUnwritable(
                    f"{target} cannot be written: {error}.", hint="Free space."
                ) from error


def _served(copy: RegistryCopy) -> Iterator[Digest]:
    """Yield the bundles that a copy's aliases and traffic name, which replicas have cached."""
    try:
        lines = copy.lines(TASKS)
    except SnapshotCorrupt:
        return
    for line in lines:
        record = line["record"]
        yield from (Digest(target["digest"]) for target in (record["aliases"] or {}).values())
        yield from map(Digest, (record.get("traffic") or {}).get("versions") or {})


def _age(path: Path) -> int:
    return -int(path.stem)


def _keep_only(file: sqlite3.Connection, kind: str, names: Collection[str]) -> None:
    rows = file.execute("SELECT name FROM records WHERE kind = ?", (kind,)).fetchall()
    gone = {name for (name,) in rows}.difference(names)
    file.executemany(
        "DELETE FROM records WHERE kind = ? AND name = ?", ((kind, name) for name in gone)
    )


def _put(file: sqlite3.Connection, kind: str, records: Iterable[tuple[str, int, bytes]]) -> None:
    file.executemany(
        "INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT (kind, name) DO UPDATE SET "
        "revision = excluded.revision, text = excluded.text, sha256 = excluded.sha256 "
        "WHERE sha256 != excluded.sha256",
        ((kind, name, revision, text, _sum(text)) for name, revision, text in records),
    )


def _set_state(file: sqlite3.Connection, position: Position, saved_at: float) -> None:
    counts = dict(file.execute("SELECT kind, COUNT(*) FROM records GROUP BY kind").fetchall())
    text = msgspec.json.encode(CopyState(position, saved_at, counts))
    file.execute("INSERT OR REPLACE INTO state VALUES (0, ?, ?)", (text, _sum(text)))


def _sum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _check_sum(path: Path, text: bytes, expected: str) -> None:
    if not isinstance(text, bytes) or _sum(text) != expected:
        raise _damaged(path, "a checksum is wrong")


def _damaged(path: Path, what: str) -> SnapshotCorrupt:
    return SnapshotCorrupt(
        f"the copy of the registry in {path} is damaged: {what}.", hint="Use another copy."
    )
