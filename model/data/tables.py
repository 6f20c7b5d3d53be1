"""Tables from text files, Parquet files or memory, read in batches with the place of every row.

DuckDB parses texts, and Arrow reads Parquet (decision 0083 says why). Neither has line numbers,
since quoted fields may contain line breaks, and empty lines are not rows. So when an error needs a
line number, the file is read again up to it.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from peterrec.model.data import engine
from peterrec.model.data.filters import Condition
from peterrec.model.data.first_bytes import UTF_8
from peterrec.model.data.forms import (
    DataFile,
    find_data_files,
    is_text,
    open_bytes,
    reason_of_csv,
    records,
    require_columns,
)
from peterrec.model.data.observer import SILENT, FilesRead, ReadingObserver
from peterrec.model.errors import (
    ColumnMissing,
    DataFileChanged,
    DataFileEmpty,
    DataFileUnreadable,
    FilterMatchesNothing,
    TableInvalid,
    ValueTypeInvalid,
)
from peterrec.model.progress import Progress

PARQUET_BATCH_ROWS = 1 << 19
"""Rows of a Parquet file in memory; larger batches read no faster (measured on 30 million rows)."""

PARQUET_BUFFER_BYTES = 1 << 20
"""Bytes read from a Parquet file in one call; larger buffers read no faster."""


@runtime_checkable
class ArrowTable(Protocol):
    """A table in memory: a pandas or polars frame, an Arrow table, a DuckDB relation."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The table's rows, through Arrow's PyCapsule interface."""


@dataclass(frozen=True, slots=True)
class TableSource:
    """Where a table comes from, and which of its rows are read.

    ``data`` is a file, a folder of files, or a table in memory. ``delimiter`` is that of text
    files; by default, the name of each file says it. ``columns`` names the columns of text files
    without a header. ``missing`` are texts that mean that there is no value. ``batch_rows`` are the
    rows of a file that are read at a time, if rows are so large that they should be fewer.
    """

    data: Path | ArrowTable
    delimiter: str | None = None
    columns: tuple[str, ...] | None = None
    where: tuple[Condition, ...] = ()
    missing: tuple[str, ...] = ()
    batch_rows: int | None = None

    @property
    def name(self) -> str:
        """The table in messages: its path, its own name, or the kind of object that it is."""
        if isinstance(self.data, Path):
            return str(self.data)
        own = getattr(self.data, "name", None)
        if isinstance(own, str):
            return own
        return f"the {type(self.data).__module__.partition('.')[0]} {type(self.data).__name__}"


@dataclass(frozen=True, slots=True)
class TablePart:
    """Some columns of all or some rows of one file, or of a table in memory.

    ``rows`` holds each row's number in the file, counted from 0. ``file`` is None for a table in
    memory, and ``source`` names the whole table in messages. ``missing`` are texts that mean that
    there is no value.
    """

    source: str
    file: DataFile | None
    table: pa.Table
    rows: npt.NDArray[np.int64]
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's path, or the name of the table in memory."""
        return self.source if self.file is None else str(self.file.path)

    def place(self, row: int, column: str) -> str:
        """A value's place for messages: file, line (or row of a Parquet file) and column."""
        number = int(self.rows[row]) if len(self.rows) else 0
        if self.file is None or self.file.form is None:
            at = f"row {number + 1}"
        else:
            at = f"line {line_of_row(self.file, number)}"
        return f"{self.name}, {at}, column {column!r}"

    def filtered(self, kept: npt.NDArray[np.bool_]) -> "TablePart":
        """The rows where the mask is true, with their numbers."""
        if kept.all():
            return self
        table = self.table.filter(pa.array(kept))
        return replace(self, table=table, rows=self.rows[kept])


def read_parts(
    source: TableSource, columns: Sequence[str], observer: ReadingObserver = SILENT
) -> list[TablePart]:
    """Read columns of every file of a source, one part per file, in the order of the file names.

    The source must fit into memory, as labels do; ``read_batches`` reads any size.
    """
    by_file: dict[str, list[TablePart]] = {}
    for part in read_batches(source, columns, observer):
        by_file.setdefault(part.name, []).append(part)
    return [
        replace(
            parts[0],
            table=pa.concat_tables([part.table for part in parts]),
            rows=np.concatenate([part.rows for part in parts]),
        )
        for parts in by_file.values()
    ]


def read_batches(
    source: TableSource, columns: Sequence[str], observer: ReadingObserver = SILENT
) -> Iterator[TablePart]:
    """Read columns of every file of a source, some rows at a time.

    Rows that fail a filter are left out; the others keep their row numbers. Columns of text files
    are strings, and an empty field is null. Columns of other tables keep their types.
    """
    wanted = list(dict.fromkeys([*columns, *(condition.column for condition in source.where)]))
    filters = _Filters(source.where)
    rows = 0
    for part in _parts(source, wanted, observer):
        rows += part.table.num_rows
        yield filters.matching(part)
    if not rows:
        is_reader = isinstance(source.data, pa.RecordBatchReader)
        once = " A reader of batches can be read once." if is_reader else ""
        raise DataFileEmpty(f"{source.name} has no rows.{once}", hint="Check the export.")
    filters.require_matches(source.name)


def _parts(
    source: TableSource, wanted: list[str], observer: ReadingObserver
) -> Iterator[TablePart]:
    if not isinstance(source.data, Path):
        yield from _memory_parts(source, wanted, observer)
        return
    found = find_data_files(source.data, source.delimiter, source.columns)
    observer.files(FilesRead(source.name, len(found.files), found.size, found.left_out))
    for notice in found.notices:
        observer.notice(notice)
    for file in found.files:
        require_columns(file, wanted)
    before, total = 0, found.size  # the size is summed over all files
    with engine.connected() as connection:
        for file in found.files:
            for part, share in _file_parts(connection, source, file, wanted):
                yield part
                done = min(total, before + round(share * file.size))
                observer.progress(Progress("reading", done, total, unit="bytes"))
            before += file.size
    observer.progress(Progress("reading", total, total, unit="bytes"))


def _file_parts(
    connection: engine.Connection, source: TableSource, file: DataFile, wanted: list[str]
) -> Iterator[tuple[TablePart, float]]:
    """The batches of one file, each with the share of the file that is read with it.

    The file is refused if it changes meanwhile.
    """
    own = [column for column in wanted if column in file.names]
    first = 0
    with _file_errors(file):
        if file.form is None:
            batches = _parquet(file, own, source.batch_rows or PARQUET_BATCH_ROWS)
        else:
            batches = _text(connection, file, own, source.batch_rows)
        for table, share in batches:
            table = _with_partitions(table, file, wanted)
            rows = np.arange(first, first + table.num_rows, dtype=np.int64)
            first += table.num_rows
            part = TablePart(source.name, file, table, rows, source.missing)
            _refuse_second_header(part, own)
            _require_same_as_folders(part, file, wanted)
            yield part, share


def _refuse_second_header(part: TablePart, columns: list[str]) -> None:
    """Refuse a text's row that has the names of the columns, as in files that were joined."""
    if part.file is None or part.file.form is None or len(columns) < 2:
        return
    first = pc.is_in(part.table[columns[0]], pa.array([columns[0], f"\ufeff{columns[0]}"]))
    rows = np.flatnonzero(first.to_numpy())
    for row in rows.tolist():
        if all(part.table[name][row].as_py() == name for name in columns[1:]):
            raise DataFileUnreadable(
                f"{part.place(row, columns[0])}: the row has the names of the columns, like the "
                "header.",
                hint="Remove the line. Files are joined without their headers, or put in a folder.",
            )


def _require_same_as_folders(part: TablePart, file: DataFile, wanted: list[str]) -> None:
    """Refuse a column that the file has and its folders give otherwise."""
    for name, value in file.partitions:
        if name not in wanted or name not in file.names:
            continue
        values = _comparable(part, name)
        same = values.is_null() if value is None else Condition(name, value).matches(values)
        is_same = same.to_numpy(zero_copy_only=False)
        if not is_same.all():
            row = int(np.argmin(is_same))
            raise DataFileUnreadable(
                f"{part.place(row, name)}: {part.table[name][row].as_py()!r}, but its folder says "
                f"{name}={value}.",
                hint="Rename the folder, or leave the column out of the file.",
            )


def _with_partitions(table: pa.Table, file: DataFile, wanted: list[str]) -> pa.Table:
    """The wanted columns; those that the file's folders give have one text in all rows."""
    for name, value in file.partitions:
        if name in wanted and name not in file.names:
            column = pa.repeat(pa.scalar(value, pa.string()), table.num_rows)
            table = table.append_column(name, column)
    return table.select(wanted)


class _BadText(Exception):
    """A text file that DuckDB refuses, and its first fault, which takes a reading to find."""


@contextmanager
def _file_errors(file: DataFile) -> Iterator[None]:
    """Refuse a file that changes while it is read, and translate what the libraries say of it."""
    before = _state(file.path)
    try:
        yield
    except (_BadText, duckdb.Error, pa.ArrowException, UnicodeDecodeError, OSError) as error:
        _require_unchanged(file.path, before)
        if file.form is None:
            raise DataFileUnreadable(
                f"{file.path}: {_reason(error)}.", hint="Fetch the file or write it again."
            ) from error
        fault = str(error) if isinstance(error, _BadText) else first_fault(file)
        place = f"{file.path}, {fault}" if fault else f"{file.path}: {_reason(error)}."
        hint = "Check that the file is whole, its quotes and its delimiter."
        if fault and fault.endswith(NO_UTF_8):
            hint = UTF_8.format("LATIN1")
        raise DataFileUnreadable(place, hint=hint) from error
    _require_unchanged(file.path, before)


State = tuple[int, int, int]
"""Size, time of the last change, and number of a file; None if there is none."""


def _state(path: Path) -> State | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns, state.st_ino


def _require_unchanged(path: Path, before: State | None) -> None:
    now = _state(path)
    if now is None or now != before:
        raise DataFileChanged(
            f"{path} {'vanished' if now is None else 'changed'} while it was read.",
            hint="Read it when nothing writes there any more.",
        )


def _reason(error: Exception) -> str:
    """What a library says, in one line."""
    is_several = isinstance(error, pa.ArrowException) and len(error.args) > 1
    text = "; ".join(map(str, error.args)) if is_several else str(error).partition("Possible")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    first = re.sub(r"^([A-Z][A-Za-z]* )*Error: ", "", lines[0])
    return "; ".join([first, *lines[1:3]])[:LONGEST_REASON].rstrip(".:; ")


LONGEST_REASON = 300
"""Characters of what a library says that are shown."""


def _parquet(
    file: DataFile, columns: list[str], batch_rows: int
) -> Iterator[tuple[pa.Table, float]]:
    with pq.ParquetFile(file.path, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False) as parquet:
        done, total = 0, max(1, parquet.metadata.num_rows)
        yield _without_views(parquet.schema_arrow.empty_table().select(columns)), 0.0
        # A file of which folders give all columns still has as many rows as any of its own.
        for batch in parquet.iter_batches(batch_rows, columns=columns or file.names[:1]):
            done += batch.num_rows
            yield _without_views(pa.Table.from_batches([batch])), done / total


def _text(
    connection: engine.Connection, file: DataFile, columns: list[str], batch_rows: int | None
) -> Iterator[tuple[pa.Table, float]]:
    assert file.form is not None
    yield pa.schema([(column, pa.string()) for column in columns]).empty_table(), 0.0
    _require_whole(file)
    read = columns or file.names[:1]
    above = 1 if file.form.has_header else 0
    done = 0
    try:
        for batch in engine.scan_text(connection, file, read, batch_rows):
            table = pa.Table.from_batches([batch.slice(above if done == 0 else 0)])
            done += batch.num_rows
            yield table.rename_columns(read), max(0.0, connection.query_progress() / 100)
    except duckdb.Error as error:
        fault = first_fault(file)
        if fault is not None:
            raise _BadText(fault) from error
        # DuckDB does not read lines that end now in one way and now in another.
        yield from ((table, 1.0) for table in _records(file, read, max(done, above)))


RECORDS_AT_ONCE = 1 << 16
"""Rows of a text file in memory that Python reads; it does so at a tenth of DuckDB's speed."""


def _records(file: DataFile, columns: Sequence[str], done: int) -> Iterator[pa.Table]:
    """Columns of a text table without its first rows, counting the header."""
    assert file.form is not None
    places = [file.names.index(column) for column in columns]
    rows = (fields for _, fields in islice(records(file.path, file.form), done, None))
    while some := list(islice(rows, RECORDS_AT_ONCE)):
        values = [[fields[place] or None for fields in some] for place in places]
        arrays = [pa.array(column, pa.string()) for column in values]
        yield pa.table(dict(zip(columns, arrays, strict=True)))


def _require_whole(file: DataFile) -> None:
    """Refuse a packed file that is cut off or damaged.

    DuckDB does not check the sum of a gzip file, and takes the whole part of a zstd file for all.
    """
    assert file.form is not None
    if file.form.packing != "none":
        with open_bytes(file.path, file.form.packing) as stream:
            while stream.read(PARQUET_BUFFER_BYTES):
                pass


def _memory_parts(
    source: TableSource, wanted: list[str], observer: ReadingObserver
) -> Iterator[TablePart]:
    """The batches of a table in memory."""
    first, total = 0, _rows_of(source.data)
    with _memory_errors(source):
        reader = pa.RecordBatchReader.from_stream(source.data)
        for column in wanted:
            _require_once(source.name, reader.schema.names, column)
        _require_values(source, wanted)
        yield TablePart(
            source.name,
            None,
            _without_views(reader.schema.empty_table().select(wanted)),
            np.empty(0, dtype=np.int64),
            source.missing,
        )
        for batch in _small_batches(reader):
            table = _without_views(pa.Table.from_batches([batch]).select(wanted))
            rows = np.arange(first, first + table.num_rows, dtype=np.int64)
            first += table.num_rows
            yield TablePart(source.name, None, table, rows, source.missing)
            observer.progress(Progress("reading", first, total, unit="rows"))


def _require_values(source: TableSource, wanted: Sequence[str]) -> None:
    """Refuse a polars column of Python objects: its stream has addresses in place of values."""
    types = getattr(source.data, "schema", None)
    for column in wanted:
        if isinstance(types, Mapping) and str(types.get(column)) == "Object":
            raise TableInvalid(
                f"{source.name}, column {column!r}: its values are Python objects.",
                hint="Make it a column of texts or numbers.",
            )


def _small_batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The batches of a reader; a frame may come as a single one."""
    for batch in reader:
        for start in range(0, batch.num_rows, PARQUET_BATCH_ROWS):
            yield batch.slice(start, PARQUET_BATCH_ROWS)


VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
"""Types of few of Arrow's functions, and the same values in types of all of them."""


def _without_views(table: pa.Table) -> pa.Table:
    for place, name in enumerate(table.column_names):
        kind = table.schema.types[place]
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if value in VIEWS:
            table = table.set_column(place, name, _plain(table[name].combine_chunks()))
    return table


def _rows_of(data: object) -> int:
    """The number of rows of a table in memory, or 0 if it must be read to be known."""
    rows = getattr(data, "num_rows", None)
    if isinstance(rows, int):
        return rows
    return len(data) if isinstance(data, Sized) and not hasattr(data, "fetchall") else 0


@contextmanager
def _memory_errors(source: TableSource) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, duckdb.Error, TypeError, ValueError, OverflowError) as error:
        raise TableInvalid(
            f"{source.name} cannot be read as a table: {_reason(error)}.",
            hint="Give a pandas or polars frame, an Arrow table or a DuckDB relation whose columns "
            "have values of one type each.",
        ) from error


def _require_once(name: str, found: Sequence[str], column: str) -> None:
    if column not in found:
        raise ColumnMissing(
            f"{name}: there is no column {column!r}, only {', '.join(found)}.",
            hint="Name the column as the table does.",
        )
    if list(found).count(column) > 1:
        raise TableInvalid(
            f"{name}: the column {column!r} occurs twice.", hint="Give each column its own name."
        )


SHOWN_VALUES = 8
"""Values of a column that a filter's error names."""


class _Filters:
    """Applies conditions to parts, and remembers what they met in case nothing matches."""

    def __init__(self, where: Sequence[Condition]) -> None:
        self._where = where
        self._matched = dict.fromkeys(where, 0)
        self._kept = 0
        self._seen: dict[str, dict[str, None]] = {condition.column: {} for condition in where}

    def matching(self, part: TablePart) -> TablePart:
        """The rows that meet all conditions."""
        kept = np.ones(part.table.num_rows, dtype=np.bool_)
        for condition in self._where:
            values = _comparable(part, condition.column)
            found = condition.matches(values).to_numpy(zero_copy_only=False)
            self._matched[condition] += int(found.sum())
            self._remember(condition.column, values)
            kept &= found
        self._kept += int(kept.sum())
        return part.filtered(kept)

    def _remember(self, column: str, values: pa.Array) -> None:
        seen = self._seen[column]
        if len(seen) < SHOWN_VALUES:
            few = values.slice(0, PARQUET_BATCH_ROWS).unique().to_pylist()
            seen.update(dict.fromkeys(str(value) for value in few if value is not None))

    def require_matches(self, name: str) -> None:
        """Refuse filters that have left no row; the error names values of the columns."""
        if self._kept:
            return
        alone = [condition for condition in self._where if not self._matched[condition]]
        if not alone:
            conditions = " and ".join(str(condition) for condition in self._where)
            raise FilterMatchesNothing(
                f"no row of {name} has {conditions}, though each of them holds for some rows.",
                hint="Leave one of the filters out.",
            )
        column = alone[0].column
        seen = list(self._seen[column])
        values = ", ".join(seen[:SHOWN_VALUES]) or "no values"
        raise FilterMatchesNothing(
            f"no row of {name} has {alone[0]}. Column {column!r} has {values}"
            f"{' and perhaps others' if len(seen) >= SHOWN_VALUES else ''}.",
            hint="Choose one of the column's values.",
        )


def _comparable(part: TablePart, column: str) -> pa.Array:
    """A column whose values a filter can compare."""
    values = one_array(part.table[column])
    other = COMPARED_AS.get(values.type)
    try:
        if other is not None:
            return values.cast(other)
        is_plain = not pa.types.is_nested(values.type)
        is_plain &= not isinstance(values.type, pa.BaseExtensionType)
    except pa.ArrowInvalid:  # bytes that are no UTF-8
        is_plain = False
    if is_plain:
        return values
    raise ValueTypeInvalid(
        f"{part.place(0, column)}: values of type {values.type} cannot be filtered.",
        hint="Filter by a column of texts, numbers, truths or times.",
    )


COMPARED_AS = {pa.float16(): pa.float32(), pa.binary(): pa.string()}
"""Types that filters compare as other ones."""


def one_array(values: pa.ChunkedArray) -> pa.Array:
    """A column as one array of plain values: not dictionary-encoded, and texts of one kind.

    Texts of more than 2 GiB keep 64-bit offsets.
    """
    chunks = [_plain(chunk) for chunk in values.chunks] or [_plain(pa.nulls(0, values.type))]
    if len(chunks) == 1:
        return chunks[0]
    if pa.types.is_string(chunks[0].type) and sum(chunk.nbytes for chunk in chunks) >= 2**31:
        chunks = [chunk.cast(pa.large_string()) for chunk in chunks]
    return pa.concat_arrays(chunks)


def _plain(values: pa.Array) -> pa.Array:
    types = pa.types
    if types.is_dictionary(values.type):
        return _plain(values.dictionary).take(values.indices)
    if types.is_large_string(values.type) and values.nbytes < 2**31:
        return values.cast(pa.string())
    return values.cast(VIEWS[values.type]) if values.type in VIEWS else values


def line_of_row(file: DataFile, row: int) -> int:
    """The line, counted from 1, on which a row of a text file begins. Row 0 is the first one."""
    assert file.form is not None
    above = 1 if file.form.has_header else 0
    with suppress(csv.Error, OSError):  # a field too large for this reader, or a broken file
        for number, (line, _) in enumerate(records(file.path, file.form)):
            if number == row + above:
                return line
    return row + 1 + above  # right unless fields contain line breaks


NO_UTF_8 = "the text is not UTF-8."


def first_fault(file: DataFile) -> str | None:
    """A sentence on why a text file cannot be read: the first bad row with its line and column."""
    assert file.form is not None
    line = 0
    try:
        for line, fields in records(file.path, file.form):
            broken = next((i for i, text in enumerate(fields) if not is_text(text)), None)
            if broken is not None:
                column = file.names[broken] if broken < len(file.names) else str(broken + 1)
                return f"line {line}, column {column!r}: {NO_UTF_8}"
            if len(fields) != len(file.names):
                return f"line {line}: {len(fields)} fields, not {len(file.names)}."
    except csv.Error as error:
        return f"the row after line {line}: {reason_of_csv(error)}."
    except OSError as error:
        return f"after line {line}: {_reason(error)}."
    return None
