"""Answers of one call → output tensors, whose elements are encoded already."""

import struct
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from peterrec.service.errors import MalformedRequest, MixedKinds, cut
from peterrec.service.open_inference.tensors import SHOWN
from peterrec.service.predict.columns import Column, Datatype
from peterrec.service.predict.kinds import ANSWERS, Prediction
from peterrec.service.predict.pace import Pace
from peterrec.service.protocol.served_task import ServedTask

_encode_json = msgspec.json.Encoder().encode


class Given(NamedTuple):
    """One user's answer, and the version that gave it."""

    answer: Prediction
    by: ServedTask


LABELS: Column[Given] = Column(
    "labels", "BYTES", lambda each: each.by.bundle.labels, "The names of the columns.", "labels"
)
COUNTS: Column[Given] = Column(
    "counts", "INT64", lambda each: _ranks_of(each.answer), "How many ranks are no padding."
)
SHARED: tuple[Column[Given], ...] = (
    Column("version", "INT64", lambda each: each.by.version, "The version that answered."),
    Column("used_items", "INT64", lambda each: each.answer.used_items, "Items that were read."),
    Column(
        "unknown_items",
        "INT64",
        lambda each: each.answer.unknown_items,
        "Items that the backbone does not know.",
    ),
    Column("truncated", "BOOL", lambda each: each.answer.truncated, "Whether older ones were not."),
    Column("cold", "BOOL", lambda each: each.answer.cold, "Whether no known item was read."),
)
"""Outputs of every kind."""


def _ranks_of(answer: Prediction) -> int:
    columns = ANSWERS[str(answer.__struct_config__.tag)].columns
    return next(len(each.read(answer)) for each in columns if each.axis == "ranks")


class Output(NamedTuple):
    """An output whose elements are encoded: each part is one row, or the whole of it.

    The parts are raw bytes if ``is_binary``, else JSON without the brackets.
    """

    name: str
    datatype: Datatype
    shape: list[int]
    parts: list[bytes]
    is_binary: bool

    @property
    def raw(self) -> bytes:
        """The raw bytes."""
        return b"".join(self.parts)

    @property
    def json(self) -> msgspec.Raw:
        """A JSON array of all elements."""
        return msgspec.Raw(b"[" + b",".join(filter(None, self.parts)) + b"]")


class OutputSpec(NamedTuple):
    """An output as the metadata describes it; -1 stands for a size that calls decide."""

    name: str
    datatype: Datatype
    shape: list[int]
    about: str


def specs_of(kind: str, outputs: int) -> list[OutputSpec]:
    """Describe the outputs of a task whose head is of a kind and has so many outputs."""
    columns = ANSWERS[kind].columns
    widths = {"": [], "labels": [outputs], "ranks": [-1]}
    found = [OutputSpec(c.name, c.datatype, [-1, *widths[c.axis]], c.about) for c in columns]
    for extra in _extras(columns):
        shape = [outputs] if extra is LABELS else [-1]
        found.append(OutputSpec(extra.name, extra.datatype, shape, extra.about))
    return found + [OutputSpec(c.name, c.datatype, [-1], c.about) for c in SHARED]


def _extras(columns: Sequence[Column[Any]]) -> Iterator[Column[Given]]:
    axes = {column.axis for column in columns}
    if "labels" in axes:
        yield LABELS
    if "ranks" in axes:
        yield COUNTS


async def outputs_of(
    given: Sequence[Given], wanted: Mapping[str, bool], is_binary: bool
) -> list[Output]:
    """Encode the outputs that are wanted of a call, each as bytes or JSON; all if none is named.

    Raises MalformedRequest for an output that does not exist, and MixedKinds if versions of two
    kinds answered.
    """
    kinds = {each.by.bundle.kind for each in given}
    if len(kinds) > 1:
        raise MixedKinds(given[0].by.task, kinds)
    (kind,) = kinds
    columns = ANSWERS[kind].columns
    specs = [spec.name for spec in specs_of(kind, given[0].by.bundle.outputs)]
    for name in wanted:
        if name not in specs:
            raise MalformedRequest(
                f"a {kind} task has no output {cut(name, SHOWN)!r}.",
                hint=f"The outputs are {', '.join(specs)}.",
            )
    table = await _Table.of(given, columns)
    modes = wanted or dict.fromkeys(specs, is_binary)
    return [await table.encode(name, mode) for name, mode in modes.items()]


class _Table(NamedTuple):
    """The answers of a call, with the names of the labels that any of them has."""

    given: Sequence[Given]
    columns: Mapping[str, Column[Any]]  # Any: of the kind's answers
    labels: Sequence[str]
    is_same: bool

    @classmethod
    async def of(cls, given: Sequence[Given], columns: Sequence[Column[Any]]) -> "_Table":
        labels = {each.by.bundle.digest: each.by.bundle.labels for each in given}
        found = dict.fromkeys(name for names in labels.values() for name in names)
        by_name = {column.name: column for column in columns}
        return cls(given, by_name, list(found), len(set(labels.values())) == 1)

    async def encode(self, name: str, is_binary: bool) -> Output:
        """Encode one output, in short steps."""
        if name == LABELS.name and name not in self.columns:
            part = ENCODERS[is_binary]["BYTES"](self.labels)
            return Output(name, "BYTES", [len(self.labels)], [part], is_binary)
        column = self.columns.get(name)
        datatype = column.datatype if column else _FIXED[name].datatype
        encode, pace = ENCODERS[is_binary][datatype], Pace()
        width = self._width(column)
        parts = []
        for each in self.given:
            row = self._row(column, each, width) if column else (_FIXED[name].read(each),)
            parts.append(encode(row))
            if pace.is_due:
                await pace.rest()
        shape = [len(self.given), *([] if width is None else [width])]
        return Output(name, datatype, shape, parts, is_binary)

    def _width(self, column: Column[Any] | None) -> int | None:
        if column is None or not column.axis:
            return None
        if column.axis == "labels":
            return len(self.labels)
        return max(len(column.read(each.answer)) for each in self.given)

    def _row(self, column: Column[Any], each: Given, width: int | None) -> Sequence[Any]:
        """Return an answer's values in a column.

        A label that its version does not have gets 0, and a rank that it does not have is padding.
        """
        value = column.read(each.answer)
        if width is None:
            return (value,)
        if column.axis == "labels":
            return [*value.values()] if self.is_same else [value.get(n, 0) for n in self.labels]
        padding = "" if column.datatype == "BYTES" else 0
        return [*value, *[padding] * (width - len(value))]


_FIXED = {column.name: column for column in (COUNTS, *SHARED)}


def _pack_texts(row: Sequence[str]) -> bytes:
    texts = [text.encode() for text in row]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _pack_numbers(code: str) -> Callable[[Sequence[Any]], bytes]:
    """Return what packs numbers in the order of bytes that this machine, as all of ours, has."""
    return lambda row: array(code, row).tobytes()


def _as_json(row: Sequence[Any]) -> bytes:
    return _encode_json(row)[1:-1]


ENCODERS: Mapping[bool, Mapping[Datatype, Callable[[Sequence[Any]], bytes]]] = {
    True: {
        "BOOL": bytes,
        "INT64": _pack_numbers("q"),
        "FP32": _pack_numbers("f"),
        "FP64": _pack_numbers("d"),
        "BYTES": _pack_texts,
    },
    False: {
        "BOOL": lambda row: _as_json([*map(bool, row)]),
        "INT64": _as_json,
        "FP32": _as_json,
        "FP64": _as_json,
        "BYTES": _as_json,
    },
}
"""What encodes a row of each type: as raw bytes, or as JSON without brackets."""
