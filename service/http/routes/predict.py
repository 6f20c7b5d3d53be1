"""``POST /tasks/{task}/predict`` and ``POST /users/predict``: plain ASGI, decoded by msgspec."""

import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from msgspec import UNSET, structs
from starlette.types import Receive, Scope, Send

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import TaskNotFound
from peterrec.patches.registry.traffic import PROD
from peterrec.service.errors import (
    OUTCOMES,
    InternalError,
    MalformedRequest,
    NothingAnswered,
    TooManyRows,
    category_of,
    error_body,
)
from peterrec.service.http.asgi import (
    ClientLeft,
    Headers,
    RequestHead,
    encode_json,
    read_body,
    send_error,
    send_json,
)
from peterrec.service.http.auth import Authenticator, Principal
from peterrec.service.http.connection import Connection
from peterrec.service.predict.canary import Answered
from peterrec.service.predict.item_ids import MappedHistory
from peterrec.service.predict.kinds import Prediction
from peterrec.service.predict.parse import parse_predict, parse_users_predict
from peterrec.service.predict.predictor import Asked, Predictor, Wanted
from peterrec.service.predict.rows import Admission, Question
from peterrec.service.predict.schemas import (
    MAX_BODY_BYTES,
    MAX_TASKS,
    FailedRow,
    Instance,
    PredictResponse,
    TaskChoice,
    UsersPredictRequest,
    UsersPredictResponse,
)
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.served_task import ServedTask
from peterrec.service.telemetry.events import Emit, RequestFinished

log = structlog.get_logger()

CLIENT_LEFT = "client_left"


@dataclass(frozen=True, slots=True)
class PredictContext:
    """What the prediction routes need of their worker."""

    table: TaskTable
    authenticator: Authenticator
    predictor: Predictor
    emit: Emit
    request_timeout_ms: int


@dataclass(slots=True)
class Call:
    """One HTTP request on its way; the last three fill in for the metrics."""

    head: RequestHead
    connection: Connection
    receive: Receive
    send: Send
    started: float
    tenant: str = ""
    tasks: Sequence[str] = ("",)
    rows: int = 0


def _call(scope: Scope, receive: Receive, send: Send) -> Call:
    return Call(RequestHead.read(scope), Connection.of(scope), receive, send, time.monotonic())


class Begun(NamedTuple):
    """A call that was authenticated and read."""

    principal: Principal
    body: bytes
    deadline: float


class PredictRoutes:
    """The prediction calls as ASGI applications."""

    def __init__(self, context: PredictContext) -> None:
        self._table = context.table
        self._authenticator = context.authenticator
        self._predictor = context.predictor
        self._emit = context.emit
        self._timeout_ms = context.request_timeout_ms

    async def predict(self, scope: Scope, receive: Receive, send: Send, task: str) -> None:
        """Answer ``POST /tasks/{task}/predict``."""
        await self._guard(call := _call(scope, receive, send), self._predict(call, task))

    async def users_predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``POST /users/predict``."""
        await self._guard(call := _call(scope, receive, send), self._users_predict(call))

    async def _guard(self, call: Call, work: Awaitable[None]) -> None:
        """Run a call; its errors become responses, its outcome an event."""
        outcome = "ok"
        try:
            await work
        except ClientLeft:
            outcome = CLIENT_LEFT
        except PeterRecError as error:
            outcome = OUTCOMES.get(category_of(error), "client_error")
            await send_error(call.send, error, call.head.request_id)
        except Exception:
            # The last guard of a request: whatever it is, the caller gets our form of a 500.
            outcome = "error"
            log.exception("request_failed", request_id=call.head.request_id)
            await send_error(call.send, InternalError(), call.head.request_id)
        duration = time.monotonic() - call.started
        for task in call.tasks:
            self._emit(RequestFinished(call.tenant, task, outcome, duration, call.rows))

    async def _begin(self, call: Call) -> Begun:
        head = call.head
        principal = self._authenticator.authenticate(head.authorization, head.api_key)
        call.tenant = principal.tenant
        deadline = call.started + head.timeout_s(self._timeout_ms)
        body = await read_body(
            call.receive,
            head.content_length,
            MAX_BODY_BYTES,
            has_arrived=call.connection.has_whole_body,
        )
        return Begun(principal, body, deadline)

    async def _predict(self, call: Call, task: str) -> None:
        principal, body, deadline = await self._begin(call)
        if self._table.entry(principal.tenant, task) is None:
            raise TaskNotFound(task)
        call.tasks = (task,)
        principal.require("predict", task)
        instances, parameters = parse_predict(body)
        call.rows = len(instances)
        questions = self._predictor.questions(instances, parameters)
        wanted = Wanted(task, parameters.version)
        resolved = await self._predictor.resolve(principal.tenant, (wanted,))
        served = resolved.served[0]
        if isinstance(served, PeterRecError):
            raise served
        asked = [q if isinstance(q, PeterRecError) else Asked(served, q) for q in questions]
        admitted = self._predictor.admit(asked, resolved.catalogs)
        answered = await self._answer(call, admitted, deadline)
        if len(answered) == 1 and isinstance(answered[0].answer, PeterRecError):
            raise answered[0].answer
        by = served if served.split is None else _speaker(served, answered)
        response = PredictResponse(
            task=task,
            version=by.version,
            digest=by.digest,
            alias=by.alias,
            role=by.role,
            kind=by.bundle.kind,
            registry_revision=resolved.registry_revision,
            request_id=call.head.request_id,
            predictions=[
                _slot(*pair, has_traffic=served.split is not None)
                for pair in zip(instances, answered, strict=True)
            ],
        )
        await _send(call, encode_json(response), by.digest)

    async def _users_predict(self, call: Call) -> None:
        principal, body, deadline = await self._begin(call)
        request = parse_users_predict(body)
        choices = self._choices(request, principal)
        call.rows = 1
        call.tasks = self._known(principal, choices)
        history = self._predictor.map_history(request.history, request.parameters.unknown_items)
        resolved = await self._predictor.resolve(
            principal.tenant, [_wanted(choice, request) for choice in choices]
        )
        asked = [
            _ask(principal, served, _user_question(request, history, choice))
            for choice, served in zip(choices, resolved.served, strict=True)
        ]
        admitted = self._predictor.admit(asked, resolved.catalogs)
        results, errors = _sort(choices, await self._answer(call, admitted, deadline))
        if errors and not results:
            raise NothingAnswered(errors)
        response = UsersPredictResponse(
            registry_revision=resolved.registry_revision,
            request_id=call.head.request_id,
            results=results,
            errors={task: error_body(error) for task, error in errors.items()},
        )
        await _send(call, encode_json(response))

    def _known(self, principal: Principal, choices: Sequence[TaskChoice]) -> Sequence[str]:
        """The registered tasks among the choices: only these may become label values."""
        known = [c.task for c in choices if self._table.entry(principal.tenant, c.task)]
        return known or ("",)

    def _choices(self, request: UsersPredictRequest, principal: Principal) -> list[TaskChoice]:
        """The tasks asked for, each once, with their own parameters."""
        if request.tasks == "all":
            entries = self._table.entries(principal.tenant)
            names = [entry.task for entry in entries if PROD in entry.aliases]
            choices = [TaskChoice(name) for name in names if principal.may("predict", name)]
        else:
            choices = [TaskChoice(t) if isinstance(t, str) else t for t in request.tasks]
        if len(choices) > MAX_TASKS:
            raise TooManyRows(
                f"the call is for {len(choices)} tasks, at most {MAX_TASKS} are accepted.",
                hint="Name the tasks that you need.",
            )
        if len({choice.task for choice in choices}) != len(choices):
            raise MalformedRequest("a task is named twice at $.tasks.", hint="Name it once.")
        return choices

    async def _answer(
        self, call: Call, admitted: Sequence[Admission | PeterRecError], deadline: float
    ) -> list[Answered]:
        return await call.connection.while_it_lasts(self._predictor.answer(admitted, deadline))


def _ask(
    principal: Principal, served: ServedTask | PeterRecError, question: Question
) -> Asked | PeterRecError:
    if isinstance(served, PeterRecError):
        return served
    return principal.refusal("predict", served.task) or Asked(served, question)


def _user_question(
    request: UsersPredictRequest, history: MappedHistory, choice: TaskChoice
) -> Question:
    parameters = request.parameters
    seen = choice.exclude_seen
    return Question(
        history=history,
        ids=request.history,
        top_k=parameters.top_k if choice.top_k is None else choice.top_k,
        exclude_seen=parameters.exclude_seen if seen is None else seen,
        user_id=request.user_id,
    )


def _wanted(choice: TaskChoice, request: UsersPredictRequest) -> Wanted:
    pinned = request.parameters.version if choice.version is None else choice.version
    return Wanted(choice.task, pinned)


def _sort(
    choices: Sequence[TaskChoice], answered: Sequence[Answered]
) -> tuple[dict[str, Prediction], dict[str, PeterRecError]]:
    """Answers that name their bundles, and errors, by task."""
    results: dict[str, Prediction] = {}
    errors: dict[str, PeterRecError] = {}
    for choice, (answer, by) in zip(choices, answered, strict=True):
        if isinstance(answer, PeterRecError):
            errors[choice.task] = answer
        else:
            results[choice.task] = _signed(answer, by)
    return results, errors


def _speaker(prod: ServedTask, answered: Sequence[Answered]) -> ServedTask:
    """Who answered, if all answers are by one version; else prod."""
    by = {each.by.bundle.digest: each.by for each in answered if each.by is not None}
    return next(iter(by.values())) if len(by) == 1 else prod


def _signed(answer: Prediction, by: ServedTask | None) -> Prediction:
    """The answer with the name of the version that gave it."""
    assert by is not None
    return structs.replace(
        answer, version=by.version, digest=by.digest, alias=by.alias, role=by.role
    )


def _slot(
    given: Instance | PeterRecError, answered: Answered, *, has_traffic: bool
) -> Prediction | FailedRow:
    answer = answered.answer
    if not isinstance(answer, PeterRecError):
        return _signed(answer, answered.by) if has_traffic else answer
    user_id = given.user_id if isinstance(given, Instance) else None
    return FailedRow(error_body(answer), UNSET if user_id is None else user_id)


async def _send(call: Call, body: bytes, digest: str = "") -> None:
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"x-request-id", call.head.request_id.encode()),
    ]
    if digest:
        headers.append((b"x-bundle-digest", digest.encode()))
    await send_json(call.send, 200, body, headers)
