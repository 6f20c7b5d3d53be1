"""The Parquet tables that converters and the sample shop write.

A folder has every user's events: all of them, those that tasks may read, and the later ones. The
functions write to final names; call them within ``folder_in_one_step``.
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
"""Share of a user's events, the oldest, that derived tasks may read; the others are answers."""


def history_lengths(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many events are history, for users with these numbers of events."""
    kept: npt.NDArray[np.int64] = np.maximum(1, (lengths * HISTORY_SHARE).astype(np.int64))
    return kept


@dataclass(frozen=True, slots=True)
class PositionedEvents:
    """Events of all users, sorted by user and time; each user's positions count from 0."""

    users: Sequence[str]
    items: Sequence[str]
    positions: npt.NDArray[np.int64]

    def history_mask(self) -> npt.NDArray[np.bool_]:
        """True for the oldest four fifths of every user's events."""
        starts = np.flatnonzero(self.positions == 0)
        lengths = np.diff([*starts, len(self.positions)])
        is_history: npt.NDArray[np.bool_]
        is_history = self.positions < np.repeat(history_lengths(lengths), lengths)
        return is_history

    def select(self, mask: npt.NDArray[np.bool_]) -> "PositionedEvents":
        """The events where the mask is true; they keep their positions."""
        chosen = np.flatnonzero(mask).tolist()
        return PositionedEvents(
            [self.users[i] for i in chosen], [self.items[i] for i in chosen], self.positions[mask]
        )


def write_events(path: Path, events: PositionedEvents, **columns: Column) -> None:
    """Write the columns user_id, item_id, position and any further ones."""
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
    """Write one Parquet file with these columns."""
    pq.write_table(pa.table(dict(columns)), path)


SCHEMA = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("position", pa.int64())])

USERS_AT_ONCE = 1 << 14
"""Users whose ids are in memory as texts at a time."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """The events of some users, and which of them are history."""

    table: pa.Table
    is_history: npt.NDArray[np.bool_]


def write_all(histories: Histories, path: Path) -> None:
    """Write all events of all users."""
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for batch in _tables(histories):
            writer.write_table(batch.table)


def write_halves(histories: Histories, out: Path) -> None:
    """Write the oldest four fifths of each user's events as histories, the others as targets."""
    with (
        pq.ParquetWriter(out / "histories.parquet", SCHEMA) as past,
        pq.ParquetWriter(out / "targets.parquet", SCHEMA) as future,
    ):
        for batch in _tables(histories):
            past.write_table(batch.table.filter(pa.array(batch.is_history)))
            future.write_table(batch.table.filter(pa.array(~batch.is_history)))


def _tables(histories: Histories) -> Iterator[_Batch]:
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
        yield _Batch(pa.table(columns, schema=SCHEMA), is_history)
