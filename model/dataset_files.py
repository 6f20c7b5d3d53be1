"""The folder that converters and the sample shop write: what a demo needs of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

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
