"""Which files a path stands for, and the form of each: found out before any row is read.

A folder stands for all tables below it, in the order of their names; numbers within names count as
numbers, so ``part-2`` comes before ``part-10``. Names that begin with a dot or an underscore are no
data, and neither is what lies within folders of such names. Folders named ``column=value`` give the
files below them a column. Names say which files are meant, and the first bytes say what they are.
"""

import csv
import filecmp
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from peterrec.model.data.delimiters import BY_SUFFIX, USUAL, describe_delimiter, parse_delimiter
from peterrec.model.data.first_bytes import (
    HEAD_BYTES,
    UTF_8,
    UTF_8_MARK,
    Container,
    Foreign,
    Packing,
    container_of,
    packing_of,
)
from peterrec.model.errors import (
    ColumnMissing,
    ColumnsInvalid,
    DataFileEmpty,
    DataFileMissing,
    DataFileUnreadable,
)

ATOMIC_SUFFIXES = (".inter", ".user", ".item")
"""RecBole's atomic files: separated by tabs, without quotes, with a header of ``name:type``."""

ATOMIC_TYPES = ("token", "token_seq", "float", "float_seq")
LIST_TYPES = ("token_seq", "float_seq")
"""Types of RecBole's columns that hold lists, with a space between two values."""

TEXT_SUFFIXES = (".csv", *BY_SUFFIX, *ATOMIC_SUFFIXES)
PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
PACKED_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd")
CODEC_SUFFIXES = (".snappy", ".lz4", ".brotli", ".br", ".zlib", ".uncompressed", *PACKED_SUFFIXES)
"""Suffixes by which Hive and Spark name the codec within a Parquet file."""

FOREIGN_SUFFIXES = (
    *(".arrow", ".feather", ".ipc", ".orc", ".avro", ".xlsx", ".xls", ".ods", ".jsonl", ".ndjson"),
    *(".sqlite", ".sqlite3", ".db", ".duckdb", ".h5", ".hdf5", ".npz", ".npy", ".pkl", ".pickle"),
    *(".sas7bdat", ".dta", ".sav", ".rds", ".rdata"),
)
"""Suffixes of tables in forms that are not read. In a folder, such a file is refused."""

FOREIGN_PACKING = (
    *(".bz2", ".xz", ".zip", ".lz4", ".7z", ".rar", ".br", ".z", ".lzma", ".snappy"),
    *(".tar", ".tgz", ".tar.gz"),
)
"""Suffixes of packed files that are not unpacked here."""

BARE_SUFFIXES = ("", ".txt", ".dat", ".data", ".log", ".out")
"""Suffixes of any texts. In a folder, such a file is no table, but must not look like one."""

SPLIT_PARTS = ("train", "valid", "test")
"""Parts of RecBole's split files, such as ``x.train.inter``, in the order of time."""

NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""What the name of a partition folder has in place of a missing value."""


@dataclass(frozen=True, slots=True)
class TextForm:
    """How a text table is written. The text is UTF-8, perhaps with a byte-order mark."""

    delimiter: str
    has_quotes: bool = True
    has_types: bool = False
    has_header: bool = True
    packing: Packing = "none"


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of data and its form, ``None`` for Parquet.

    ``names`` are the columns in the file's order, without RecBole's types; a header may repeat a
    name. ``lists`` are those with several values in a field: RecBole's ``token_seq`` and Parquet's
    lists. ``partitions`` are further columns that have one value in all rows; None is missing.
    """

    path: Path
    size: int
    names: tuple[str, ...]
    form: TextForm | None = None
    types: tuple[str, ...] = ()
    schema: pa.Schema | None = None
    partitions: tuple[tuple[str, str | None], ...] = ()

    @property
    def container(self) -> Container:
        """Whether the file is a text or a Parquet file."""
        return "parquet" if self.form is None else "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, those of the partition folders last."""
        own = [name for name, _ in self.partitions if name not in self.names]
        return (*self.names, *own)

    @property
    def lists(self) -> tuple[str, ...]:
        """Names of the columns that have several values in a field."""
        if self.schema is not None:
            return tuple(f.name for f in self.schema if is_list_type(f.type))
        pairs = zip(self.names, self.types, strict=False)
        return tuple(name for name, kind in pairs if kind in LIST_TYPES)


@dataclass(frozen=True, slots=True)
class DataFiles:
    """The files that a path stands for, in the order in which they are read.

    ``left_out`` describes every other file below the path, with the reason. ``notices`` are
    sentences on what a person may not expect.
    """

    source: Path
    files: tuple[DataFile, ...]
    left_out: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a caller says about text tables: None is left to each file's name and header."""

    delimiter: str | None = None
    columns: tuple[str, ...] | None = None


@dataclass(slots=True)
class _Search:
    """What a walk through a folder has found so far."""

    paths: list[Path] = field(default_factory=list)
    bare: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def find_data_files(
    path: Path, delimiter: str | None = None, columns: Sequence[str] | None = None
) -> DataFiles:
    """The files that a path stands for, with their forms.

    ``delimiter`` is what people write (see ``parse_delimiter``) and, without it, follows from each
    file's name. ``columns`` names the columns of text files that have no header.
    """
    reading = Reading(
        None if delimiter is None else parse_delimiter(delimiter),
        None if columns is None else tuple(columns),
    )
    _require_names(reading.columns)
    with file_errors(path):
        found = _within(path) if path.is_dir() else _Search([_only(path)])
        files = []
        for file in found.paths:
            opened = _open(file, reading, found.notices)
            if opened is not None:
                files.append(replace(opened, partitions=_partitions(file, path)))
            elif file != path:
                found.left_out.append(f"{file.relative_to(path)} (empty)")
    if not files:
        what = f"all tables of {path} are" if path.is_dir() else f"{path} is"
        raise DataFileEmpty(f"{what} empty.", hint="Check the export.")
    if path.is_dir():
        _refuse_split_and_whole(path, files)
        _refuse_unnamed_parts(path, files, found.bare)
        with file_errors(path):
            found.notices.extend(_notices_of_copies(path, files))
    return DataFiles(path, tuple(files), tuple(found.left_out), tuple(found.notices))


def _notices_of_copies(folder: Path, files: Sequence[DataFile]) -> Iterator[str]:
    """A sentence if files of one folder are equal, as ``clicks (1).csv`` and ``clicks.csv`` are."""
    alike: dict[tuple[object, int, bytes], list[Path]] = {}
    sizes = Counter((file.partitions, file.size) for file in files)
    for file in files:
        if sizes[file.partitions, file.size] > 1:
            with file.path.open("rb") as stream:
                head = stream.read(COMPARED_BYTES)
            alike.setdefault((file.partitions, file.size, head), []).append(file.path)
    copies = [
        (path, first)
        for first, *others in alike.values()
        for path in others
        if filecmp.cmp(first, path, shallow=False)
    ]
    if copies:
        path, first = copies[0]
        more = f", one of {len(copies):,} such copies" if len(copies) > 1 else ""
        yield (
            f"{path} is the same as {first.relative_to(folder)}, byte for byte{more}: their rows "
            "count twice."
        )


COMPARED_BYTES = 1 << 12
"""The beginning by which files of one size are told apart before all of them is compared."""


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Translate what the operating system says of a file into an error with the file's name."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        reason = (error.strerror or str(error).splitlines()[0]).lower()
        raise DataFileUnreadable(
            f"{where}: {reason}.", hint="Check that the file is whole and may be read."
        ) from error


def is_list_type(arrow_type: pa.DataType) -> bool:
    """Whether a column of this type has several values in a row."""
    types = pa.types
    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(is_kind(arrow_type) for is_kind in kinds)


def _require_names(columns: tuple[str, ...] | None) -> None:
    if columns is None:
        return
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice or not all(name.strip() for name in columns):
        reason = f"{twice[0]!r} occurs twice" if twice else "a name is empty"
        raise ColumnsInvalid(
            f"the columns {','.join(columns)!r}: {reason}.",
            hint="Give each column of the file its own name, in the file's order.",
        )


def _only(path: Path) -> Path:
    """The path of a single file, of whatever name; refused unless it is a regular file."""
    if path.is_file():
        return path
    if path.exists():
        raise DataFileUnreadable(
            f"{path} is neither a file nor a folder.",
            hint="Write a pipe's data into a file first: data are read more than once.",
        )
    if path.is_symlink():
        raise DataFileMissing(
            f"{path} is a link to {path.readlink()}, which does not exist.", hint="Mend the link."
        )
    raise DataFileMissing(f"{path} does not exist.", hint=_advice_on_missing(path))


def _advice_on_missing(path: Path) -> str:
    if re.match(r"[a-z][a-z0-9]+:/", str(path)):
        return "Addresses are not read: download the file first."
    if any(char in path.name for char in "*?"):
        return "Give the folder; all tables in it are read."
    parts = [path.with_name(f"{path.stem}.{part}{path.suffix}") for part in SPLIT_PARTS]
    if path.suffix in ATOMIC_SUFFIXES and any(part.is_file() for part in parts):
        return (
            f"It is split into {', '.join(p.name for p in parts if p.is_file())}: give the folder."
        )
    return "Check the path."


def _within(folder: Path) -> _Search:
    """The tables below a folder in the order of their names; everything else is left out."""
    found = _Search()
    _walk(folder, folder, found)
    found.paths.sort(key=lambda path: order_key(path.relative_to(folder)))
    if any(path.suffix == ".inter" for path in found.paths):
        others = [path for path in found.paths if path.suffix in (".user", ".item")]
        found.paths = [path for path in found.paths if path not in others]
        found.left_out += [
            f"{path.relative_to(folder)} (no events; give the file itself to read it)"
            for path in others
        ]
    _refuse_two_forms(folder, found.paths)
    if not found.paths:
        _refuse_without_tables(folder, found)
    return found


def _refuse_without_tables(folder: Path, found: _Search) -> None:
    rest = f" Left out: {'; '.join(found.left_out)}." if found.left_out else ""
    raise DataFileMissing(
        f"folder {folder} has no {', '.join((*TEXT_SUFFIXES, *PARQUET_SUFFIXES))} file.{rest}",
        hint="Check the path, or name a single file.",
    )


def _walk(folder: Path, root: Path, found: _Search) -> None:
    seen: dict[tuple[int, int], Path] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name)):
        path = Path(entry.path)
        name = str(path.relative_to(root))
        if entry.name.startswith((".", "_")):
            if entry.name == "_delta_log":
                found.notices.append(
                    f"{folder} is a Delta table: files that its log has removed are read, too."
                )
            is_folder = entry.is_dir(follow_symlinks=False)
            found.left_out.append(
                f"{name}{'/' if is_folder else ''} (its name begins with {entry.name[0]})"
            )
        elif entry.is_dir(follow_symlinks=False):
            _walk(path, root, found)
        elif (reason := _reason_against(path)) is not None:
            found.left_out.append(f"{name} ({reason})")
            if path.suffix.lower() in BARE_SUFFIXES and path.is_file():
                found.bare.append(path)
        else:
            state = path.stat()
            twin = seen.setdefault((state.st_dev, state.st_ino), path)
            if twin != path:
                found.left_out.append(f"{name} (the same file as {twin.relative_to(root)})")
            else:
                found.paths.append(path)


def _reason_against(path: Path) -> str | None:
    """Why an entry of a folder is no table; refused if it may be one in a form that is not read."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to nothing"
    if stat.S_ISDIR(mode):
        return "a link to a folder"
    if not stat.S_ISREG(mode):
        return "no file"
    name = path.name.lower()
    if is_table_name(name):
        return None
    bare = _without(name, FOREIGN_PACKING)
    if name.endswith(FOREIGN_SUFFIXES) or (bare != name and is_table_name(bare)):
        raise _foreign(path, _form_of_name(path))
    return "an archive" if name.endswith(FOREIGN_PACKING) else "no name of a table"


def _form_of_name(path: Path) -> Foreign:
    """What a file is that its name says is not read: by its bytes, else by its suffix."""
    with path.open("rb") as file:
        container = container_of(file.read(HEAD_BYTES))
    if isinstance(container, Foreign):
        return container
    return Foreign(f"a {path.suffix} file", "Write it as CSV or Parquet, or move it away.")


def is_table_name(name: str) -> bool:
    """Whether a name, within a folder, is that of a table that is read."""
    name = name.lower()
    if _without(name, CODEC_SUFFIXES).endswith(PARQUET_SUFFIXES):
        return True
    if name.endswith(PARQUET_SUFFIXES):
        return True
    return _without(name, PACKED_SUFFIXES).endswith(TEXT_SUFFIXES)


def _without(name: str, suffixes: tuple[str, ...]) -> str:
    found = next((suffix for suffix in suffixes if name.endswith(suffix)), "")
    return name.removesuffix(found)


def _stem(name: str) -> str:
    """A file's name without the suffixes that say its form."""
    name = name.lower()
    for suffixes in (CODEC_SUFFIXES, (*TEXT_SUFFIXES, *PARQUET_SUFFIXES), CODEC_SUFFIXES):
        name = _without(name, suffixes)
    return name


def _refuse_two_forms(folder: Path, paths: Sequence[Path]) -> None:
    """Refuse a table that lies in the folder twice, such as packed and unpacked."""
    by_stem: dict[Path, Path] = {}
    for path in paths:
        if path.suffix.lower() in ATOMIC_SUFFIXES:
            continue
        other = by_stem.setdefault(path.with_name(_stem(path.name)), path)
        if other != path:
            raise DataFileUnreadable(
                f"folder {folder} has {other.relative_to(folder)} and {path.relative_to(folder)}: "
                "they look like one table in two forms.",
                hint="Move one of them away, or rename it; or name a single file.",
            )


def _refuse_split_and_whole(folder: Path, files: Sequence[DataFile]) -> None:
    """Refuse RecBole's split files beside the file that they were split from."""
    names = {file.path for file in files}
    for path in sorted(names):
        stem, _, part = path.stem.rpartition(".")
        whole = path.with_name(f"{stem}{path.suffix}")
        if path.suffix == ".inter" and part in SPLIT_PARTS and whole in names:
            raise DataFileUnreadable(
                f"folder {folder} has {whole.relative_to(folder)} and {path.relative_to(folder)}, "
                "a part of it.",
                hint="Name a single file, or move the whole or its parts away.",
            )


def _refuse_unnamed_parts(folder: Path, files: Sequence[DataFile], bare: Sequence[Path]) -> None:
    """Refuse files of no table's name whose first line has the columns of a table that is read."""
    forms = {(file.form, file.names): file for file in files if file.form and len(file.names) > 1}
    for path in bare[:MOST_BARE]:
        for (form, names), file in forms.items():
            if form is not None and form.has_header and _begins_with(path, form, names):
                raise DataFileUnreadable(
                    f"folder {folder}: {path.relative_to(folder)} has the columns of "
                    f"{file.path.relative_to(folder)}, but not the name of a table.",
                    hint="Name it like the others, or move it away.",
                )


MOST_BARE = 100
"""Files of a folder that are looked at because they may be parts of a table without its name."""


def _begins_with(path: Path, form: TextForm, names: Sequence[str]) -> bool:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if packing_of(head) != "none" or container_of(head) != "text":
        return False
    header = _split(path, replace(form, packing="none"), form.delimiter)
    return [_name_and_type(text, form)[0] for text in header] == [*names]


def order_key(path: Path) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """Sorts paths by their parts, numbers within them by value, and train before valid and test."""
    return tuple(_natural(part) for part in path.parts)


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    pieces = re.split(r"(\d+|(?<=\.)(?:train|valid|test)(?=\.inter$))", name)
    return tuple(_piece(piece) for piece in pieces)


def _piece(text: str) -> tuple[int, int, str]:
    if text.isdecimal():
        return (0, int(text), text)
    if text in SPLIT_PARTS:
        return (0, SPLIT_PARTS.index(text), text)
    return (1, 0, text)


def _partitions(path: Path, root: Path) -> tuple[tuple[str, str | None], ...]:
    """The columns that folders named ``column=value`` give to a file below ``root``."""
    if path == root:
        return ()
    found: dict[str, str | None] = {}
    for part in path.relative_to(root).parts[:-1]:
        name, equals, value = part.partition("=")
        if not (name and equals):
            continue
        name = unquote(name)
        if name in found:
            raise DataFileUnreadable(
                f"{path}: two of its folders give the column {name!r}.",
                hint="Rename one of the folders.",
            )
        found[name] = None if value in (NO_PARTITION, "") else unquote(value)
    return tuple(found.items())


def _open(path: Path, reading: Reading, notices: list[str]) -> DataFile | None:
    """One file with its form, by its first bytes; None if it is empty or packs nothing."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    packing = packing_of(head)
    if packing != "none":
        head = _unpacked(path, packing, HEAD_BYTES)
    if not head.removeprefix(UTF_8_MARK).strip():
        return None
    container = container_of(head)
    if packing_of(head) != "none":
        container = Foreign("a file packed twice", "Unpack it once.")
    if container == "parquet" and packing != "none":
        container = Foreign("a Parquet file", "Unpack it first: Parquet packs its columns itself.")
    if isinstance(container, Foreign):
        raise _foreign(path, container, packing)
    _note_wrong_name(path, container, packing, notices)
    if container == "parquet":
        return _parquet_file(path, reading)
    return _text_file(path, reading, packing)


def _foreign(path: Path, foreign: Foreign, packing: Packing = "none") -> DataFileUnreadable:
    within = "" if packing == "none" else f", packed with {packing}"
    return DataFileUnreadable(
        f"{path} is {foreign.what}{within}, by its first bytes; that is not read.",
        hint=foreign.advice,
    )


def _note_wrong_name(
    path: Path, container: Container, packing: Packing, notices: list[str]
) -> None:
    """Note that a name says another form than the first bytes."""
    name = path.name.lower()
    bare = _without(name, PACKED_SUFFIXES)
    says_parquet = _without(name, CODEC_SUFFIXES).endswith(PARQUET_SUFFIXES)
    says_parquet |= name.endswith(PARQUET_SUFFIXES)
    if container == "parquet":
        if not says_parquet:
            notices.append(f"{path} is read as a Parquet file, which it is by its first bytes.")
        return
    if says_parquet:
        raise DataFileUnreadable(
            f"{path} is no Parquet file: it begins with text.",
            hint="Give it the suffix .csv if it is a text table, or check the export.",
        )
    if packing != "none" and bare == name:
        notices.append(f"{path} is unpacked with {packing}, by its first bytes.")
    if packing == "none" and bare != name:
        notices.append(f"{path} is read as it is: by its first bytes it is not packed.")


def _unpacked(path: Path, packing: Packing, most: int) -> bytes:
    """The first bytes of a packed file."""
    try:
        with open_bytes(path, packing) as stream:
            head: bytes = stream.read(most)
            return head
    except OSError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataFileUnreadable:
    return DataFileUnreadable(
        f"{path}: {str(error).splitlines()[0].rstrip('.')}.",
        hint="The file is damaged or incomplete: fetch or write it again.",
    )


def open_bytes(path: Path, packing: Packing) -> pa.NativeFile:
    """The unpacked bytes of a file."""
    file = pa.OSFile(str(path))
    return file if packing == "none" else pa.CompressedInputStream(file, packing)


def _parquet_file(path: Path, reading: Reading) -> DataFile:
    if reading.columns is not None:
        raise ColumnsInvalid(
            f"{path} is a Parquet file, which has names of its own.",
            hint="Leave `columns` out for it.",
        )
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    return DataFile(path, path.stat().st_size, tuple(schema.names), schema=schema)


def _text_file(path: Path, reading: Reading, packing: Packing) -> DataFile:
    form = _form_by_name(path, reading, packing)
    header = first_record(path, form)
    if reading.columns is not None:
        _require_count(path, form, header, reading.columns)
        return DataFile(path, path.stat().st_size, reading.columns, form)
    pairs = [_name_and_type(text, form) for text in header]
    types = tuple(kind for _, kind in pairs) if form.has_types else ()
    return DataFile(path, path.stat().st_size, tuple(name for name, _ in pairs), form, types)


def _name_and_type(text: str, form: TextForm) -> tuple[str, str]:
    """A column's name and type in a header; a column without a type is a ``token``."""
    name, _, kind = text.rpartition(":")
    is_typed = form.has_types and bool(name) and kind in ATOMIC_TYPES
    return (name, kind) if is_typed else (text, "token")


def _form_by_name(path: Path, reading: Reading, packing: Packing) -> TextForm:
    bare = _without(path.name.lower(), PACKED_SUFFIXES)
    if bare.endswith(ATOMIC_SUFFIXES):
        if reading.columns is not None:
            raise ColumnsInvalid(
                f"{path} is a RecBole file, which has names of its own.",
                hint="Leave `columns` out for it.",
            )
        delimiter = "\t" if reading.delimiter is None else reading.delimiter
        return TextForm(delimiter, has_quotes=False, has_types=True, packing=packing)
    by_name = next((d for suffix, d in BY_SUFFIX.items() if bare.endswith(suffix)), ",")
    delimiter = by_name if reading.delimiter is None else reading.delimiter
    return TextForm(delimiter, has_header=reading.columns is None, packing=packing)


def first_record(path: Path, form: TextForm) -> list[str]:
    """The fields of a text's first line that is not empty; an error names a bad one."""
    try:
        line, fields = next(records(path, form), (1, []))
    except csv.Error as error:
        raise DataFileUnreadable(
            f"{path}, line 1: {reason_of_csv(error)}.", hint="Check the quotes and the delimiter."
        ) from error
    except OSError as error:
        raise _damaged(path, error) from error
    for number, text in enumerate(fields, 1):
        if not is_text(text):
            raise DataFileUnreadable(
                f"{path}, line {line}, column {number}: the text is not UTF-8.",
                hint=UTF_8.format("LATIN1"),
            )
    return fields


LONGEST_FIELD = 1 << 24
"""Characters of the longest field that Python reads; its own limit, 131,072, is below DuckDB's."""


def records(path: Path, form: TextForm) -> Iterator[tuple[int, list[str]]]:
    """Every row that is not empty, including the header, with the line on which it begins.

    Bytes that are not UTF-8 become surrogates (see ``is_text``).
    """
    csv.field_size_limit(max(LONGEST_FIELD, csv.field_size_limit()))
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if form.has_quotes else csv.QUOTE_NONE
    with (
        open_bytes(path, form.packing) as stream,
        TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="") as lines,
    ):
        reader = csv.reader(lines, delimiter=form.delimiter, quoting=quoting, strict=True)
        line = 1
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1


def reason_of_csv(error: csv.Error) -> str:
    """What a person should know of a row that Python cannot split into fields."""
    text = str(error)
    if text.startswith("unexpected end of data"):
        return "a quote is not closed"
    if "expected after" in text:
        return "text follows a closing quote; a quote within a quoted field must be written twice"
    if text.startswith("field larger"):
        return f"a field has more than {LONGEST_FIELD:,} characters; perhaps a quote is not closed"
    return text


def is_text(field: str) -> bool:
    """Whether a field that ``records`` gave was UTF-8."""
    try:
        field.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_count(
    path: Path, form: TextForm, first: Sequence[str], columns: Sequence[str]
) -> None:
    """Refuse names that do not fit the first line of a file without a header."""
    if len(first) != len(columns):
        raise ColumnsInvalid(
            f"{path}, line 1, split at {describe_delimiter(form.delimiter)}: {len(first)} fields, "
            f"but {len(columns)} names are given: {', '.join(columns)}."
            f"{_other_split(path, form, len(columns))}",
            hint="Name every column in the file's order with `columns`, or give `delimiter`.",
        )
    if [text.strip().lower() for text in first] == [name.strip().lower() for name in columns]:
        raise ColumnsInvalid(
            f"{path}, line 1 has the names of the columns: the file has a header.",
            hint="Leave `columns` out.",
        )


def _other_split(path: Path, form: TextForm, count: int) -> str:
    for delimiter in USUAL:
        if delimiter != form.delimiter and len(_split(path, form, delimiter)) == count:
            return f" Split at {describe_delimiter(delimiter)}, it has {count}."
    return ""


def _split(path: Path, form: TextForm, delimiter: str) -> list[str]:
    """The first line's fields with another delimiter."""
    with suppress(csv.Error):
        return next(records(path, replace(form, delimiter=delimiter)), (1, []))[1]
    return []


def require_columns(file: DataFile, wanted: Sequence[str]) -> None:
    """Refuse a file that lacks a column, or has it twice; the error says what may be meant."""
    for column in wanted:
        if file.names.count(column) > 1:
            raise DataFileUnreadable(
                f"{file.path}, line 1: the column {column!r} occurs twice.",
                hint="Give each column its own name.",
            )
    missing = [column for column in wanted if column not in file.columns]
    if missing:
        raise _missing(file, missing)


def _missing(file: DataFile, missing: Sequence[str]) -> ColumnMissing:
    column = missing[0]
    found = ", ".join(file.columns)
    if file.form is None:
        return ColumnMissing(
            f"{file.path}: there is no column {column!r}, only {found}.",
            hint=_similar(file, column) or "Name the column as the file does.",
        )
    at = describe_delimiter(file.form.delimiter)
    if not file.form.has_header:
        return ColumnMissing(
            f"{file.path}: there is no column {column!r} among the names that are given, only "
            f"{found}.",
            hint="Name every column in the file's order with `columns`.",
        )
    place = f"{file.path}, line 1 split at {at}: there is no column {column!r}, only {found}."
    for other in USUAL:
        names = [_name_and_type(t, file.form)[0] for t in _split(file.path, file.form, other)]
        if other != file.form.delimiter and {*missing} <= {*names}:
            return ColumnMissing(
                f"{place} Split at {describe_delimiter(other)}, line 1 has it.",
                hint=f"Give `delimiter` {describe_delimiter(other)}.",
            )
    if file.names and re.fullmatch("sep=.?", file.names[0]):
        return ColumnMissing(place, hint="Delete line 1, which is for Excel, and give `delimiter`.")
    if (similar := _similar(file, column)) is not None:
        return ColumnMissing(place, hint=similar)
    if _looks_like_data(file):
        return ColumnMissing(
            f"{place} Line 1 looks like data, not like a header.",
            hint="If the file has no header, name its columns in their order with `columns`.",
        )
    return ColumnMissing(place, hint="Name the column as the file does; also check `delimiter`.")


def _similar(file: DataFile, column: str) -> str | None:
    """A question about the name that is most like the missing one, if there is one."""
    plain = {_plain(name.partition(":")[0]): name for name in file.columns}
    plain |= {_plain(name): name for name in file.columns}
    same = plain.get(_plain(column))
    if same is None and f"{column}_list" in file.lists:
        same = f"{column}_list"
    if same is None:
        close = get_close_matches(column.lower(), [n.lower() for n in file.columns], 1, 0.75)
        same = next((n for n in file.columns if close and n.lower() == close[0]), None)
    return None if same is None else f"Did you mean {same!r}?"


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]", "", name).lower()


def _looks_like_data(file: DataFile) -> bool:
    """Whether the first line has numbers or dates, or the pattern of the second."""
    assert file.form is not None
    rows = [fields for _, fields in islice(records(file.path, file.form), 2)]
    if any(VALUE.fullmatch(text.strip()) for text in rows[0]):
        return True
    patterns = [[_pattern(text) for text in fields] for fields in rows]
    return len(rows) == 2 and patterns[0] == patterns[1]


VALUE = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?|\d{4}-\d\d-\d\d.*|[0-9a-f]{8}-[0-9a-f-]{27}")
"""Numbers, dates and UUIDs: fields that are hardly ever names of columns."""


def _pattern(text: str) -> str:
    """The kinds of characters of a text: ``u17`` has the pattern of ``u2``."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", text.strip()))
