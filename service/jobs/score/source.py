"""Where the users of a run are: files of any form, here or behind a URL, and what tells them apart.

A file behind a URL is fetched first: the readers need files that they can read twice.
"""

import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from peterrec.model.data.forms import find_data_files, is_list_type
from peterrec.model.data.interactions import InteractionSource
from peterrec.model.data.json_lines import is_json_lines, read_json_lines
from peterrec.model.data.observer import FilesRead, ReadingObserver
from peterrec.model.data.user_events import OnBadRows, read_user_events
from peterrec.model.data.user_rows import UserRows, read_user_lists
from peterrec.model.documents import Document
from peterrec.model.errors import PathMissing
from peterrec.model.progress import Progress
from peterrec.model.scratch import ScratchFolder
from peterrec.service.errors import InputUnreachable, NoUserReadable, UsersMixed

FETCHED_AT_ONCE = 1 << 22
"""Bytes of a file behind a URL that are fetched at a time."""

HISTORY = "history"
"""The column of lists that is looked for if none is named."""


@dataclass(frozen=True, slots=True)
class UserSource:
    """Users to score: a table of events, or one with a list in ``history_column`` for each user.

    ``url`` is what was given, a path or a URL. ``identity`` changes if the files do.
    """

    url: str
    events: InteractionSource
    history_column: str | None
    identity: Document

    @property
    def path(self) -> Path:
        """The file or folder on this machine."""
        assert isinstance(self.events.table.data, Path)
        return self.events.table.data

    @property
    def form(self) -> str:
        """What the source has: ``lists``, ``lines`` of JSON or ``events``."""
        if is_json_lines(self.path):
            return "lines"
        return "events" if self._lists() is None else "lists"

    def total_rows(self) -> int:
        """How many users there are, if that is known without reading them; else 0."""
        if self.form != "lists":
            return 0
        table = self.events.table
        files = find_data_files(self.path, table.delimiter, table.columns).files
        if table.where or any(file.form is not None for file in files):
            return 0
        return sum(pq.read_metadata(file.path).num_rows for file in files)

    def rows(self, on_bad: OnBadRows, observer: ReadingObserver) -> Iterator[UserRows]:
        """The users in an order that is the same in every run, some at a time.

        ``on_bad`` gets events that belong to no user; all other bad rows are among the users.
        """
        return _of_one_type(self.url, self._read(on_bad, observer))

    def _read(self, on_bad: OnBadRows, observer: ReadingObserver) -> Iterator[UserRows]:
        user, table = self.events.user_column, self.events.table
        if self.form == "lines":
            history = self.history_column or HISTORY
            return read_json_lines(self.path, user, history, observer)
        lists = self._lists()
        if lists is not None:
            return read_user_lists(table, user, lists, observer)
        return read_user_events(self.events, on_bad, observer)

    def _lists(self) -> str | None:
        """The column that has a list of items in each row; None for a table of events."""
        if self.history_column is not None:
            return self.history_column
        table = self.events.table
        first = find_data_files(self.path, table.delimiter, table.columns).files[0]
        if self.events.order_column is None and HISTORY in first.columns:
            return HISTORY
        item = self.events.item_column
        if first.schema is None or item not in first.schema.names:
            return None
        is_list = is_list_type(first.schema.field(item).type)
        return item if is_list and self.events.order_column is None else None


def _of_one_type(name: str, blocks: Iterator[UserRows]) -> Iterator[UserRows]:
    """Blocks whose users are all of the type that the first ones are of."""
    kind, has_good, first_bad = None, False, None
    for block in blocks:
        if len(block.users):
            kind, has_good = kind or block.users.type, True
            if block.users.type != kind:
                raise UsersMixed(name, str(kind), str(block.users.type))
        elif block.bad and first_bad is None:
            first_bad = block.bad[0]
            if not has_good:
                raise NoUserReadable(f"{first_bad.place}: {first_bad.reason}")
        yield block


@contextmanager
def user_source(
    url: str,
    make: Callable[[Path], InteractionSource],
    history_column: str | None,
    observer: ReadingObserver,
) -> Iterator[UserSource]:
    """The users at a path or URL. What was fetched is removed when the block ends."""
    if "://" not in url:
        path = Path(url)
        if not path.exists():
            raise PathMissing(f"{path} does not exist.", hint="Check the path of `users`.")
        yield UserSource(url, make(path), history_column, _files_of(path))
        return
    with ScratchFolder() as folder:
        with _fetch_errors(url):
            remote = _Remote.open(url)
            identity = remote.identity()
            path = remote.fetch(folder, observer)
        yield UserSource(url, make(path), history_column, identity)


def _files_of(path: Path) -> Document:
    """Names, sizes and times of the files at a path."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    found = [(str(each.relative_to(path)), each.stat()) for each in files]
    return {"files": [[name, state.st_size, state.st_mtime_ns] for name, state in found]}


@dataclass(frozen=True, slots=True)
class _Remote:
    """Files behind a URL, by any file system that fsspec knows."""

    url: str
    system: Any  # Any: an fsspec file system
    root: str
    files: tuple[str, ...]

    @classmethod
    def open(cls, url: str) -> "_Remote":
        """Find the files; those of a folder in the order of their names."""
        import fsspec

        system, root = fsspec.url_to_fs(url)
        if system.isfile(root):
            return cls(url, system, root, (root,))
        files = tuple(sorted(system.find(root)))
        if not files:
            raise FileNotFoundError(url)
        return cls(url, system, root, files)

    def identity(self) -> Document:
        """What the file system says that changes with a file."""
        return {"files": [[self._name(file), *self._state(file)] for file in self.files]}

    def fetch(self, folder: Path, observer: ReadingObserver) -> Path:
        """Fetch all files into a folder; returns the file, or the folder if there are several."""
        sizes = [int(self.system.info(file).get("size") or 0) for file in self.files]
        observer.files(FilesRead(self.url, len(self.files), sum(sizes)))
        done, target = 0, folder
        for file in self.files:
            target = folder / "users" / self._name(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.system.open(file, "rb") as source, target.open("wb") as out:
                while data := source.read(FETCHED_AT_ONCE):
                    out.write(data)
                    done += len(data)
                    observer.progress(Progress("fetching", done, sum(sizes), unit="bytes"))
        return target if self.files == (self.root,) else folder / "users"

    def _name(self, file: str) -> str:
        if file == self.root:
            return posixpath.basename(urlsplit(file).path) or "users"
        return posixpath.relpath(file, self.root)

    def _state(self, file: str) -> list[str]:
        info = self.system.info(file)
        names = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "generation")
        return [f"{name}={info[name]}" for name in names if info.get(name) is not None]


@contextmanager
def _fetch_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputUnreachable(url, reason) from error
