"""The synthetic shop as tables in memory, to try things with."""

import pyarrow as pa
import pyarrow.parquet as pq

from peterrec.model.data.sample_data import write_sample_data
from peterrec.model.scratch import ScratchFolder


def sample_data(users: int = 4000, seed: int = 0) -> dict[str, pa.Table]:
    """The tables that ``peterrec sample-data`` writes, by name, as Arrow tables.

    ``histories`` has what tasks may read (columns ``user_id``, ``item_id``, ``position``),
    ``targets`` first purchases to recommend, ``users`` the attributes ``gender``, ``age_group`` and
    ``monthly_spend``, ``tags`` interests with one row each, ``interactions`` all events, and
    ``items`` titles. Equal seeds give equal tables.
    """
    with ScratchFolder() as folder:
        write_sample_data(folder, users, seed)
        return {file.stem: pq.read_table(file) for file in sorted(folder.glob("*.parquet"))}
