"""Events on their way from tables to histories: kept, numbered and put in order out of core.

DuckDB holds the events with the texts of their ids, and moves to disk what exceeds its memory. When
all have come, each distinct id gets a number, and the events leave as numbers: in the order in
which they came, or by user and time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from peterrec.model.data import engine
from peterrec.model.data.order_columns import OrderValues, joint_type
from peterrec.model.data.values import Settled, settled
from peterrec.model.errors import OrderUnreadable

Codes = npt.NDArray[np.int32]

BATCH_ROWS = 1 << 20
"""Events that leave the store at a time."""


@dataclass(frozen=True, slots=True)
class EventColumns:
    """Names of the table and columns of events, for messages."""

    source: str
    user: str
    item: str
    order: str | None


@dataclass(frozen=True, slots=True)
class Numbered:
    """Events as numbers: user, item, and time; without an order column, the place among all."""

    user: Codes
    item: Codes
    time: OrderValues


@dataclass(frozen=True, slots=True)
class TimeForm:
    """How times leave the store: an expression, its type, and the digits that it has multiplied.

    ``is_exact`` is the condition under which an event's time is kept exactly.
    """

    sql: str
    dtype: type[np.int64 | np.uint64 | np.float64]
    scale: int = 0
    is_exact: str = "true"


@contextmanager
def open_store(columns: EventColumns) -> Iterator["EventStore"]:
    """An empty store. It takes no memory or disk any more when the block ends."""
    with engine.connected() as connection, engine.room_errors():
        yield EventStore(connection, columns)


class EventStore:
    """Events that were added so far (see the module). Only ``open_store`` makes one."""

    def __init__(self, connection: engine.Connection, columns: EventColumns) -> None:
        self._connection = connection
        self._columns = columns
        self._type: pa.DataType | None = None
        self.count = 0
        connection.execute("CREATE TABLE events (u VARCHAR, i VARCHAR, t BIGINT)")

    def add(self, users: pa.Array, items: pa.Array, times: pa.Array | None) -> None:
        """Add events at the end. Ids are texts without nulls; ``times`` are of an order column."""
        if not len(users):
            return
        given = pa.nulls(len(users), pa.int64()) if times is None else times
        with self._registered("batch", pa.table({"u": users, "i": items, "t": given})):
            held = self._hold(given.type)
            self._connection.execute(f"INSERT INTO events SELECT u, i, t::{held} FROM batch")
        self.count += len(users)

    @contextmanager
    def _registered(self, name: str, table: pa.Table) -> Iterator[None]:
        self._connection.register(name, table)
        try:
            yield
        finally:
            self._connection.unregister(name)

    def _hold(self, given: pa.DataType) -> str:
        """Make the stored times hold values of a type, too; returns their type in DuckDB."""
        old = self._type or given
        joint = joint_type(old, given)
        assert joint is not None  # the order column has refused times among numbers
        if given != joint:
            self._require_exact("batch", given, joint)
        if old != joint:
            self._require_exact("events", old, joint)
        held = _sql_type(joint)
        if self._type != joint:
            self._connection.execute(f"ALTER TABLE events ALTER t TYPE {held} USING t::{held}")
        self._type = joint
        return held

    def _require_exact(self, table: str, old: pa.DataType, new: pa.DataType) -> None:
        """Refuse a change of type that the change back does not undo."""
        there_and_back = f"TRY_CAST(TRY_CAST(t AS {_sql_type(new)}) AS {_sql_type(old)})"
        found = self._connection.execute(
            f"SELECT t::VARCHAR FROM {table} WHERE {there_and_back} IS DISTINCT FROM t LIMIT 1"
        ).fetchall()
        if found:
            raise OrderUnreadable(
                f"{self._columns.source}, column {self._columns.order!r}: some values are of type "
                f"{old} and others need {new}, which does not hold {found[0][0]} exactly.",
                hint="Write the column as integers or timestamps of one unit everywhere.",
            )

    def name_users(self) -> Settled:
        """Number the users in the order in which they first came; the texts are their names."""
        return self._name("u", self._columns.user)

    def name_items(self) -> Settled:
        """Number the items in the order in which they first came; the texts are their names."""
        return self._name("i", self._columns.item)

    def _name(self, key: str, column: str) -> Settled:
        first = f"SELECT {key}, min(rowid) AS first FROM events GROUP BY {key}"
        relation = self._connection.sql(f"SELECT {key} FROM ({first}) ORDER BY first")
        raw = relation.to_arrow_table()[key].combine_chunks()
        found = settled(raw, column, self._columns.source)
        encoded = found.texts.dictionary_encode()
        with self._registered("named", pa.table({key: raw, "code": encoded.indices})):
            self._connection.execute(f"CREATE TABLE {key}_codes AS SELECT * FROM named")
        return Settled(encoded.dictionary, found.notices)

    def time_form(self) -> TimeForm:
        """How the times leave the store; refused if no form keeps them exactly."""
        for form in self._time_forms():
            inexact = f"SELECT count(*) FROM events WHERE NOT ({form.is_exact})"
            if form.is_exact == "true" or self._number(inexact) == 0:
                return form
        raise OrderUnreadable(
            f"{self._columns.source}, column {self._columns.order!r}: the values have more digits "
            "than 64 bits hold.",
            hint="Write the column as integers or timestamps.",
        )

    def _time_forms(self) -> tuple[TimeForm, ...]:
        kind = self._type
        if self._columns.order is None or kind is None:
            return (TimeForm("events.rowid", np.int64),)
        if pa.types.is_timestamp(kind):
            return (TimeForm(f"epoch_{kind.unit}(t)", np.int64, 9 if kind.unit == "ns" else 6),)
        if pa.types.is_decimal(kind):
            return _forms_of_decimals(kind.scale)
        return (TimeForm("t", kind.to_pandas_dtype()),)

    def _number(self, query: str) -> int:
        ((number,),) = self._connection.execute(query).fetchall()
        return int(number)

    def count_between(self, bounds: list[tuple[int, int]]) -> list[int]:
        """How many times lie in each range of numbers; 0 if they are no numbers."""
        if self._type is None or pa.types.is_timestamp(self._type):
            return [0] * len(bounds)
        counts = [f"count(*) FILTER (t >= {low} AND t < {high})" for low, high in bounds]
        (found,) = self._connection.execute(f"SELECT {', '.join(counts)} FROM events").fetchall()
        return [int(count) for count in found]

    def in_given_order(self, form: TimeForm) -> Numbered:
        """All events, in the order in which they were added. Users and items must have names."""
        user, item = np.empty(self.count, np.int32), np.empty(self.count, np.int32)
        every = Numbered(user, item, np.empty(self.count, form.dtype))
        for place, batch in self._batches(form, ""):
            every.user[place] = batch.user
            every.item[place] = batch.item
            every.time[place] = batch.time
        return every

    def by_user_and_time(self, form: TimeForm) -> Iterator[Numbered]:
        """Events by user and time, all those of some users at once."""
        held: list[Numbered] = []
        for _, batch in self._batches(form, f"ORDER BY user, {_order_key(form)}"):
            held.append(batch)
            ends = np.flatnonzero(batch.user[1:] != batch.user[:-1]) + 1
            if len(ends) or held[0].user[0] != batch.user[-1]:
                end = int(ends[-1]) if len(ends) else 0
                whole = [*held[:-1], _part(batch, slice(0, end))]
                held = [_part(batch, slice(end, None))]
                yield _joined(whole)
        if held:
            yield _joined(held)

    def by_user_text(self, form: TimeForm) -> Iterator[pa.Table]:
        """Events as columns user, item and time, by the user's text and by time.

        Ids need no names, so that what is in memory does not depend on how many there are.
        """
        relation = self._connection.sql(
            f"SELECT u AS user, i AS item, {form.sql} AS time FROM events "
            f"ORDER BY u, {_order_key(form)}"
        )
        for batch in relation.to_arrow_reader(BATCH_ROWS):
            yield pa.Table.from_batches([batch])

    def _batches(
        self, form: TimeForm, order: str
    ) -> Iterator[tuple[npt.NDArray[np.int64], Numbered]]:
        relation = self._connection.sql(
            f"SELECT u_codes.code AS user, i_codes.code AS item, {form.sql} AS time, "
            "events.rowid AS place FROM events "
            f"JOIN u_codes USING (u) JOIN i_codes USING (i) {order}"
        )
        for batch in relation.to_arrow_reader(BATCH_ROWS):
            user, item, time, place = (column.to_numpy() for column in batch.columns)
            yield place, Numbered(user, item, time)


def _sql_type(kind: pa.DataType) -> str:
    """DuckDB's name of a type of order columns."""
    if pa.types.is_decimal(kind):
        return f"DECIMAL(38, {kind.scale})"
    return {
        pa.int64(): "BIGINT",
        pa.uint64(): "UBIGINT",
        pa.float64(): "DOUBLE",
        pa.timestamp("us"): "TIMESTAMP",
        pa.timestamp("ns"): "TIMESTAMP_NS",
    }[kind]


def _forms_of_decimals(scale: int) -> tuple[TimeForm, ...]:
    """Integers if they are; else floats if those are as exact, or the digits as an integer."""
    if not scale:
        kinds = (("BIGINT", np.int64), ("UBIGINT", np.uint64))
        return tuple(
            TimeForm(f"TRY_CAST(t AS {kind})", dtype, 0, f"TRY_CAST(t AS {kind}) IS NOT NULL")
            for kind, dtype in kinds
        )
    digits = "TRY_CAST(replace(t::VARCHAR, '.', '') AS BIGINT)"
    few_digits = f"abs(t) < {Decimal(10) ** (15 - scale):f}"  # a float tells 15 digits apart
    return (
        TimeForm("t::DOUBLE", np.float64, 0, few_digits),
        TimeForm(digits, np.int64, scale, f"{digits} IS NOT NULL"),
    )


def _order_key(form: TimeForm) -> str:
    """What to sort by: the stored times themselves, exact in every form."""
    return "events.rowid" if form.sql == "events.rowid" else "t"


def _part(batch: Numbered, rows: slice) -> Numbered:
    return Numbered(batch.user[rows], batch.item[rows], batch.time[rows])


def _joined(parts: list[Numbered]) -> Numbered:
    if len(parts) == 1:
        return parts[0]
    return Numbered(
        np.concatenate([part.user for part in parts]),
        np.concatenate([part.item for part in parts]),
        np.concatenate([part.time for part in parts]),
    )
