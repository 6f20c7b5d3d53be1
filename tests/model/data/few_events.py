"""Small tables of events, written row by row."""

import numpy as np

from peterrec.model.data.interactions import Events


def events(*rows: tuple[str, str, int], has_times: bool = True) -> Events:
    users = tuple(dict.fromkeys(user for user, _, _ in rows))
    items = tuple(dict.fromkeys(item for _, item, _ in rows))
    return Events(
        users,
        items,
        np.array([users.index(user) for user, _, _ in rows], dtype=np.int32),
        np.array([items.index(item) for _, item, _ in rows], dtype=np.int32),
        np.array([time for _, _, time in rows]) if has_times else None,
        "number" if has_times else None,
        "events.csv",
    )
