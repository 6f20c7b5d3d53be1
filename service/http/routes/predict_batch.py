"""``POST /tasks/{task}/predict:batch`` and ``POST /users/predict:batch``: streams of users.

Users are JSON lines or rows of Arrow, which are answered while further ones arrive. A few chunks of
them are on their way at a time; when no answers are taken, none are read. Each chunk counts as one
request, of low priority.
"""

import asyncio
import contextvars
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

import structlog
from fastapi import APIRouter, Depends, Query
from starlette.types import Message

from peterrec.model.errors import RETRYABLE, Category, PeterRecError
from peterrec.service.errors import (
    EncodingUnsupported,
    InternalError,
    MalformedRequest,
    RequestTimedOut,
    ServerDraining,
    TooManyBatches,
    TooManyRows,
    outcome_of,
    retry_after_s,
)
from peterrec.service.http.asgi import ClientLeft, Headers
from peterrec.service.http.auth import Principal
from peterrec.service.http.bound_tenant import BoundTenant
from peterrec.service.http.context import PredictContext, find_caller
from peterrec.service.http.openapi import REFUSALS, batch_operation
from peterrec.service.http.quotas import NOTHING_DONE
from peterrec.service.http.raw_route import Call, RawRoute
from peterrec.service.http.refusal_counts import peer_of
from peterrec.service.http.routes.batch_answers import (
    Answers,
    NdjsonAnswers,
    Outcome,
    Users,
    arrow_answers,
    users_of,
    wants_arrow,
)
from peterrec.service.http.routes.predict import authenticate, guard
from peterrec.service.predict.arrow_rows import ArrowRow
from peterrec.service.predict.batch import CHUNK_LINES, Line, parse_batch_parameters
from peterrec.service.predict.kinds import Prediction
from peterrec.service.predict.loop_shares import SHARED_STEP_S
from peterrec.service.predict.pace import Pace
from peterrec.service.predict.predictor import Predicted, TaskAnswers, TaskQuestions
from peterrec.service.predict.schemas import MAX_TASKS, Instance, Parameters
from peterrec.service.protocol.sender import BATCH, Sender
from peterrec.service.protocol.served_task import ServedTask
from peterrec.service.telemetry.events import RequestFinished

log = structlog.get_logger()

CHUNKS_AT_ONCE = 4
"""Chunks of a stream that are on their way: one is answered while the next ones are computed."""

LINGER_S = 0.01
"""Seconds that lines wait for further ones to be answered with."""

PATIENCE_S = 60.0
"""Seconds without progress after which a stream is given up."""

PAUSE_S = 0.05
"""Seconds after which a chunk that found no place tries again, at least."""

STREAMS_OF_TENANT, STREAMS_OF_WORKER = 4, 32
"""Streams that one worker serves at a time: of one tenant, and of all."""

router = APIRouter(
    tags=["predict"],
    route_class=RawRoute,
    dependencies=[Depends(find_caller)],  # for the OpenAPI document; see authenticate
    responses=REFUSALS,
)


TopK = Annotated[int | None, Query(ge=1, le=1000, description="How many items a ranking returns.")]
ExcludeSeen = Annotated[
    bool | None, Query(description="Whether a ranking leaves out the items of the history.")
]
Unknown = Annotated[
    Literal["drop", "map", "error"] | None,
    Query(description="What happens to items that the backbone does not know."),
]
OfVersion = Annotated[
    str | None, Query(description="The version that answers: its number, its digest or an alias.")
]
Titles = Annotated[bool | None, Query(description="Whether answers have display names.")]


@router.post(
    "/tasks/{task}/predict:batch",
    operation_id="predict_batch",
    response_description="A line for each line, in their order.",
    openapi_extra=batch_operation(),
)
async def predict_batch(
    call: Call,
    task: str,
    top_k: TopK = None,
    exclude_seen: ExcludeSeen = None,
    unknown_items: Unknown = None,
    version: OfVersion = None,
    titles: Titles = None,
) -> None:
    """Predict one task for a stream of users: JSON lines in, JSON lines out, while they come.

    A line is an instance, as in a prediction: `{"history": […], "user_id": …}`. Its answer is the
    prediction with the version that gave it, or `{"kind": "error", "line": …, "error": …}`. A last
    line that has only `error` says that the stream broke off. Both directions may also be Arrow
    record batches, with the columns `user_id` and `items`.
    """
    context: PredictContext = call.scope["app"].predictions
    await guard(context, call, _begin(context, call, task))


@router.post(
    "/users/predict:batch",
    operation_id="predict_batch_of_tasks",
    response_description="A line for each line, in their order.",
    openapi_extra=batch_operation(),
)
async def users_predict_batch(
    call: Call,
    tasks: Annotated[
        str, Query(description="Names with commas between them, or all: those the key may ask.")
    ] = "",
    top_k: TopK = None,
    exclude_seen: ExcludeSeen = None,
    unknown_items: Unknown = None,
    titles: Titles = None,
) -> None:
    """Predict many tasks for a stream of users; the answer to a line has `results` and `errors`."""
    context: PredictContext = call.scope["app"].predictions
    await guard(context, call, _begin(context, call, None))


async def _begin(context: PredictContext, call: Call, task: str | None) -> None:
    """Check all that can be checked before the first line, then answer lines."""
    call.tasks = ()  # each chunk is counted by itself
    users = users_of(call.head)
    call.protocol = users.protocol
    principal = await authenticate(context, call)
    if call.head.content_encoding:
        raise EncodingUnsupported(call.head.content_encoding.decode("latin-1"), "none")
    query = parse_qs(call.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    asked = parse_batch_parameters(query)
    names = (task,) if task is not None else _tasks(context, principal, asked.tasks)
    if task is not None and asked.tasks is not None:
        raise MalformedRequest("`tasks` is a parameter of /users/predict:batch.", hint="Leave it.")
    for name in names:
        principal.require("predict", name)
        context.table.existing(principal.tenant, name)
    patience_s = call.head.timeout_s(int(PATIENCE_S * 1000))
    plan = _Plan(principal, names, asked.of_prediction, task is not None, patience_s)
    if wants_arrow(call.head) and asked.titles:
        raise MalformedRequest("answers in Arrow have no titles.", hint="Leave `titles` out.")
    with _place(principal.tenant), context.quotas.stream(principal.tenant):
        await Stream(context, call, plan, users).run()


def _tasks(context: PredictContext, principal: Principal, asked: str | None) -> tuple[str, ...]:
    if not asked:
        raise MalformedRequest(
            "no tasks are named.", hint="Name them in the URL: ?tasks=NAME,NAME or ?tasks=all."
        )
    if asked == "all":
        found: list[str] = [entry.task for entry in context.table.entries(principal.tenant)]
        names: tuple[str, ...] = tuple(name for name in found if principal.may("predict", name))
    else:
        names = tuple(dict.fromkeys(name for name in asked.split(",")))
    if len(names) > MAX_TASKS:
        raise TooManyRows(
            f"the call is for {len(names)} tasks, at most {MAX_TASKS} are accepted.",
            hint="Name the tasks that you need.",
        )
    return names


_open: Counter[str] = Counter()
"""The open streams of this worker, by tenant."""


@contextmanager
def _place(tenant: str) -> Iterator[None]:
    """Count a stream as long as it is open; TooManyBatches if there are too many."""
    if _open[tenant] >= STREAMS_OF_TENANT or _open.total() >= STREAMS_OF_WORKER:
        raise TooManyBatches(STREAMS_OF_TENANT)
    _open[tenant] += 1
    try:
        yield
    finally:
        _open[tenant] -= 1
        if not _open[tenant]:
            del _open[tenant]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a stream asks: of whom, which tasks, and how. ``is_one``: the answer is a prediction."""

    principal: Principal
    tasks: Sequence[str]
    parameters: Parameters
    is_one: bool
    patience_s: float

    @property
    def chunk_lines(self) -> int:
        """Lines that are answered together: fewer if there are many tasks."""
        return max(1, CHUNK_LINES // max(1, len(self.tasks)))


@dataclass(slots=True)
class _Chunk:
    """Lines on their way; what they have drawn of the tenant's quotas (a ``Drawing``)."""

    tenant: str
    rows: int
    bound: BoundTenant | None = None
    waiting_rows: int = 0
    began_at: float = field(default_factory=time.monotonic)


class Stream:
    """One call: users come in, and answers go out in their order."""

    def __init__(self, context: PredictContext, call: Call, plan: _Plan, users: Users) -> None:
        self._context, self._call, self._plan = context, call, plan
        self._users = users
        self._answers: Answers = NdjsonAnswers(plan.tasks, plan.is_one)
        self._running: deque[asyncio.Task[bytes]] = deque()
        self._is_over = False  # all users have come

    async def run(self) -> None:
        """Answer all users; ClientLeft if the client leaves."""
        receiving = await self._begin()
        headers: Headers = [
            (b"content-type", self._answers.content_type.encode()),
            (b"x-request-id", self._call.head.request_id.encode()),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # a proxy must not collect the answers
        ]
        await self._call.send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await self._send(self._answers.begin())
            await self._answer_all(receiving)
        except ClientLeft:
            raise
        except PeterRecError as error:
            peer, request_id = peer_of(self._call.scope), self._call.head.request_id
            self._context.refusals.count_error(error, peer, request_id)
            await self._break_off(error)
        except Exception:
            # The last guard of a stream: the caller is told that it is not whole.
            log.exception("stream_failed", request_id=self._call.head.request_id)
            await self._break_off(InternalError())
        else:
            await self._send(self._answers.end(), is_last=True)

    async def _begin(self) -> asyncio.Future[Message]:
        """Wait until the body is seen to be one of users; what is wrong until then is refused."""
        receiving: asyncio.Future[Message] = asyncio.ensure_future(self._call.receive())
        await asyncio.sleep(0)  # to say 100 Continue to a client that waits for it
        try:
            while not (self._users.has_begun or self._is_over):
                async with asyncio.timeout(self._plan.patience_s):
                    message = await receiving
                await self._take(message)
                receiving = asyncio.ensure_future(self._call.receive())
            if wants_arrow(self._call.head):
                served = {task: self._served(task) for task in self._plan.tasks}
                is_one = self._plan.is_one
                self._answers = await arrow_answers(served, self._users, is_one=is_one)
        except TimeoutError:
            raise RequestTimedOut("first rows", self._plan.patience_s) from None
        except BaseException:
            receiving.cancel()
            raise
        return receiving

    def _served(self, task: str) -> ServedTask | PeterRecError:
        """The version that answers a task now; its error is raised if it is the only task."""
        tenant, version = self._plan.principal.tenant, self._plan.parameters.version
        try:
            return self._context.table.resolve(tenant, task, version)
        except PeterRecError as error:
            if self._plan.is_one:
                raise
            return error

    async def _send(self, body: bytes, *, is_last: bool = False) -> None:
        if body or is_last:
            message = {"type": "http.response.body", "body": body, "more_body": not is_last}
            await self._call.send(message)

    async def _break_off(self, error: PeterRecError) -> None:
        """Say why the rest is not answered, so that no reader takes the stream for whole."""
        last = self._answers.broken_off(error)
        await self._send(last, is_last=not self._answers.is_cut)
        if self._answers.is_cut:
            self._call.connection.cut()
            while (await self._call.receive())["type"] != "http.disconnect":
                pass

    async def _answer_all(self, receiving: asyncio.Future[Message]) -> None:
        try:
            while not (self._is_over and self._users.is_empty and not self._running):
                receiving = await self._step(receiving)
        finally:
            # Any: lines that arrive, and answers
            unfinished: list[asyncio.Future[Any]] = [receiving, *self._running]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _step(self, receiving: asyncio.Future[Message]) -> asyncio.Future[Message]:
        """Wait for lines or for the oldest answers, and pass on what there is."""
        self._require_valid()
        has_room = len(self._running) < CHUNKS_AT_ONCE
        waited: set[asyncio.Future[Message] | asyncio.Task[bytes]] = set()
        if self._is_over or has_room:
            waited.add(receiving)
        if self._running:
            waited.add(self._running[0])
        lingers = has_room and not self._users.is_empty
        timeout_s = LINGER_S if lingers else self._plan.patience_s
        done, _ = await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            if not lingers:
                raise RequestTimedOut("next line", self._plan.patience_s)
            await self._start(is_forced=True)
        if self._running and self._running[0].done():
            await self._send(self._running.popleft().result())
        if receiving in done:
            await self._take(receiving.result())
            receiving = asyncio.ensure_future(self._call.receive())
        await self._start()
        return receiving

    def _require_valid(self) -> None:
        self._context.authenticator.require_valid(self._plan.principal)
        if self._call.scope["app"].state.admin.readiness.is_draining:
            raise ServerDraining

    async def _take(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            raise ClientLeft
        if data := message.get("body", b""):
            await self._users.feed(data)
        if not message.get("more_body", False) and not self._is_over:
            await self._users.end()
            self._is_over = True

    async def _start(self, *, is_forced: bool = False) -> None:
        """Start chunks, as many as may be on their way."""
        most = self._plan.chunk_lines
        while len(self._running) < CHUNKS_AT_ONCE:
            chunk = await self._users.take(most, is_forced=is_forced)
            if not chunk:
                break
            # Without the context of the request: its timeline would grow with every chunk.
            work = self._answer(chunk)
            self._running.append(asyncio.Task(work, context=contextvars.Context()))

    async def _answer(self, lines: Sequence[Line | ArrowRow]) -> bytes:
        """The answers to a chunk; one that finds no place tries again, as long as may be."""
        instances: list[Instance | PeterRecError] = []
        pace = Pace(SHARED_STEP_S)
        for line in lines:
            instances.append(line.instance)
            if pace.is_due:
                await pace.rest()
        until = time.monotonic() + self._plan.patience_s
        while True:
            chunk = _Chunk(self._plan.principal.tenant, len(lines) * len(self._plan.tasks))
            try:
                predicted = await self._predict(chunk, instances, until)
            except TooManyRows as error:
                if len(lines) == 1:
                    return await self._failed(chunk, lines, instances, error)
                half = len(lines) // 2
                return await self._answer(lines[:half]) + await self._answer(lines[half:])
            except PeterRecError as error:
                pause_s = max(PAUSE_S, min(retry_after_s(error), 1.0))
                if not _may_pass(error) or time.monotonic() + pause_s >= until:
                    return await self._failed(chunk, lines, instances, error)
                await asyncio.sleep(pause_s)
            else:
                return await self._encoded(chunk, lines, instances, predicted)

    async def _predict(
        self, chunk: _Chunk, instances: Sequence[Instance | PeterRecError], until: float
    ) -> Predicted:
        context, sender = self._context, Sender(chunk.tenant, BATCH)
        context.quotas.draw(chunk)
        is_answered = False
        try:
            context.quotas.admit_rows(chunk, chunk.rows)
            with context.admission.admit(sender, max(1, chunk.rows), until):
                predicted = await self._predict_slices(instances, until)
            is_answered = True
            return predicted
        except PeterRecError as error:
            if error.category in NOTHING_DONE:
                context.quotas.give_back(chunk)
            raise
        finally:
            context.quotas.release(chunk, is_answered=is_answered)

    async def _predict_slices(
        self, instances: Sequence[Instance | PeterRecError], until: float
    ) -> Predicted:
        """Answer a chunk: as a whole, or slice by slice while somebody waits for other answers."""
        slices, tenant = self._context.slices, self._plan.principal.tenant
        found: list[Predicted] = []
        at = 0
        while at < len(instances) or not found:
            if not self._context.admission.is_waited_for:
                found.append(await self._predict_all(instances[at:], until))
                break
            users = max(1, slices.rows // max(1, len(self._plan.tasks)))
            part = instances[at : at + users]
            async with slices.turn(tenant, len(part) * len(self._plan.tasks), until):
                found.append(await self._predict_all(part, until))
            at += users
        return _joined(found)

    async def _predict_all(
        self, instances: Sequence[Instance | PeterRecError], until: float
    ) -> Predicted:
        predictor, plan = self._context.predictor, self._plan
        questions = await predictor.questions(instances, plan.parameters)
        version = plan.parameters.version
        asked = [TaskQuestions(task, version, questions) for task in plan.tasks]
        return await predictor.predict(plan.principal.tenant, asked, until, BATCH)

    async def _failed(
        self,
        chunk: _Chunk,
        lines: Sequence[Line | ArrowRow],
        instances: Sequence[Instance | PeterRecError],
        error: PeterRecError,
    ) -> bytes:
        """One error for all lines that have none of their own."""
        for task in self._plan.tasks:
            self._emit(chunk, task, [error] * len(lines))
        return await self._answers.encoded(
            [
                Outcome(line, given, (), given if isinstance(given, PeterRecError) else error)
                for line, given in zip(lines, instances, strict=True)
            ]
        )

    async def _encoded(
        self,
        chunk: _Chunk,
        lines: Sequence[Line | ArrowRow],
        instances: Sequence[Instance | PeterRecError],
        predicted: Predicted,
    ) -> bytes:
        for task, answers in zip(self._plan.tasks, predicted.tasks, strict=True):
            self._emit(chunk, task, [each.answer for each in answers.answers])
        by_task = [each.answers for each in predicted.tasks]
        return await self._answers.encoded(
            [
                Outcome(
                    line,
                    given,
                    [of_task[at] for of_task in by_task],
                    given if isinstance(given, PeterRecError) else None,
                )
                for at, (line, given) in enumerate(zip(lines, instances, strict=True))
            ]
        )

    def _emit(
        self, chunk: _Chunk, task: str, answers: Sequence[Prediction | PeterRecError]
    ) -> None:
        outcomes = Counter(
            outcome_of(each) if isinstance(each, PeterRecError) else "ok" for each in answers
        )
        outcome = "ok" if outcomes["ok"] else next(iter(outcomes))
        own = None if len(outcomes) == 1 else dict(outcomes)
        duration_s = time.monotonic() - chunk.began_at
        self._context.emit(
            RequestFinished(
                chunk.tenant, task, outcome, duration_s, len(answers), own, self._call.protocol
            )
        )


def _joined(found: Sequence[Predicted]) -> Predicted:
    """The answers of slices as those of one call."""
    if len(found) == 1:
        return found[0]
    tasks = [
        TaskAnswers(parts[0].served, [each for part in parts for each in part.answers])
        for parts in zip(*(each.tasks for each in found), strict=True)
    ]
    return Predicted(tasks, found[-1].registry_revision)


def _may_pass(error: PeterRecError) -> bool:
    """Whether the same lines may be answered later."""
    return error.category in RETRYABLE or error.category is Category.OVER_QUOTA
