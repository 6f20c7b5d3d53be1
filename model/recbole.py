"""RecBole's atomic files (``.inter``, ``.user``, ``.item``) as Parquet tables.

Their first line names and types the columns: ``user_id:token``, ``rating:float``, and ``_seq`` of
each for lists with spaces between. The other commands read such files too; converted, numbers are
numbers and every user's newest events stand apart as targets.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.data import InteractionSource, read_histories
from model.data_errors import DataFileMissing, NumberUnreadable
from model.dataset_files import HISTORY_SHARE
from model.histories import Histories
from model.tables import TablePart, TableSource, read_batches
from model.text_tables import header_types

ORDER = "timestamp"
NAMES = {".inter": "interactions", ".user": "users", ".item": "items"}


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion wrote."""

    users: int
    items: int
    events: int
    tables: tuple[str, ...]


def convert_recbole(folder: Path, out: Path) -> Converted:
    """Write interactions, histories and targets, and users and items if there are such files."""
    files = {suffix: _only_file(folder, suffix) for suffix in NAMES}
    inter = files[".inter"]
    if inter is None:
        raise DataFileMissing(
            f"{folder} has no .inter file.", hint="Give the folder of one RecBole data set."
        )
    out.mkdir(parents=True, exist_ok=True)
    order = ORDER if ORDER in header_types(inter) else None
    histories = read_histories(InteractionSource(TableSource(inter), order_column=order))
    for suffix, path in files.items():
        if path is not None:
            _write_table(path, out / f"{NAMES[suffix]}.parquet")
    _write_parts(histories, out)
    written = tuple(NAMES[suffix] for suffix, path in files.items() if path is not None)
    return Converted(len(histories.users), len(histories.items), len(histories.codes), written)


def _only_file(folder: Path, suffix: str) -> Path | None:
    found = sorted(folder.glob(f"*{suffix}"))
    if len(found) > 1:
        raise DataFileMissing(
            f"{folder} has {len(found)} {suffix} files: {', '.join(f.name for f in found)}.",
            hint="Give the folder of one RecBole data set.",
        )
    return found[0] if found else None


def _write_table(path: Path, out: Path) -> None:
    """All columns of an atomic file, floats as numbers, an empty field as none."""
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
            f"{part.place(row, column)}: {texts[row]!r} is no number.",
            hint="Correct the field, or type the column as a token.",
        ) from error


def _is_number(text: str) -> bool:
    try:
        pa.array([text]).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _write_parts(histories: Histories, out: Path) -> None:
    """Every user's events in order: the oldest four fifths as histories, the rest as targets."""
    parts = ("histories", "targets")
    writers = [pq.ParquetWriter(out / f"{part}.parquet", PART_SCHEMA) for part in parts]
    for table, is_history in _tables(histories):
        for writer, chosen in zip(writers, (is_history, pc.invert(is_history)), strict=True):
            writer.write_table(table.filter(chosen))
    for writer in writers:
        writer.close()


PART_SCHEMA = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("position", pa.int64())]
)
USERS_AT_ONCE = 1 << 14


def _tables(histories: Histories) -> Iterator[tuple[pa.Table, pa.Array]]:
    """Some users' events at a time, and which of them are history."""
    items = pa.array(histories.items, pa.string())
    for start in range(0, len(histories.users), USERS_AT_ONCE):
        offsets = histories.offsets[start : start + USERS_AT_ONCE + 1]
        lengths = np.diff(offsets)
        users = pa.array(histories.users[start : start + USERS_AT_ONCE], pa.string())
        positions = np.arange(offsets[0], offsets[-1]) - np.repeat(offsets[:-1], lengths)
        kept = np.maximum(1, (lengths * HISTORY_SHARE).astype(np.int64))
        columns = [
            users.take(pa.array(np.repeat(np.arange(len(lengths)), lengths))),
            items.take(pa.array(histories.codes[offsets[0] : offsets[-1]])),
            pa.array(positions),
        ]
        yield pa.table(columns, schema=PART_SCHEMA), pa.array(positions < np.repeat(kept, lengths))
