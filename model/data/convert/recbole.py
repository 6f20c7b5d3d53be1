"""Converts RecBole's atomic files (``.inter``, ``.user``, ``.item``) to Parquet tables.

Their first line has the names and types of the columns: ``user_id:token``, ``rating:float``;
``token_seq`` and ``float_seq`` are lists separated by spaces. Other commands read such files too.
The conversion stores numbers as numbers and lists as lists, and every user's newest events
separately as targets.

A file of training samples has an item in each row, and the list of the items before it. Its events
are put together again: the list of a user's first row, and then the item of each row.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from peterrec.model.data.files import write_halves
from peterrec.model.data.forms import DataFile, DataFiles, find_data_files
from peterrec.model.data.histories import Histories
from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.lists import split_texts
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.tables import TablePart, TableSource, read_batches
from peterrec.model.disk import folder_in_one_step
from peterrec.model.errors import DataFileMissing, ListsInvalid, NumberUnreadable
from peterrec.model.progress import Progress

ORDER = "timestamp"
NAMES = {".user": "users", ".item": "items"}
TYPES = {
    "token": pa.string(),
    "float": pa.float64(),
    "token_seq": pa.list_(pa.string()),
    "float_seq": pa.list_(pa.float64()),
}
"""Arrow's type for each of RecBole's."""


@dataclass(frozen=True, slots=True)
class ConvertedRecBole:
    """Counts of the converted data, and the names of the tables."""

    users: int
    items: int
    events: int
    tables: tuple[str, ...]


def convert_recbole(
    source: InteractionSource, out: Path, observer: ReadingObserver = SILENT
) -> ConvertedRecBole:
    """Write interactions, histories and targets, and tables of users and items if there are any.

    ``source`` names the folder of one data set, or its ``.inter`` file. Its order column is
    ``timestamp`` by default, if there is one.
    """
    path = source.table.data
    assert isinstance(path, Path)
    found = _inter_files(path, source.table)
    others = {suffix: _only_file(path, suffix) for suffix in NAMES} if path.is_dir() else {}
    if source.order_column is None and all(ORDER in file.names for file in found.files):
        source = replace(source, order_column=ORDER)
    histories = _histories(source, found, observer)
    observer.progress(Progress("writing tables"))
    tables = {suffix: file for suffix, file in others.items() if file is not None}
    with folder_in_one_step(out) as place:
        _write_table(source.table, found.files, place / "interactions.parquet")
        for suffix, file in tables.items():
            table = TableSource(file, missing=source.table.missing)
            _write_table(table, find_data_files(file).files, place / f"{NAMES[suffix]}.parquet")
        write_halves(histories, place)
    return ConvertedRecBole(
        len(histories.users),
        len(histories.items),
        len(histories.codes),
        ("interactions", *(NAMES[suffix] for suffix in tables)),
    )


def _inter_files(path: Path, table: TableSource) -> DataFiles:
    """The file of events, or the parts that it is split into."""
    if path.is_dir() and not any(_is_inter(file) for file in path.iterdir()):
        raise DataFileMissing(
            f"{path} has no .inter file.", hint="Give the folder of one RecBole data set."
        )
    found = find_data_files(path, table.delimiter, table.columns)
    for file in found.files:
        if not _is_inter(file.path):
            raise DataFileMissing(
                f"{path} has {file.path.name}, which is no .inter file.",
                hint="Give the folder of one RecBole data set.",
            )
    sets = {file.path.name.partition(".inter")[0].split(".")[0] for file in found.files}
    if len(sets) > 1:
        names = ", ".join(file.path.name for file in found.files)
        raise DataFileMissing(
            f"{path} has {len(found.files)} .inter files: {names}.",
            hint="Give the folder of one RecBole data set, or a single file.",
        )
    return found


def _is_inter(path: Path) -> bool:
    return path.name.removesuffix(".gz").removesuffix(".zst").endswith(".inter")


def _only_file(folder: Path, suffix: str) -> Path | None:
    found = sorted(folder.glob(f"*{suffix}"))
    if len(found) > 1:
        raise DataFileMissing(
            f"{folder} has {len(found)} {suffix} files: {', '.join(f.name for f in found)}.",
            hint="Give the folder of one RecBole data set.",
        )
    return found[0] if found else None


def _histories(source: InteractionSource, found: DataFiles, observer: ReadingObserver) -> Histories:
    lists = f"{source.item_column}_list"
    if any(lists in file.lists for file in found.files):
        return _joined_samples(source, lists, observer)
    return read_histories(source, observer)


def _joined_samples(source: InteractionSource, lists: str, observer: ReadingObserver) -> Histories:
    """Each user's first list and then the item of each row, in the files' order."""
    columns = [source.user_column, lists, source.item_column]
    sequences: dict[str, list[str]] = {}
    for part in read_batches(source.table, columns, observer):
        rows = zip(*(part.table[column].to_pylist() for column in columns), strict=True)
        for row, (user, before, item) in enumerate(rows):
            earlier = (before or "").split()
            own = sequences.setdefault(user, list(earlier))
            if own[len(own) - len(earlier) :] != earlier:
                raise ListsInvalid(
                    f"{part.place(row, lists)}: the list does not continue the user's rows before.",
                    hint="Put each user's rows in order, oldest first.",
                )
            own.append(item)
    return _as_histories(sequences)


def _as_histories(sequences: dict[str, list[str]]) -> Histories:
    codes: dict[str, int] = {}
    flat = [codes.setdefault(i, len(codes)) for items in sequences.values() for i in items]
    offsets = np.cumsum([0, *(len(items) for items in sequences.values())], dtype=np.int64)
    return Histories(tuple(sequences), tuple(codes), np.array(flat, dtype=np.int64), offsets)


def _write_table(source: TableSource, files: tuple[DataFile, ...], out: Path) -> None:
    """Write all columns of atomic files with their types; empty fields are null."""
    types = dict(zip(files[0].names, files[0].types, strict=True))
    schema = pa.schema([(name, TYPES[kind]) for name, kind in types.items()])
    with pq.ParquetWriter(out, schema) as writer:
        for file in files:  # not their folder, in which the output may lie
            for part in read_batches(replace(source, data=file.path), list(types)):
                columns = [_typed(part, name, kind) for name, kind in types.items()]
                writer.write_table(pa.table(columns, schema=schema))


def _typed(part: TablePart, column: str, kind: str) -> pa.ChunkedArray:
    values = part.table[column]
    if kind.endswith("_seq"):
        values = split_texts(values)
    try:
        return values.cast(TYPES[kind])
    except pa.ArrowInvalid as error:
        raise _no_number(part, column) from error


def _no_number(part: TablePart, column: str) -> NumberUnreadable:
    texts = part.table[column].to_pylist()
    row, text = next(
        (row, word)
        for row, text in enumerate(texts)
        for word in (text or "").split()
        if not _is_number(word)
    )
    return NumberUnreadable(
        f"{part.place(row, column)}: {text!r} is not a number.",
        hint="Correct the field, or type the column as a token.",
    )


def _is_number(text: str) -> bool:
    try:
        pa.array([text]).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
