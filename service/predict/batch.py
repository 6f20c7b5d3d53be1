"""Lines of a stream of histories, as long as it may be, with bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import LineTooLong, MalformedRequest
from peterrec.service.predict.item_ids import UnknownItems
from peterrec.service.predict.parse import parse_instance
from peterrec.service.predict.schemas import Instance, Parameters, TopK, Version

MAX_LINE_BYTES = 1 << 20
"""Largest line: a history of the most items with long ids fits."""

CHUNK_LINES = 64
"""Lines that are answered together: few enough that the event loop has turns for other requests."""

LONGEST_NUMBER = 19
"""Digits from which on a version in a URL is no number."""

CHUNK_BYTES = 256 << 10
"""Bytes of lines that are answered together, unless one line has more."""


class BatchParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for all lines of a stream; it is given in the URL."""

    top_k: TopK | None = None
    exclude_seen: bool | None = None
    unknown_items: UnknownItems | None = None
    version: Version | None = None
    titles: bool | None = None
    tasks: str | None = None

    @property
    def of_prediction(self) -> Parameters:
        """The parameters of each prediction."""
        given = {name: getattr(self, name) for name in self.__struct_fields__ if name != "tasks"}
        return Parameters(**{name: value for name, value in given.items() if value is not None})


def parse_batch_parameters(query: dict[str, list[str]]) -> BatchParameters:
    """Read the fields of a URL; MalformedRequest names the first that is wrong."""
    twice = [name for name, values in query.items() if len(values) > 1]
    if twice:
        raise MalformedRequest(
            f"the parameter {twice[0][:60]!r} is given {len(query[twice[0]])} times.",
            hint="Give it once.",
        )
    fields: dict[str, str | int] = {name: values[0] for name, values in query.items()}
    if (number := query.get("version", [""])[0]).isdecimal() and len(number) < LONGEST_NUMBER:
        fields["version"] = int(number)
    try:
        return msgspec.convert(fields, BatchParameters, strict=False)
    except msgspec.ValidationError as error:
        raise MalformedRequest(
            f"the parameters of the URL are wrong: {error}.",
            hint=f"They may be {', '.join(BatchParameters.__struct_fields__)}.",
        ) from error


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is no empty one, and its number, counted from 1; or the error in its place."""

    number: int
    data: bytes
    error: PeterRecError | None = None

    @property
    def instance(self) -> Instance | PeterRecError:
        """The user of the line, or why it has none."""
        if self.error is not None:
            return self.error
        try:
            return parse_instance(self.data)
        except PeterRecError as error:
            return error


class Lines:
    """Cuts what arrives into lines. It holds at most one line that is not whole."""

    def __init__(self, limit_bytes: int = MAX_LINE_BYTES) -> None:
        self._limit = limit_bytes
        self._rest = bytearray()
        self._number = 0
        self._is_skipping = False

    def feed(self, data: bytes) -> list[Line]:
        """The lines that have become whole."""
        *whole, rest = data.split(b"\n")
        found = [line for part in whole if (line := self._end(part)) is not None]
        if not self._is_skipping:
            self._rest += rest
            if len(self._rest) > self._limit:
                self._rest.clear()
                self._is_skipping = True
        return found

    def end(self) -> list[Line]:
        """The last line, if it had no end."""
        line = self._end(b"") if self._rest or self._is_skipping else None
        return [] if line is None else [line]

    def _end(self, part: bytes) -> Line | None:
        self._number += 1
        data = bytes(self._rest) + part
        self._rest.clear()
        was_skipping, self._is_skipping = self._is_skipping, False
        if was_skipping or len(data) > self._limit:
            return Line(self._number, b"", LineTooLong(self._limit))
        return Line(self._number, data) if data.strip() else None


class LineChunks:
    """Lines that have arrived, and wait to be answered together."""

    has_begun = True

    def __init__(self) -> None:
        self._lines = Lines()
        self._held: list[Line] = []
        self._is_over = False

    @property
    def is_empty(self) -> bool:
        """Whether all lines were taken."""
        return not self._held

    async def feed(self, data: bytes) -> None:
        """Take a part of the body."""
        self._held += self._lines.feed(data)

    async def end(self) -> None:
        """Take the end of the body."""
        self._held += self._lines.end()
        self._is_over = True

    async def take(self, most: int, *, is_forced: bool) -> Sequence[Line]:
        """The lines of the next chunk; none while it is not full, unless forced or the last."""
        many = chunk_of(self._held, most)
        if many == len(self._held) < most and not is_forced and not self._is_over:
            return []
        taken, self._held = self._held[:many], self._held[many:]
        return taken


def chunk_of(lines: Sequence[Line], most: int = CHUNK_LINES) -> int:
    """How many of the lines are answered together: bounded in their number and bytes."""
    size = 0
    for many, line in enumerate(lines[:most]):
        size += len(line.data)
        if many and size > CHUNK_BYTES:
            return many
    return min(most, len(lines))
