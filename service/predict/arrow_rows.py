"""Users in a stream of Arrow record batches (the IPC streaming format), with bounded memory.

Nothing of a message is decoded before its sizes are known to be within the limits; compressed and
dictionary-encoded batches are refused, since they may grow when they are read. pyarrow is loaded
when the first such stream comes.
"""

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import ArrowBatchTooLarge, ArrowRefused, LineTooLong, MalformedRequest
from peterrec.service.predict.batch import CHUNK_BYTES, MAX_LINE_BYTES
from peterrec.service.predict.parse import instance_of
from peterrec.service.predict.schemas import Instance

MAX_METADATA_BYTES = 256 << 10
"""Largest description of a message: a schema with what pandas writes about it fits."""

MAX_BODY_BYTES = 4 << 20
"""Largest data of a record batch: 10,000 histories of 50 numbers."""

CONTINUATION = 0xFFFFFFFF
SCHEMA, RECORD_BATCH = 1, 3
"""Types of messages, by their numbers in Arrow's format (Message.fbs)."""

COLUMNS = ("user_id", "items")

FORM = (
    "Columns are `items`, lists of int64 or string, and, if there are any, `user_id`, int64 or "
    "string."
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message as its bytes. ``rows`` are those that a record batch says it has."""

    kind: int
    data: bytes
    rows: int = 0


class Messages:
    """Cuts what arrives into messages; holds one that is not whole."""

    def __init__(self) -> None:
        self._held = bytearray()
        self.is_over = False  # the stream has said so

    def feed(self, data: bytes) -> list[Message]:
        """The messages that have become whole; ArrowRefused or ArrowBatchTooLarge."""
        self._held += data
        found: list[Message] = []
        while not self.is_over and (message := self._next()) is not None:
            found.append(message)
        if self.is_over and self._held:
            raise ArrowRefused("there are bytes after the end of the stream.")
        return found

    def end(self) -> None:
        """Refuse a stream that ended in the middle of a message."""
        if self._held:
            raise ArrowRefused("the stream ends in the middle of a message.")

    def _next(self) -> Message | None:
        if len(self._held) < 8:
            return None
        mark, length = struct.unpack_from("<Ii", self._held)
        if mark != CONTINUATION:
            raise ArrowRefused("this is not Arrow's IPC streaming format.")
        if length == 0:
            self.is_over = True
            del self._held[:8]
            return None
        if not 0 < length <= MAX_METADATA_BYTES:
            raise ArrowBatchTooLarge("description of a message", MAX_METADATA_BYTES)
        if len(self._held) < 8 + length:
            return None
        try:
            kind, body_bytes, rows = _sizes(bytes(self._held[8 : 8 + length]))
        except struct.error as error:
            raise ArrowRefused("the description of a message cannot be read.") from error
        end = 8 + length + body_bytes
        if len(self._held) < end:
            return None
        data = bytes(self._held[:end])
        del self._held[:end]
        return Message(kind, data, rows)


def _sizes(metadata: bytes) -> tuple[int, int, int]:
    """The type of a message, the bytes of its body, and its rows; refuses what may grow.

    Fields are numbered as in Arrow's Message.fbs; pyarrow checks the whole description again.
    """
    (root,) = struct.unpack_from("<I", metadata)
    kind = _number(metadata, root, 1, "<B")
    body_bytes = _number(metadata, root, 3, "<q")
    if kind not in (SCHEMA, RECORD_BATCH):
        raise ArrowRefused("messages may be schemas and record batches, not dictionaries.")
    if not 0 <= body_bytes <= MAX_BODY_BYTES:
        raise ArrowBatchTooLarge("record batch", MAX_BODY_BYTES)
    if kind == SCHEMA:
        return kind, body_bytes, 0
    place = _field(metadata, root, 2)
    if place is None:
        raise ArrowRefused("a record batch has no description.")
    batch = place + struct.unpack_from("<I", metadata, place)[0]
    if _field(metadata, batch, 3) is not None:
        raise ArrowRefused("record batches may not be compressed.")
    rows = _number(metadata, batch, 0, "<q")
    if not 0 <= rows <= body_bytes // 4:  # a row has an offset of four bytes at least
        raise ArrowRefused(f"a record batch of {body_bytes} bytes cannot have {rows} rows.")
    return kind, body_bytes, rows


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a field of a flatbuffer's table is; None if the table lacks it."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    at = 4 + 2 * number
    offset = struct.unpack_from("<H", data, vtable + at)[0] if at + 2 <= size else 0
    return table + offset if offset else None


def _number(data: bytes, table: int, field: int, form: str) -> int:
    place = _field(data, table, field)
    return 0 if place is None else int(struct.unpack_from(form, data, place)[0])


@dataclass(frozen=True, slots=True)
class ArrowRow:
    """A row of the stream, its number, counted from 1, and its user's id."""

    number: int
    instance: Instance | PeterRecError
    user_id: str | int | None


class ArrowRows:
    """Takes record batches apart, one at a time, into users."""

    def __init__(self) -> None:
        self._messages = Messages()
        self._waiting: list[Message] = []
        self._schema: Any = None  # Any: pyarrow loads later
        self._batch: Any = None
        self._at = 0
        self._number = 0

    @property
    def has_begun(self) -> bool:
        """Whether the columns are known, and the first rows."""
        return self._batch is not None or self._messages.is_over

    def has_integers(self) -> bool:
        """Whether users' ids are integers."""
        import pyarrow as pa

        if self._schema is None or "user_id" not in self._schema.names:
            return False
        return bool(pa.types.is_integer(self._schema.field("user_id").type))

    async def feed(self, data: bytes) -> None:
        """Take what has arrived; raises what is wrong with it."""
        self._waiting += self._messages.feed(data)
        await self._open_next()

    async def end(self) -> None:
        """Take the end of the body."""
        self._messages.end()
        if self._schema is None:
            raise ArrowRefused("the stream has no schema.")

    @property
    def is_empty(self) -> bool:
        """Whether all rows that have arrived were taken."""
        return not self._waiting and (self._batch is None or self._at >= self._batch.num_rows)

    async def take(self, most: int, *, is_forced: bool) -> Sequence[ArrowRow]:
        """The next rows, within the bounds of a chunk; a record batch ends a chunk."""
        await self._open_next()
        if self._batch is None or self._at >= self._batch.num_rows:
            return []
        many = min(most, self._batch.num_rows - self._at)
        while many > 1 and self._batch.slice(self._at, many).nbytes > CHUNK_BYTES:
            many //= 2
        part = self._batch.slice(self._at, many)
        self._at += many
        return self._rows(part)

    async def _open_next(self) -> None:
        """Open the next record batch if the one before is used up."""
        while self._waiting and (self._batch is None or self._at >= self._batch.num_rows):
            message = self._waiting.pop(0)
            # in a thread: pyarrow loads, or checks up to 4 MiB
            if message.kind == SCHEMA:
                if self._schema is not None:
                    raise ArrowRefused("there is a second schema.")
                self._schema = await asyncio.to_thread(_read_schema, message.data)
            else:
                if self._schema is None:
                    raise ArrowRefused("a record batch comes before the schema.")
                self._batch = await asyncio.to_thread(_read_batch, message, self._schema)
                self._at = 0

    def _rows(self, part: Any) -> list[ArrowRow]:
        if part.num_rows == 1 and part.nbytes > MAX_LINE_BYTES:
            self._number += 1
            return [ArrowRow(self._number, LineTooLong(MAX_LINE_BYTES), None)]
        users = (
            part.column("user_id").to_pylist()
            if "user_id" in part.schema.names
            else [None] * part.num_rows
        )
        rows: list[ArrowRow] = []
        for items, user in zip(part.column("items").to_pylist(), users, strict=True):
            self._number += 1
            try:
                given: Instance | PeterRecError = instance_of(items, user)
            except MalformedRequest as error:
                given = error
            rows.append(ArrowRow(self._number, given, user))
        return rows


def _read_schema(data: bytes) -> Any:
    """The columns of a stream; ArrowRefused unless they are those of users."""
    import pyarrow as pa

    try:
        schema = pa.ipc.read_schema(pa.py_buffer(data))
        _check_columns(schema)
    except (pa.ArrowException, ValueError, OSError) as error:  # names may be no UTF-8
        raise ArrowRefused("the schema cannot be read.") from error
    return schema


def _check_columns(schema: Any) -> None:
    import pyarrow as pa

    names = schema.names
    if "items" not in names or len({*names}) != len(names) or not {*names} <= {*COLUMNS}:
        shown = ", ".join(name[:40] for name in names[:5])
        raise ArrowRefused(f"the columns are {shown or 'none'}.", hint=FORM)
    items = schema.field("items").type
    is_list = pa.types.is_list(items) or pa.types.is_large_list(items)
    if not is_list or not _is_id(items.value_type):
        raise ArrowRefused(f"the column items is of type {items!s:.80}.", hint=FORM)
    users = schema.field("user_id").type if "user_id" in names else pa.null()
    if not (_is_id(users) or pa.types.is_null(users)):
        raise ArrowRefused(f"the column user_id is of type {users!s:.80}.", hint=FORM)


def _is_id(kind: Any) -> bool:
    import pyarrow as pa

    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(is_text or pa.types.is_integer(kind))


def _read_batch(message: Message, schema: Any) -> Any:
    """A record batch of which every offset and text was checked."""
    import pyarrow as pa

    try:
        batch = pa.ipc.read_record_batch(pa.py_buffer(message.data), schema)
        batch.validate(full=True)
    except (pa.ArrowException, ValueError, OSError, MemoryError) as error:
        raise ArrowRefused("a record batch contradicts itself.") from error
    if batch.num_rows != message.rows:
        raise ArrowRefused("a record batch contradicts itself.")
    return batch
