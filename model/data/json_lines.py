"""Users in JSON lines: one object per line, with an id and a list of items.

Arrow parses many lines at a time. Where it refuses some, they are parsed one by one, so that a bad
line costs no other line anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from peterrec.model.data.first_bytes import HEAD_BYTES, UTF_8_MARK, packing_of
from peterrec.model.data.forms import PACKED_SUFFIXES, file_errors, open_bytes, order_key
from peterrec.model.data.observer import SILENT, FilesRead, ReadingObserver
from peterrec.model.data.user_rows import BadRow, Lists, UserRows, checked
from peterrec.model.errors import DataFileEmpty, DataFileUnreadable
from peterrec.model.progress import Progress

SUFFIXES = (".ndjson", ".jsonl", ".jsonlines", ".json")
"""Suffixes of files with JSON lines, perhaps with one of ``PACKED_SUFFIXES`` after it."""

BLOCK_BYTES = 4 << 20
"""Bytes that are parsed at a time: some ten thousand users."""

LONGEST_LINE_BYTES = 64 << 20
"""Bytes of a line from which on the file is taken for something else."""

SHOWN_LINE = 80
"""Characters of a bad line that its reason repeats."""


def is_json_lines(path: Path) -> bool:
    """True for a file of this form by its name, and for a folder with some."""
    if path.is_dir():
        return bool(_files(path))
    return _is_named(path)


def _is_named(path: Path) -> bool:
    name = path.name.lower()
    for packed in PACKED_SUFFIXES:
        name = name.removesuffix(packed)
    return name.endswith(SUFFIXES)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = (
        each
        for each in path.rglob("*")
        if not any(part.startswith((".", "_")) for part in each.relative_to(path).parts)
        and each.is_file()
    )
    lines = [each for each in found if _is_named(each)]
    return sorted(lines, key=lambda each: order_key(each.relative_to(path)))


def read_json_lines(
    path: Path, user_field: str, history_field: str, observer: ReadingObserver = SILENT
) -> Iterator[UserRows]:
    """The users of a file, or of all such files in a folder, in the order of their names."""
    files = _files(path)
    sizes = [file.stat().st_size for file in files]
    observer.files(FilesRead(str(path), len(files), sum(sizes)))
    before, rows = 0, 0
    for file, size in zip(files, sizes, strict=True):
        for found, share in _file_rows(_Fields(file, user_field, history_field)):
            rows += len(found)
            yield found
            done = before + round(size * share)
            observer.progress(Progress("reading", done, sum(sizes), unit="bytes"))
        before += size
    if not rows:
        raise DataFileEmpty(f"{path} has no rows.", hint="Check the export.")


@dataclass(frozen=True, slots=True)
class _Fields:
    """A file, and the fields of its objects that are read."""

    file: Path
    user: str
    history: str


def _file_rows(fields: _Fields) -> Iterator[tuple[UserRows, float]]:
    with file_errors(fields.file):
        with fields.file.open("rb") as raw:
            packing = packing_of(raw.read(HEAD_BYTES))
        size = max(1, fields.file.stat().st_size)
        first, done = 1, 0
        parser = _Parser(fields)
        with open_bytes(fields.file, packing) as stream:
            for block in _blocks(fields.file, stream):
                lines = block.count(b"\n") + (not block.endswith(b"\n"))
                done += len(block)
                share = min(1.0, done / size) if packing == "none" else 0.0
                yield parser.rows(block, first, lines), share
                first += lines


def _blocks(file: Path, stream: pa.NativeFile) -> Iterator[bytes]:
    """The file in pieces of whole lines."""
    rest, is_first = b"", True
    while data := stream.read(BLOCK_BYTES):
        if is_first:
            data, is_first = data.removeprefix(UTF_8_MARK), False
            _require_objects(file, data)
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end]
            rest = data[end:]
        else:
            rest += data
        if len(rest) > LONGEST_LINE_BYTES:
            raise DataFileUnreadable(
                f"{file}: a line has more than {LONGEST_LINE_BYTES >> 20} MiB.",
                hint="Write one object per line.",
            )
    if rest:
        yield rest


def _require_objects(file: Path, data: bytes) -> None:
    start = data.lstrip()[:1]
    if start not in (b"{", b""):
        what = "a list" if start == b"[" else "no object"
        raise DataFileUnreadable(
            f"{file}: the file begins with {what}, but JSON lines have one object per line.",
            hint='Write lines such as {"user_id": "u1", "history": ["a", "b"]}.',
        )
    if data.lstrip()[1:].lstrip(b" \t\r").startswith(b"\n"):
        raise DataFileUnreadable(
            f"{file}: the first object goes over several lines.",
            hint="Write one object per line, for example with jq -c.",
        )


class _Parser:
    """Parses blocks of one file. It remembers of which types the ids were."""

    def __init__(self, fields: _Fields) -> None:
        self._fields = fields
        self._decoder = msgspec.json.Decoder()
        self._types = [(u, i) for u in (pa.string(), pa.int64()) for i in (pa.string(), pa.int64())]

    def rows(self, block: bytes, first: int, lines: int) -> UserRows:
        """The users of a block whose first line has this number."""
        table = self._parsed(block)
        if table is None or table.num_rows != lines:  # there are empty lines, or bad ones
            return self._one_by_one(block, first)
        users, lists = (table[name].combine_chunks() for name in self._names)
        if isinstance(lists, pa.ChunkedArray):
            lists = pa.concat_arrays(lists.chunks)
        lengths = pc.list_value_length(lists).fill_null(-1).cast(pa.int64())
        found = Lists(
            str(self._fields.file),
            "line",
            np.arange(first, first + lines),
            users.cast(pa.string()),
            pc.list_flatten(lists),
            lengths.to_numpy(zero_copy_only=False),
        )
        return checked(found)

    @property
    def _names(self) -> tuple[str, str]:
        return self._fields.user, self._fields.history

    def _parsed(self, block: bytes) -> pa.Table | None:
        """The block as a table, by the types that fitted last; None if none fits."""
        user, history = self._names
        for place, (user_type, item_type) in enumerate(self._types):
            schema = pa.schema([(user, user_type), (history, pa.list_(item_type))])
            try:
                table = pyarrow.json.read_json(
                    pa.BufferReader(block),
                    pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
                    pyarrow.json.ParseOptions(schema, unexpected_field_behavior="ignore"),
                )
            except pa.ArrowInvalid:
                continue
            self._types.insert(0, self._types.pop(place))
            return table
        return None

    def _one_by_one(self, block: bytes, first: int) -> UserRows:
        lines = enumerate(block.split(b"\n"), first)
        given = [(number, line) for number, line in lines if line.strip()]
        ats: list[int] = []
        users: list[str | None] = []
        items: list[list[str | int] | None] = []
        bad: list[BadRow] = []
        for at, (number, line) in enumerate(given):
            try:
                user, history = self._object(line)
            except ValueError as error:
                place = f"{self._fields.file}, line {number}"
                bad.append(BadRow(at, place, None, "malformed_line", f"{error}"))
                continue
            ats.append(at)
            users.append(user)
            items.append(history)
        flat = [item for own in items for item in own or ()]
        is_numbers = all(type(item) is int and abs(item) < 1 << 63 for item in flat)
        texts = pa.array(flat, pa.int64()) if is_numbers else pa.array(map(str, flat), pa.string())
        lengths = np.array([-1 if own is None else len(own) for own in items], np.int64)
        found = checked(
            Lists(
                str(self._fields.file),
                "line",
                [given[at][0] for at in ats],
                pa.array(users, pa.string()),
                texts,
                lengths,
            )
        )
        bad += [replace(row, at=ats[row.at]) for row in found.bad]
        in_order = tuple(sorted(bad, key=lambda row: row.at))
        return UserRows(found.users, found.items, found.offsets, in_order)

    def _object(self, line: bytes) -> tuple[str | None, list[str | int] | None]:
        """The user and items of a line; ValueError says what is wrong with it."""
        try:
            read: Any = self._decoder.decode(line)  # Any: JSON
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            shown = line[:SHOWN_LINE].decode(errors="replace")
            raise ValueError(f"the line is no JSON: {error}: {shown}") from error
        if not isinstance(read, dict):
            raise ValueError("the line is no object.")
        user, history = (read.get(name) for name in self._names)
        if isinstance(user, bool) or not isinstance(user, str | int | None):
            raise ValueError("the user's id is neither a text nor an integer.")
        if history is not None and not isinstance(history, list):
            raise ValueError(f"{self._fields.history} is no list.")
        for item in history or ():
            if isinstance(item, bool) or not isinstance(item, str | int):
                raise ValueError(
                    f"the item {str(item)[:SHOWN_LINE]} is neither a text nor an integer."
                )
        return None if user is None else str(user), history
