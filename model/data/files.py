"""The folder that converters and the sample shop write: what a demo needs of a data set.

Every user's events as Parquet tables: all of them, what tasks may read, and what comes after.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from peterrec.model.data.histories import Histories

Column = Sequence[str] | Sequence[float] | npt.NDArray[np.int64] | npt.NDArray[np.float64]

HISTORY_SHARE = 0.8
"""Share of a user's events, the oldest, that derived tasks may read; the rest are answers."""


@dataclass(frozen=True, slots=True)
class Events:
    """Events of all users, sorted by user and then by time; ``position`` counts from 0 in each."""

    users: Sequence[str]
    items: Sequence[str]
    positions: npt.NDArray[np.int64]

    def history_mask(self) -> npt.NDArray[np.bool_]:
        """True for the oldest four fifths of every user's events."""
        starts = np.flatnonzero(self.positions == 0)
        lengths = np.diff([*starts, len(self.positions)])
        kept = np.maximum(1, (lengths * HISTORY_SHARE).astype(np.int64))
        is_history: npt.NDArray[np.bool_] = self.positions < np.repeat(kept, lengths)
        return is_history

    def select(self, mask: npt.NDArray[np.bool_]) -> "Events":
        """The events where the mask is true, with the positions they had."""
        chosen = np.flatnonzero(mask).tolist()
        return Events(
            [self.users[i] for i in chosen], [self.items[i] for i in chosen], self.positions[mask]
        )


def write_events(path: Path, events: Events, **columns: Column) -> None:
    """Columns user_id, item_id, position and any further ones."""
    write_columns(
        path,
        {
            "user_id": events.users,
            "item_id": events.items,
            "position": events.positions,
            **columns,
        },
    )


def write_columns(path: Path, columns: Mapping[str, Column]) -> None:
    """One Parquet file with these columns; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path)


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
