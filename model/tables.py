"""CSV and Parquet files as columns of strings, with the place of every row for error messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq

from model.data_errors import (
    ColumnMissing,
    DataFileEmpty,
    DataFileMissing,
    DataFileUnreadable,
    FilterMatchesNothing,
    FilterUnreadable,
    ValueMissing,
)

CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
PARQUET_SUFFIX = ".parquet"


@dataclass(frozen=True, slots=True)
class Condition:
    """Keep only rows whose ``column``, as text, is ``value``."""

    column: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``column=value``."""
        column, equals, value = text.partition("=")
        if not (column and equals):
            raise FilterUnreadable(
                f"filter {text!r} is not COLUMN=VALUE.", hint="Write for example domain=food."
            )
        return cls(column, value)


@dataclass(frozen=True, slots=True)
class TableSource:
    """A CSV or Parquet file, or a folder of them, and which of its rows count."""

    path: Path
    delimiter: str = ","
    where: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class TablePart:
    """The wanted columns of one file; ``rows`` holds each row's number in the file, from 0."""

    path: Path
    table: pa.Table
    rows: npt.NDArray[np.int64]

    def place(self, row: int, column: str) -> str:
        """Where a value stands, in words: file, line (or row) and column."""
        number = int(self.rows[row])
        at = f"row {number + 1}" if is_parquet(self.path) else f"line {number + 2}"
        return f"{self.path}, {at}, column {column!r}"


def is_parquet(path: Path) -> bool:
    return path.name.endswith(PARQUET_SUFFIX)


def read_parts(source: TableSource, columns: Sequence[str]) -> list[TablePart]:
    """The columns of every file of a source, in the order of the file names.

    Rows that miss a condition are left out; the rest keep their numbers. Text columns come as
    strings (an empty CSV field is null), numbers and times as Parquet stores them.
    """
    wanted = list(dict.fromkeys([*columns, *(condition.column for condition in source.where)]))
    files = list_files(source.path)
    parts = [_read_part(path, source.delimiter, wanted) for path in files]
    if not any(part.table.num_rows for part in parts):
        raise DataFileEmpty(f"{source.path} has no rows.", hint="Check the path and the export.")
    kept = [_keep_matching(part, source.where) for part in parts]
    if not any(part.table.num_rows for part in kept):
        conditions = " and ".join(f"{c.column}={c.value}" for c in source.where)
        raise FilterMatchesNothing(
            f"no row of {source.path} has {conditions}.", hint="Check the column's values."
        )
    return kept


def list_files(path: Path) -> list[Path]:
    """The file itself, or the CSV and Parquet files below a folder in the order of their names."""
    if not path.exists():
        raise DataFileMissing(f"{path} does not exist.", hint="Check the path.")
    if path.is_file():
        return [path]
    suffixes = (*CSV_SUFFIXES, PARQUET_SUFFIX)
    files = sorted(file for file in path.rglob("*") if file.name.endswith(suffixes))
    if not files:
        raise DataFileMissing(
            f"folder {path} has no {', '.join(suffixes)} file.", hint="Check the path."
        )
    return files


def text_column(
    parts: Sequence[TablePart], column: str, allows_nulls: bool = False
) -> pa.ChunkedArray:
    """A column as strings, without gaps unless they are allowed; whole floats lose their ``.0``."""
    for part in parts:
        if not allows_nulls:
            _refuse_nulls(part, column)
    return pa.chunked_array(
        [chunk for part in parts for chunk in _as_text(part.table[column]).chunks], pa.string()
    )


def _refuse_nulls(part: TablePart, column: str) -> None:
    """Refuse a column with a missing value, naming the first one's place."""
    missing = part.table[column].is_null()
    if pc.any(missing).as_py():
        row = pc.index(missing, True).as_py()
        raise ValueMissing(
            f"{part.place(row, column)}: the value is missing.", hint="Fill it or remove the row."
        )


def _as_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_floating(values.type):
        whole = pc.all(pc.equal(values, pc.round(values))).as_py()
        values = values.cast(pa.int64()) if whole else values
    return values.cast(pa.string())


def _read_part(path: Path, delimiter: str, columns: list[str]) -> TablePart:
    try:
        table = (
            _read_parquet(path, columns)
            if is_parquet(path)
            else _read_csv(path, delimiter, columns)
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise DataFileUnreadable(
            f"{path}: {str(error).splitlines()[0]}", hint="Check the format and the delimiter."
        ) from error
    return TablePart(path, table, np.arange(table.num_rows, dtype=np.int64))


def _read_parquet(path: Path, columns: list[str]) -> pa.Table:
    _require_columns(path, columns, pq.read_schema(path).names)
    return pq.read_table(path, columns=columns, partitioning=None)


def _read_csv(path: Path, delimiter: str, columns: list[str]) -> pa.Table:
    parse = pv.ParseOptions(delimiter=delimiter)
    names = _csv_header(path, parse)
    _require_columns(path, columns, names, delimiter=delimiter)
    convert = pv.ConvertOptions(
        include_columns=columns,
        column_types=dict.fromkeys(columns, pa.string()),
        strings_can_be_null=True,
        null_values=[""],
    )
    try:
        return pv.read_csv(path, parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid:
        # Only a single thread knows the line number; it fails again, with the number.
        alone = pv.ReadOptions(use_threads=False)
        return pv.read_csv(path, read_options=alone, parse_options=parse, convert_options=convert)


def _csv_header(path: Path, parse: pv.ParseOptions) -> list[str]:
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


def _keep_matching(part: TablePart, where: Sequence[Condition]) -> TablePart:
    table, rows = part.table, part.rows
    for condition in where:
        text = table[condition.column].cast(pa.string())
        matches = pc.fill_null(pc.equal(text, condition.value), False)
        table, rows = table.filter(matches), rows[matches.to_numpy()]
    return TablePart(part.path, table, rows)
