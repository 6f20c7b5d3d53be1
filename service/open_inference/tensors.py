"""Tensors as clients send them, and their elements as item ids."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import msgspec
import numpy as np

from peterrec.service.errors import MalformedRequest, TooManyValues, cut
from peterrec.service.predict.item_ids import ItemId
from peterrec.service.predict.pace import Pace
from peterrec.service.predict.parse import MAX_VALUES

INTEGERS: Mapping[str, str] = {
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
}
"""numpy's names of the protocol's integers; their raw form is little-endian."""

ID_TYPES = ("BYTES", *INTEGERS)
"""Types of elements that can be item ids."""

LENGTH_BYTES = 4
"""Bytes of the length (little-endian) before each element of raw BYTES."""

STRIDE = 4096
"""Elements of raw BYTES that are read between two looks at the clock: a millisecond or two."""

SHOWN = 60
"""Characters of a caller's text that an answer repeats."""


class GivenTensor(NamedTuple):
    """An input as it arrived: its elements are raw bytes, a JSON array, or a list of their type."""

    name: str
    datatype: str
    shape: Sequence[int]
    raw: bytes | memoryview | None = None
    json: msgspec.Raw | None = None
    typed: Sequence[int] | Sequence[bytes] | None = None


class Tensor(NamedTuple):
    """An input that was read: its elements in row-major order."""

    name: str
    shape: tuple[int, ...]
    values: Sequence[ItemId]


async def read_tensor(given: GivenTensor, pace: Pace) -> Tensor:
    """Read an input whose elements are ids or whole numbers; raise MalformedRequest if they aren't.

    The shape has one or two dimensions, and at most ``MAX_VALUES`` elements.
    """
    if given.datatype not in ID_TYPES:
        raise malformed(
            given.name, f"has datatype {cut(given.datatype, SHOWN)!r}", "Send BYTES or INT64."
        )
    shape = _checked_shape(given)
    values = await _values(given, shape, pace)
    if len(values) != prod(shape):
        raise malformed(
            given.name,
            f"has {len(values)} elements and the shape {list(shape)}, which has {prod(shape)}",
            "The shape counts the elements, padding too.",
        )
    return Tensor(given.name, shape, values)


def malformed(name: str, problem: str, hint: str) -> MalformedRequest:
    """Return the error of an input."""
    return MalformedRequest(f"input {cut(name, SHOWN)!r} {problem}.", hint=hint)


def _checked_shape(given: GivenTensor) -> tuple[int, ...]:
    shape = tuple(given.shape[:3])
    if len(shape) not in (1, 2) or any(size < 0 for size in shape):
        shown = cut(str(list(shape)), SHOWN)
        raise malformed(
            given.name, f"has the shape {shown}", "Send [items], or [users, items] for several."
        )
    if max(shape) > MAX_VALUES or prod(shape) > MAX_VALUES:
        raise TooManyValues(MAX_VALUES)
    return shape


async def _values(given: GivenTensor, shape: Sequence[int], pace: Pace) -> Sequence[ItemId]:
    if given.raw is not None:
        if given.datatype == "BYTES":
            return await _read_texts(given.name, given.raw, pace)
        return _read_numbers(given, given.raw)
    if given.json is not None:
        return _read_json(given, given.json, shape)
    if given.typed is None:
        raise malformed(given.name, "has no data", "An empty tensor has the shape [1, 0].")
    if given.datatype == "BYTES":
        return await _as_texts(given.name, given.typed, pace)
    return given.typed  # type: ignore[return-value]  # whole numbers, by the datatype


def _read_numbers(given: GivenTensor, raw: bytes | memoryview) -> list[int]:
    dtype = np.dtype(INTEGERS[given.datatype])
    count, rest = divmod(len(raw), dtype.itemsize)
    if rest:
        raise malformed(
            given.name,
            f"has {len(raw)} bytes, no whole number of {given.datatype}",
            f"Each element has {dtype.itemsize} bytes.",
        )
    if count > MAX_VALUES:
        raise TooManyValues(MAX_VALUES)
    numbers: list[int] = np.frombuffer(raw, dtype).tolist()
    return numbers


async def _read_texts(name: str, raw: bytes | memoryview, pace: Pace) -> list[str]:
    """Read elements of BYTES, each after its length."""
    data, at, found = bytes(raw), 0, list[bytes]()
    while at < len(data):
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(data[at:begin], "little")
        if begin > len(data) or at > len(data):
            raise malformed(
                name,
                f"ends within element {len(found)}",
                "Each element of BYTES is its length in 4 bytes, little-endian, and its text.",
            )
        found.append(data[begin:at])
        if len(found) % STRIDE == 0:
            if len(found) > MAX_VALUES:
                raise TooManyValues(MAX_VALUES)
            if pace.is_due:
                await pace.rest()
    return await _as_texts(name, found, pace)


async def _as_texts(name: str, elements: Sequence[object], pace: Pace) -> list[str]:
    texts: list[str] = []
    for begin in range(0, len(elements), STRIDE):
        try:
            texts += [bytes(each).decode() for each in elements[begin : begin + STRIDE]]  # type: ignore[call-overload]  # bytes, by the datatype
        except UnicodeDecodeError as error:
            raise malformed(
                name, f"has an element from {begin} on that is not UTF-8", "Item ids are UTF-8."
            ) from error
        if pace.is_due:
            await pace.rest()
    return texts


NOT_DECODED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_TEXTS = (msgspec.json.Decoder(list[str]), msgspec.json.Decoder(list[list[str]]))
_NUMBERS = (msgspec.json.Decoder(list[int]), msgspec.json.Decoder(list[list[int]]))


def _read_json(given: GivenTensor, data: msgspec.Raw, shape: Sequence[int]) -> Sequence[ItemId]:
    """Read a JSON array, which is flat, or has one array for each row."""
    flat, nested = _TEXTS if given.datatype == "BYTES" else _NUMBERS
    try:
        values: Sequence[ItemId] = flat.decode(data)
        return values
    except NOT_DECODED as error:
        try:
            rows = nested.decode(data)
        except NOT_DECODED:
            problem = cut(str(error), 3 * SHOWN)
            what = "texts" if given.datatype == "BYTES" else "whole numbers"
            hint = f"{given.datatype} in JSON is an array of {what}."
            raise malformed(given.name, f"has unsuitable data: {problem}", hint) from error
    if len(shape) == 1 or len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
        raise malformed(
            given.name,
            f"has other data than its shape {list(shape)} says",
            "Pad the shorter rows, and send their lengths as the input `lengths`.",
        )
    return [value for row in rows for value in row]
