"""Converts RecBole's atomic files (``.inter``, ``.user``, ``.item``) to Parquet tables.

Their first line has the names and types of the columns: ``user_id:token``, ``rating:float``;
``token_seq`` and ``float_seq`` are lists separated by spaces. Other commands read such files too.
The conversion stores numbers as numbers, and every user's newest events separately as targets.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from peterrec.model.data.files import write_halves
from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.tables import TablePart, TableSource, header_types, read_batches
from peterrec.model.errors import DataFileMissing, NumberUnreadable
from peterrec.model.progress import Progress

ORDER = "timestamp"
NAMES = {".inter": "interactions", ".user": "users", ".item": "items"}


@dataclass(frozen=True, slots=True)
class ConvertedRecBole:
    """Counts of the converted data, and the names of the tables."""

    users: int
    items: int
    events: int
    tables: tuple[str, ...]


def convert_recbole(
    folder: Path, out: Path, observer: ReadingObserver = SILENT
) -> ConvertedRecBole:
    """Write interactions, histories and targets, and tables of users and items if there are any."""
    files = {suffix: _only_file(folder, suffix) for suffix in NAMES}
    inter = files[".inter"]
    if inter is None:
        raise DataFileMissing(
            f"{folder} has no .inter file.", hint="Give the folder of one RecBole data set."
        )
    observer.progress(Progress("converting RecBole's tables"))
    out.mkdir(parents=True, exist_ok=True)
    order = ORDER if ORDER in header_types(inter) else None
    histories = read_histories(InteractionSource(TableSource(inter), order_column=order))
    for suffix, path in files.items():
        if path is not None:
            _write_table(path, out / f"{NAMES[suffix]}.parquet")
    write_halves(histories, out)
    written = tuple(NAMES[suffix] for suffix, path in files.items() if path is not None)
    return ConvertedRecBole(
        len(histories.users), len(histories.items), len(histories.codes), written
    )


def _only_file(folder: Path, suffix: str) -> Path | None:
    found = sorted(folder.glob(f"*{suffix}"))
    if len(found) > 1:
        raise DataFileMissing(
            f"{folder} has {len(found)} {suffix} files: {', '.join(f.name for f in found)}.",
            hint="Give the folder of one RecBole data set.",
        )
    return found[0] if found else None


def _write_table(path: Path, out: Path) -> None:
    """Write all columns of an atomic file: floats as numbers, empty fields as null."""
    types = header_types(path)
    fields = [
        (name, pa.float64() if kind == "float" else pa.string()) for name, kind in types.items()
    ]
    with pq.ParquetWriter(out, pa.schema(fields)) as writer:
        for part in read_batches(TableSource(path), list(types)):
            columns = [
                _numbers(part, name) if kind == "float" else part.table[name]
                for name, kind in types.items()
            ]
            writer.write_table(pa.table(columns, schema=pa.schema(fields)))


def _numbers(part: TablePart, column: str) -> pa.ChunkedArray:
    try:
        return part.table[column].cast(pa.float64())
    except pa.ArrowInvalid as error:
        texts = part.table[column].to_pylist()
        row = next(i for i, text in enumerate(texts) if text is not None and not _is_number(text))
        raise NumberUnreadable(
            f"{part.place(row, column)}: {texts[row]!r} is not a number.",
            hint="Correct the field, or type the column as a token.",
        ) from error


def _is_number(text: str) -> bool:
    try:
        pa.array([text]).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
