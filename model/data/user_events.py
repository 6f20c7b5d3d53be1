"""Users to score from a table with one row per event: grouped by user and put in order.

The rules of order and of cut-offs are those of training (``interactions.py``). DuckDB sorts the
events on disk, so the memory does not depend on their number. Users come in the order of their ids
as texts, which is the same in every run.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peterrec.model.data.event_store import EventColumns, EventStore, TimeForm, open_store
from peterrec.model.data.interactions import (
    Events,
    InteractionSource,
    event_parts,
    require_order,
    within_bounds,
)
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.order_columns import Kind, OrderColumn
from peterrec.model.data.tables import TablePart, one_array
from peterrec.model.data.user_rows import (
    ROWS_AT_ONCE,
    BadRow,
    Lists,
    UserRows,
    checked,
    ids_of,
    without_id,
)
from peterrec.model.errors import FilterMatchesNothing
from peterrec.model.progress import Progress

OnBadRows = Callable[[Sequence[BadRow]], None]
"""Called with the events that have no user or item, and are left out."""


def read_user_events(
    source: InteractionSource, on_bad: OnBadRows, observer: ReadingObserver = SILENT
) -> Iterator[UserRows]:
    """Each user's items in order, for some users at a time.

    Reads all events first. An event without a user or an item goes to ``on_bad``.
    """
    name = source.table.name
    order = None if source.order_column is None else OrderColumn(source.order_column, observer)
    require_order(source, observer)
    columns = EventColumns(name, source.user_column, source.item_column, source.order_column)
    with open_store(columns) as store:
        for part in event_parts(source, observer):
            part, times = within_bounds(part, order, source)
            _add(store, part, times, source, on_bad)
        if not store.count:
            raise FilterMatchesNothing(
                f"no event of {name} is within the cut-off.", hint="Choose another cut-off."
            )
        observer.progress(Progress("putting the events in order"))
        kind = order.kind if order else None
        done = 0
        for table in _whole_users(store, store.time_form()):
            done += table.num_rows
            observer.progress(Progress("grouping", done, store.count, unit="events"))
            yield from _histories(table, kind, name, source.table.missing)


def _add(
    store: EventStore,
    part: TablePart,
    times: pa.Array | None,
    source: InteractionSource,
    on_bad: OnBadRows,
) -> None:
    users, odd_users = ids_of(one_array(part.table[source.user_column]))
    items, odd_items = ids_of(one_array(part.table[source.item_column]))
    is_bad = odd_users | odd_items
    is_bad |= without_id(users, part.missing) | without_id(items, part.missing)
    users, items = users.cast(pa.string()), items.cast(pa.string())
    if is_bad.any():
        on_bad(
            [
                BadRow(
                    row,
                    f"{part.name}, row {part.rows[row] + 1}",
                    users[row].as_py(),
                    "value_missing",
                    "the event has no user or no item.",
                )
                for row in np.flatnonzero(is_bad).tolist()
            ]
        )
        kept = pa.array(~is_bad)
        users, items = users.filter(kept), items.filter(kept)
        times = None if times is None else times.filter(kept)
    store.add(users, items, times)


def _whole_users(store: EventStore, form: TimeForm) -> Iterator[pa.Table]:
    """Events by user, all those of a user in one table."""
    held: list[pa.Table] = []
    for table in store.by_user_text(form):
        users = table["user"]
        last = users[-1].as_py()
        start = pc.index(users, last).as_py()
        if start or (held and held[0]["user"][0].as_py() != last):
            yield pa.concat_tables([*held, table.slice(0, start)]).combine_chunks()
            held = [table.slice(start)]
        else:
            held.append(table)
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _histories(
    table: pa.Table, kind: Kind | None, name: str, missing: tuple[str, ...]
) -> Iterator[UserRows]:
    """The users of a table with all their events."""
    users, items = (one_array(table[c]).dictionary_encode() for c in ("user", "item"))
    names: list[str] = users.dictionary.to_pylist()
    time = None if kind is None else table["time"].to_numpy()
    events = Events(
        tuple(names),
        tuple(items.dictionary.to_pylist()),
        users.indices.to_numpy(),
        items.indices.to_numpy(),
        time,
        kind,
        name,
    )
    ordered = items.dictionary.take(pa.array(items.indices.to_numpy()[events.in_order()]))
    lengths = np.bincount(events.user, minlength=len(names)).astype(np.int64)
    ends = np.cumsum(lengths)
    for start in range(0, len(names), ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, len(names))
        first = int(ends[start - 1]) if start else 0
        yield checked(
            Lists(
                name,
                "user",
                names[start:stop],
                users.dictionary.slice(start, stop - start),
                ordered.slice(first, int(ends[stop - 1]) - first),
                lengths[start:stop],
            ),
            missing,
        )
