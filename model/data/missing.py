"""How many values each column of a table lacks, counted in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from peterrec.model.data.forms import find_data_files
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.tables import TableSource, read_batches

CHEAP_BYTES = 1 << 28
"""Size of the files up to which columns are counted that nobody asked for."""


@dataclass(frozen=True, slots=True)
class TableProfile:
    """The rows of a table, filters aside, and the number of missing values of its columns."""

    name: str
    rows: int
    missing: dict[str, int]


def profile_table(
    source: TableSource, columns: Sequence[str], observer: ReadingObserver = SILENT
) -> TableProfile:
    """Count the missing values of columns; of small files, those of all other columns too.

    Null, NaN, the empty text, blanks and the source's ``missing`` texts are missing values.
    """
    wanted = list(dict.fromkeys([*columns, *_others(source)]))
    counts = dict.fromkeys(wanted, 0)
    rows = 0
    unfiltered = TableSource(source.data, source.delimiter, source.columns, (), source.missing)
    for part in read_batches(unfiltered, wanted, observer):
        rows += part.table.num_rows
        for column in wanted:
            counts[column] += _count(part.table[column], source.missing)
    return TableProfile(source.name, rows, counts)


def _others(source: TableSource) -> Iterator[str]:
    """Columns that all files have, if reading them is cheap."""
    if not isinstance(source.data, Path):
        return
    files = find_data_files(source.data, source.delimiter, source.columns).files
    if sum(file.size for file in files) > CHEAP_BYTES:
        return
    for column in files[0].columns:
        if all(file.columns.count(column) == 1 for file in files):
            yield column


def _count(values: pa.ChunkedArray, missing: Sequence[str]) -> int:
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.cast(kind.value_type), kind.value_type
    count: int = values.null_count
    if pa.types.is_floating(kind):
        count += pc.sum(pc.is_nan(values)).as_py() or 0
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
        is_missing = pc.is_in(texts, pa.array(["", *missing], pa.string()))
        count += pc.sum(pc.and_(is_missing, pc.is_valid(texts))).as_py() or 0
    return count
