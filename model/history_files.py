"""Every user's events as Parquet tables: all of them, what tasks may read, and what comes after."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from model.dataset_files import HISTORY_SHARE
from model.histories import Histories

SCHEMA = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("position", pa.int64())])

USERS_AT_ONCE = 1 << 14
"""Users whose ids are spelled out in memory at once."""


@dataclass(frozen=True, slots=True)
class _Some:
    """Some users' events, and which of them are history."""

    table: pa.Table
    is_history: npt.NDArray[np.bool_]


def write_all(histories: Histories, path: Path) -> None:
    """All events of all users."""
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for some in _tables(histories):
            writer.write_table(some.table)


def write_halves(histories: Histories, out: Path) -> None:
    """The oldest four fifths of each user's events as histories, the rest as targets."""
    with (
        pq.ParquetWriter(out / "histories.parquet", SCHEMA) as past,
        pq.ParquetWriter(out / "targets.parquet", SCHEMA) as future,
    ):
        for some in _tables(histories):
            past.write_table(some.table.filter(pa.array(some.is_history)))
            future.write_table(some.table.filter(pa.array(~some.is_history)))


def history_lengths(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many of so many events are history."""
    kept: npt.NDArray[np.int64] = np.maximum(1, (lengths * HISTORY_SHARE).astype(np.int64))
    return kept


def _tables(histories: Histories) -> Iterator[_Some]:
    items = pa.array(histories.items, pa.string())
    for start in range(0, len(histories.users), USERS_AT_ONCE):
        offsets = histories.offsets[start : start + USERS_AT_ONCE + 1]
        lengths = np.diff(offsets)
        users = pa.array(histories.users[start : start + USERS_AT_ONCE], pa.string())
        positions = np.arange(offsets[0], offsets[-1]) - np.repeat(offsets[:-1], lengths)
        columns = [
            users.take(pa.array(np.repeat(np.arange(len(lengths)), lengths))),
            items.take(pa.array(histories.codes[offsets[0] : offsets[-1]])),
            pa.array(positions),
        ]
        is_history = positions < np.repeat(history_lengths(lengths), lengths)
        yield _Some(pa.table(columns, schema=SCHEMA), is_history)
