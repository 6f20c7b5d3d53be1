"""The forms in which a stream of users comes and its answers go: JSON lines, or Arrow."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from msgspec import UNSET, Struct, UnsetType

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import ErrorBody, error_body
from peterrec.service.http.asgi import RequestHead, encode_json
from peterrec.service.http.openapi import ARROW_STREAM, NDJSON
from peterrec.service.http.routes.predict import signed
from peterrec.service.predict.arrow_answers import END, AnsweredUser, AnswerTables
from peterrec.service.predict.arrow_rows import ArrowRow, ArrowRows
from peterrec.service.predict.batch import Line, LineChunks
from peterrec.service.predict.canary import Answered
from peterrec.service.predict.kinds import AnyPrediction, Prediction
from peterrec.service.predict.loop_shares import SHARED_STEP_S
from peterrec.service.predict.pace import Pace
from peterrec.service.predict.schemas import Instance
from peterrec.service.protocol.served_task import ServedTask

Given = Instance | PeterRecError


class FailedLine(Struct, frozen=True, tag_field="kind", tag="error"):
    """A line that could not be answered. The other lines are not affected."""

    line: int
    error: ErrorBody
    user_id: str | int | UnsetType = UNSET


class BatchLine(Struct, frozen=True):
    """One user's answers of many tasks, or why they could not be answered."""

    results: dict[str, AnyPrediction]
    errors: dict[str, ErrorBody]
    user_id: str | int | UnsetType = UNSET


class BrokenOff(Struct, frozen=True):
    """The last line of a stream that was not answered to its end."""

    error: ErrorBody


class Outcome(NamedTuple):
    """What came of one user: an answer of each task, or one error for all."""

    line: Line | ArrowRow
    given: Given
    answers: Sequence[Answered]
    error: PeterRecError | None

    @property
    def user_id(self) -> str | int | None:
        """The user's id, if it was understood."""
        if isinstance(self.given, Instance):
            return self.given.user_id
        return self.line.user_id if isinstance(self.line, ArrowRow) else None


class Users(Protocol):
    """Users as they arrive. All methods raise what is wrong with the body as a whole."""

    protocol: ClassVar[str]

    @property
    def has_begun(self) -> bool:
        """Whether the answer may begin: a later error cannot refuse the call any more."""

    @property
    def is_empty(self) -> bool:
        """Whether all users that have arrived were taken."""

    async def feed(self, data: bytes) -> None:
        """Take a part of the body."""

    async def end(self) -> None:
        """Take the end of the body."""

    async def take(self, most: int, *, is_forced: bool) -> Sequence[Line] | Sequence[ArrowRow]:
        """The users of the next chunk; none while it should wait for more, unless forced."""


class NdjsonUsers(LineChunks):
    """Users as JSON lines."""

    protocol: ClassVar[str] = "ndjson"


class ArrowUsers(ArrowRows):
    """Users as Arrow record batches."""

    protocol: ClassVar[str] = "arrow"


class Answers(Protocol):
    """How answers are written. ``is_cut``: only a cut connection shows that some are missing."""

    content_type: ClassVar[str]
    is_cut: ClassVar[bool]

    def begin(self) -> bytes:
        """What comes before the first answer."""

    async def encoded(self, outcomes: Sequence[Outcome]) -> bytes:
        """The answers of a chunk."""

    def broken_off(self, error: PeterRecError) -> bytes:
        """What follows the last answer of a stream that breaks off."""

    def end(self) -> bytes:
        """What follows the last answer."""


@dataclass(frozen=True, slots=True)
class NdjsonAnswers:
    """A JSON line for each user."""

    content_type: ClassVar[str] = NDJSON
    is_cut: ClassVar[bool] = False

    tasks: Sequence[str]
    is_one: bool

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def end(self) -> bytes:
        """Nothing."""
        return b""

    def broken_off(self, error: PeterRecError) -> bytes:
        """A line that has only the error."""
        return encode_json(BrokenOff(error_body(error))) + b"\n"

    async def encoded(self, outcomes: Sequence[Outcome]) -> bytes:
        """The lines of a chunk."""
        pace, parts = Pace(SHARED_STEP_S), []
        for outcome in outcomes:
            parts.append(encode_json(self._line(outcome)) + b"\n")
            if pace.is_due:
                await pace.rest()
        return b"".join(parts)

    def _line(self, outcome: Outcome) -> Prediction | FailedLine | BatchLine:
        if outcome.error is not None:
            return _failed_line(outcome, outcome.error)
        if self.is_one:
            (answered,) = outcome.answers
            if isinstance(answered.answer, PeterRecError):
                return _failed_line(outcome, answered.answer)
            return signed(answered.answer, answered.by)
        results: dict[str, AnyPrediction] = {}
        errors: dict[str, ErrorBody] = {}
        for task, answered in zip(self.tasks, outcome.answers, strict=True):
            if isinstance(answered.answer, PeterRecError):
                errors[task] = error_body(answered.answer)
            else:
                results[task] = signed(answered.answer, answered.by)
        return BatchLine(results, errors, UNSET if outcome.user_id is None else outcome.user_id)


def _failed_line(outcome: Outcome, error: PeterRecError) -> FailedLine:
    user_id = UNSET if outcome.user_id is None else outcome.user_id
    return FailedLine(outcome.line.number, error_body(error), user_id)


class ArrowAnswers:
    """A record batch for each chunk."""

    content_type: ClassVar[str] = ARROW_STREAM
    is_cut: ClassVar[bool] = True

    def __init__(self, tables: AnswerTables) -> None:
        self._tables = tables

    def begin(self) -> bytes:
        """The schema."""
        return self._tables.begin()

    def end(self) -> bytes:
        """The mark of the end."""
        return END

    def broken_off(self, error: PeterRecError) -> bytes:
        """A row that has only the error."""
        return self._tables.rows([AnsweredUser(None, error=error)])

    async def encoded(self, outcomes: Sequence[Outcome]) -> bytes:
        """The rows of a chunk. They are made in a thread: many tasks have many columns."""
        users = [AnsweredUser(each.user_id, each.answers, each.error) for each in outcomes]
        return await asyncio.to_thread(self._tables.rows, users)


def users_of(head: RequestHead) -> Users:
    """How a body is read. What is not said to be Arrow is JSON lines."""
    return ArrowUsers() if _is_arrow(head.content_type) else NdjsonUsers()


def wants_arrow(head: RequestHead) -> bool:
    """Whether answers are to be Arrow: the client says so, or sends it and says nothing."""
    accepted = head.accept.split(b",")[:20]
    if any(map(_is_arrow, accepted)):
        return True
    is_open = not head.accept or b"*/*" in head.accept
    return is_open and _is_arrow(head.content_type)


async def arrow_answers(
    tasks: Mapping[str, ServedTask | PeterRecError], users: Users, *, is_one: bool
) -> ArrowAnswers:
    """Answers as Arrow; users' ids are integers only if they are integers in a table."""
    has_numbers = isinstance(users, ArrowRows) and await asyncio.to_thread(users.has_integers)
    return ArrowAnswers(
        await asyncio.to_thread(AnswerTables, tasks, is_one=is_one, has_numbers=has_numbers)
    )


def _is_arrow(media_type: bytes) -> bool:
    return media_type.partition(b";")[0].strip().lower() == ARROW_STREAM.encode()
