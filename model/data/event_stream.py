"""Events read batch after batch into integers, so that files may be larger than memory.

Per event stay 4 bytes for the user, 4 for the item and 8 for the order; texts are kept once each.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from peterrec.model.data.order_columns import Kind, OrderColumn, OrderValues
from peterrec.model.data.tables import TablePart, TableSource, as_text, read_batches, require_values
from peterrec.model.errors import FilterMatchesNothing, OrderUnreadable

Codes = npt.NDArray[np.int32]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class InteractionSource:
    """Where interactions are: one row per event, ordered by ``order_column`` or as in the file.

    With ``since``, or ``before``, only events from that time on, or earlier than it, count; the
    order column says what times there are.
    """

    table: TableSource
    user_column: str = "user_id"
    item_column: str = "item_id"
    order_column: str | None = None
    since: str | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True)
class EventColumns:
    """Events as they stand in the files: ``user`` and ``item`` are indices into the names.

    ``order`` is None without an order column; of the ``order_kind`` timestamp it is in
    microseconds since 1970.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    user: Codes
    item: Codes
    order: OrderValues | None
    order_kind: Kind | None


class Names:
    """Distinct texts by first appearance, over all batches."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self._codes)

    def encode(self, values: pa.ChunkedArray) -> Codes:
        """Each row's index among the texts; new texts are added."""
        encoded = values.combine_chunks().dictionary_encode()
        distinct = as_text(pa.chunked_array([encoded.dictionary])).to_pylist()
        codes = self._codes
        own = np.array([codes.setdefault(text, len(codes)) for text in distinct], dtype=np.int32)
        found: Codes = own[encoded.indices.to_numpy()]
        return found


def read_events(source: InteractionSource) -> EventColumns:
    """All events of a source, in the files' order."""
    users, items = Names(), Names()
    order = None if source.order_column is None else OrderColumn(source.order_column)
    if order is None and (source.since or source.before):
        raise OrderUnreadable(
            "a cut-off needs an order column.",
            hint="Name it with --order-column, that of targets with --target-order-column.",
        )
    user: list[Codes] = []
    item: list[Codes] = []
    times: list[OrderValues] = []
    names = [source.user_column, source.item_column]
    for part in read_batches(source.table, names if order is None else [*names, order.column]):
        kept = part if order is None else _within(part, order, source, times)
        for column in names:
            require_values(kept, column)
        user.append(users.encode(kept.table[source.user_column]))
        item.append(items.encode(kept.table[source.item_column]))
    if not users.texts:
        raise FilterMatchesNothing(
            f"no event of {source.table.path} lies within the cut-off.", hint="Choose another one."
        )
    return EventColumns(
        users.texts,
        items.texts,
        _joined(user),
        _joined(item),
        _joined(times) if order else None,
        order.kind if order else None,
    )


def _within(
    part: TablePart, order: OrderColumn, source: InteractionSource, times: list[OrderValues]
) -> TablePart:
    """The part's events within the source's bounds; their times go to the end of ``times``."""
    values = order.values(part)
    wanted = np.ones(len(values), dtype=np.bool_)
    if len(values) and source.since is not None:
        wanted &= values >= order.bound(source.since)
    if len(values) and source.before is not None:
        wanted &= values < order.bound(source.before)
    times.append(values[wanted])
    if wanted.all():
        return part
    return TablePart(part.path, part.table.filter(pa.array(wanted)), part.rows[wanted], part.form)


def _joined(parts: list[npt.NDArray[Scalar]]) -> npt.NDArray[Scalar]:
    """One array of all parts, which are freed: no two columns are in memory twice at once."""
    joined = np.concatenate(parts)
    parts.clear()
    return joined
