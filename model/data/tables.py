"""Tables from CSV, RecBole's atomic files or Parquet, read in batches with the place of every row.

Pyarrow reads the files, but it has no line numbers: quoted fields may contain line breaks, and
empty lines are not rows. So when an error needs a line number, the file is read again up to it.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq

from peterrec.model.errors import (
    ColumnMissing,
    DataFileEmpty,
    DataFileMissing,
    DataFileUnreadable,
    FilterMatchesNothing,
    FilterUnreadable,
    ValueMissing,
)

CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
ATOMIC_SUFFIXES = (".inter", ".user", ".item")
"""RecBole's atomic files: separated by tabs, without quotes, with a header of ``name:type``."""

ATOMIC_TYPES = ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True, slots=True)
class TextForm:
    """How a text file separates its fields."""

    delimiter: str
    has_quotes: bool
    has_types: bool

    def name_of(self, header: str) -> str:
        """A column's name without its type, if the file's header has types."""
        name, colon, kind = header.rpartition(":")
        return name if self.has_types and colon and kind in ATOMIC_TYPES else header


def text_form(path: Path, delimiter: str) -> TextForm:
    """The form of a text file, from its name; ``delimiter`` is that of CSV files."""
    if path.name.endswith(ATOMIC_SUFFIXES):
        return TextForm("\t", has_quotes=False, has_types=True)
    return TextForm(delimiter, has_quotes=True, has_types=False)


def header_types(path: Path) -> dict[str, str]:
    """The columns of an atomic file with their types; a column without a type is a ``token``."""
    form = text_form(path, "\t")
    _, header = next(_records(path, form), (1, []))
    return {
        form.name_of(text): text.rpartition(":")[2] if form.name_of(text) != text else "token"
        for text in header
    }


def line_of_row(path: Path, form: TextForm, row: int) -> int:
    """The line, counted from 1, on which a row begins. Row 0 is the first one below the header."""
    with suppress(csv.Error):  # a field too large for this reader
        for number, (line, _) in enumerate(_records(path, form)):
            if number == row + 1:
                return line
    return row + 2  # right unless fields contain line breaks


def first_fault(path: Path, form: TextForm) -> str | None:
    """A sentence on why a file cannot be read: the first bad row with its line and column."""
    names: Sequence[str] = ()
    line = 0
    try:
        for line, fields in _records(path, form):
            names = names or fields
            broken = next((i for i, field in enumerate(fields) if not _is_text(field)), None)
            if broken is not None:
                column = names[broken] if broken < len(names) else str(broken + 1)
                return f"line {line}, column {column!r}: the text is not UTF-8."
            if len(fields) != len(names):
                return f"line {line}: {len(fields)} fields, not {len(names)}."
    except csv.Error as error:
        return f"the row after line {line}: {error}."
    return None


def _records(path: Path, form: TextForm) -> Iterator[tuple[int, list[str]]]:
    """Every row that is not empty, including the header, with the line on which it begins."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if form.has_quotes else csv.QUOTE_NONE
    with (
        pa.input_stream(path) as stream,  # decompresses by the file's suffix
        TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="") as lines,
    ):
        reader = csv.reader(lines, delimiter=form.delimiter, quoting=quoting, strict=True)
        line = 1
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1


def _is_text(field: str) -> bool:
    try:
        field.encode()
    except UnicodeEncodeError:
        return False
    return True


PARQUET_SUFFIX = ".parquet"

CSV_BLOCK_BYTES = 1 << 24
"""Bytes of a CSV file in memory; larger blocks read no faster (measured on 30 million rows)."""

PARQUET_BATCH_ROWS = 1 << 19
"""Rows of a Parquet file in memory; larger batches read no faster (measured as above)."""

PARQUET_BUFFER_BYTES = 1 << 20
"""Bytes read from a Parquet file in one call; larger buffers read no faster."""

EXACT_WHOLE = 2.0**53
"""Whole floats below this are exact integers; larger ones may stand for several integers."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter: keep rows whose ``column``, as text, equals ``value``."""

    column: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``column=value``."""
        column, equals, value = text.partition("=")
        if not (column and equals):
            raise FilterUnreadable(
                f"filter {text!r} is not COLUMN=VALUE.", hint="Write it like domain=food."
            )
        return cls(column, value)


@dataclass(frozen=True, slots=True)
class TableSource:
    """A file, or a folder of files, and filters for its rows."""

    path: Path
    delimiter: str = ","
    where: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class TablePart:
    """Some columns of all or some rows of one file.

    ``rows`` holds each row's number in the file, counted from 0. ``form`` is None for Parquet.
    """

    path: Path
    table: pa.Table
    rows: npt.NDArray[np.int64]
    form: TextForm | None = None

    def place(self, row: int, column: str) -> str:
        """A value's place for messages: file, line (or row of a Parquet file) and column."""
        number = int(self.rows[row])
        if self.form is None:
            at = f"row {number + 1}"
        else:
            at = f"line {line_of_row(self.path, self.form, number)}"
        return f"{self.path}, {at}, column {column!r}"


def read_parts(source: TableSource, columns: Sequence[str]) -> list[TablePart]:
    """Read columns of every file of a source, one part per file, in the order of the file names.

    The source must fit into memory, as labels do; ``read_batches`` reads any size.
    """
    by_file: dict[Path, list[TablePart]] = {}
    for part in read_batches(source, columns):
        by_file.setdefault(part.path, []).append(part)
    return [
        TablePart(
            path,
            pa.concat_tables([part.table for part in parts]),
            np.concatenate([part.rows for part in parts]),
            parts[0].form,
        )
        for path, parts in by_file.items()
    ]


def read_batches(source: TableSource, columns: Sequence[str]) -> Iterator[TablePart]:
    """Read columns of every file of a source, some rows at a time.

    Rows that fail a filter are left out; the others keep their row numbers. Columns of text files
    are strings, and an empty field is null. Numbers and times of Parquet files keep their types.
    """
    wanted = list(dict.fromkeys([*columns, *(condition.column for condition in source.where)]))
    rows = kept = 0
    for path in list_files(source.path):
        for part in _file_batches(path, source.delimiter, wanted):
            rows += part.table.num_rows
            matching = _keep_matching(part, source.where)
            kept += matching.table.num_rows
            yield matching
    if not rows:
        raise DataFileEmpty(f"{source.path} has no rows.", hint="Check the path and the export.")
    if not kept:
        conditions = " and ".join(f"{c.column}={c.value}" for c in source.where)
        raise FilterMatchesNothing(
            f"no row of {source.path} has {conditions}.", hint="Check the column's values."
        )


def list_files(path: Path) -> list[Path]:
    """The file itself, or all CSV and Parquet files below a folder in the order of their names."""
    if not path.exists():
        raise DataFileMissing(f"{path} does not exist.", hint="Check the path.")
    if path.is_file():
        return [path]
    suffixes = (*CSV_SUFFIXES, PARQUET_SUFFIX)
    files = sorted(file for file in path.rglob("*") if file.name.endswith(suffixes))
    if not files:
        raise DataFileMissing(
            f"folder {path} has no {', '.join(suffixes)} file.",
            hint=f"Check the path; name a single {', '.join(ATOMIC_SUFFIXES)} file.",
        )
    return files


def text_column(
    parts: Sequence[TablePart], column: str, allows_nulls: bool = False
) -> pa.ChunkedArray:
    """A column as strings (see ``as_text``). Missing values are refused unless they are allowed."""
    for part in parts:
        if not allows_nulls:
            require_values(part, column)
    return pa.chunked_array(
        [chunk for part in parts for chunk in as_text(part.table[column]).chunks], pa.string()
    )


def require_values(part: TablePart, column: str) -> None:
    """Refuse a column with a missing value; the error names the place of the first one."""
    missing = part.table[column].is_null(nan_is_null=True)
    if pc.any(missing).as_py():
        row = pc.index(missing, True).as_py()
        raise ValueMissing(
            f"{part.place(row, column)}: the value is missing.", hint="Fill it or remove the row."
        )


def as_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values of any type as strings. A whole float is written without ``.0``."""
    if not pa.types.is_floating(values.type):
        return values.cast(pa.string())
    whole = pc.and_(pc.equal(values, pc.round(values)), pc.less(pc.abs(values), EXACT_WHOLE))
    numbers = pc.if_else(whole, values, 0).cast(pa.int64())
    return pc.if_else(whole, numbers.cast(pa.string()), values.cast(pa.string()))


def _file_batches(path: Path, delimiter: str, columns: list[str]) -> Iterator[TablePart]:
    is_parquet = path.name.endswith(PARQUET_SUFFIX)
    form = None if is_parquet else text_form(path, delimiter)
    first = 0
    try:
        for table in _parquet(path, columns) if form is None else _text(path, form, columns):
            rows = np.arange(first, first + table.num_rows, dtype=np.int64)
            first += table.num_rows
            yield TablePart(path, table, rows, form)
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        fault = first_fault(path, form) if form and not isinstance(error, OSError) else None
        place = f"{path}, {fault}" if fault else f"{path}: {str(error).splitlines()[0]}"
        raise DataFileUnreadable(place, hint="Check the format and the delimiter.") from error


def _parquet(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False) as file:
        _require_columns(path, columns, file.schema_arrow.names)
        stored = file.schema_arrow.empty_table().select(columns)
        plain = pa.schema([(f.name, _plain_type(path, f.name, f.type)) for f in stored.schema])
        yield stored.cast(plain)
        for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=columns):
            yield pa.Table.from_batches([batch]).select(columns).cast(plain)


def _plain_type(path: Path, column: str, stored: pa.DataType) -> pa.DataType:
    """The type that a Parquet column is read as; refused unless it has texts, numbers or times."""
    types = pa.types
    if types.is_dictionary(stored):
        return _plain_type(path, column, stored.value_type)
    if types.is_large_string(stored) or types.is_string_view(stored) or types.is_null(stored):
        return pa.string()
    if types.is_decimal(stored):
        return pa.float64()
    known = (types.is_string, types.is_boolean, types.is_integer, types.is_floating)
    if any(is_kind(stored) for is_kind in (*known, types.is_date, types.is_timestamp)):
        return stored
    raise DataFileUnreadable(
        f"{path}, column {column!r}: values of type {stored} are neither texts, numbers nor times.",
        hint="Write the column as one of these.",
    )


def _text(path: Path, form: TextForm, columns: list[str]) -> Iterator[pa.Table]:
    parse = pv.ParseOptions(
        delimiter=form.delimiter,
        quote_char='"' if form.has_quotes else False,
        newlines_in_values=form.has_quotes,
    )
    header = _header(path, parse)
    names = [form.name_of(name) for name in header]
    _require_columns(path, columns, names, delimiter=form.delimiter)
    found = [header[names.index(column)] for column in columns]
    convert = pv.ConvertOptions(
        include_columns=found,
        column_types=dict.fromkeys(found, pa.string()),
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
        null_values=[""],
    )
    read = pv.ReadOptions(block_size=CSV_BLOCK_BYTES)
    with pv.open_csv(path, read_options=read, parse_options=parse, convert_options=convert) as file:
        yield file.schema.empty_table().rename_columns(columns)
        for batch in file:
            yield pa.Table.from_batches([batch]).rename_columns(columns)


def _header(path: Path, parse: pv.ParseOptions) -> list[str]:
    with pa.input_stream(path) as stream:  # decompresses by the file's suffix
        if not stream.read(1):
            raise DataFileEmpty(f"{path} is empty.", hint="Check the export.")
    header = pv.ReadOptions(use_threads=False, block_size=1 << 20)
    with pv.open_csv(path, read_options=header, parse_options=parse) as reader:
        names: list[str] = reader.schema.names
    return names


def _require_columns(
    path: Path, wanted: Sequence[str], found: Sequence[str], delimiter: str | None = None
) -> None:
    for column in wanted:
        if column not in found:
            split = "" if delimiter is None else f", line 1 split at {delimiter!r}"
            raise ColumnMissing(
                f"{path}{split}: there is no column {column!r}, only {', '.join(found)}.",
                hint="Name the column with its option, or check the delimiter.",
            )
        if list(found).count(column) > 1:
            raise DataFileUnreadable(
                f"{path}, line 1: the column {column!r} occurs twice.",
                hint="Give each column its own name.",
            )


def _keep_matching(part: TablePart, where: Sequence[Condition]) -> TablePart:
    table, rows = part.table, part.rows
    for condition in where:
        text = as_text(table[condition.column])
        matches = pc.fill_null(pc.equal(text, condition.value), False)
        table, rows = table.filter(matches), rows[matches.to_numpy()]
    return TablePart(part.path, table, rows, part.form)
