"""``POST /tasks/{task}/predict`` and ``POST /users/predict``: raw routes, decoded by msgspec."""

import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence

import structlog
from fastapi import APIRouter, Depends
from msgspec import UNSET, structs

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import (
    SEVERITY,
    DeviceUnavailable,
    InternalError,
    MalformedRequest,
    NothingAnswered,
    TooManyRows,
    error_body,
    outcome_of,
)
from peterrec.service.http.asgi import (
    ClientLeft,
    Headers,
    encode_json,
    read_body,
    send_error,
    send_json,
)
from peterrec.service.http.auth import Principal
from peterrec.service.http.context import PredictContext, find_caller
from peterrec.service.http.openapi import (
    PREDICT_REQUESTS,
    PREDICT_RESPONSES,
    REFUSALS,
    USERS_REQUESTS,
    USERS_RESPONSES,
    raw_operation,
)
from peterrec.service.http.raw_route import Call, RawRoute
from peterrec.service.predict.body_hints import PREDICT, PREDICT_USER, BodyForm
from peterrec.service.predict.canary import Answered
from peterrec.service.predict.explanation import asked_for
from peterrec.service.predict.item_ids import MappedHistory
from peterrec.service.predict.kinds import Prediction
from peterrec.service.predict.parse import parse_predict, parse_users_predict, query_refused
from peterrec.service.predict.predictor import TaskAnswers, TaskQuestions
from peterrec.service.predict.questions import Question
from peterrec.service.predict.schemas import (
    MAX_BODY_BYTES,
    MAX_TASKS,
    FailedRow,
    Instance,
    PredictRequest,
    PredictResponse,
    TaskChoice,
    UsersPredictRequest,
    UsersPredictResponse,
)
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.served_task import ServedTask
from peterrec.service.telemetry.events import RequestFinished

log = structlog.get_logger()

CLIENT_LEFT = "client_left"
"""Label ``outcome`` of a request whose client disconnected before the answer."""

router = APIRouter(
    tags=["predict"],
    route_class=RawRoute,
    dependencies=[Depends(find_caller)],  # for the OpenAPI document; see _authenticate
    responses=REFUSALS,
)


@router.post(
    "/tasks/{task}/predict",
    operation_id="predict",
    response_description="Answered.",
    openapi_extra=raw_operation(
        PredictRequest, PREDICT_REQUESTS, PredictResponse, PREDICT_RESPONSES
    ),
)
async def predict(call: Call, task: str) -> None:
    """Predict one task for one history, or for each of several instances.

    A bad instance gets an error in its slot and does not affect the others. If none can be
    answered, the gravest error is the response, and its errors lists the error of each.
    """
    context: PredictContext = call.scope["app"].predictions
    await _guard(context, call, _predict(context, call, task))


@router.post(
    "/users/predict",
    summary="Predict many tasks",
    operation_id="predict_many_tasks",
    response_description="Answered.",
    openapi_extra=raw_operation(
        UsersPredictRequest, USERS_REQUESTS, UsersPredictResponse, USERS_RESPONSES
    ),
)
async def users_predict(call: Call) -> None:
    """Predict many tasks for one history, all by one registry revision.

    Tasks that cannot be answered are listed in errors. If none can, the gravest error is the
    response.
    """
    context: PredictContext = call.scope["app"].predictions
    await _guard(context, call, _users_predict(context, call))


async def _guard(context: PredictContext, call: Call, work: Awaitable[None]) -> None:
    """Run a call; send its error as a response, and its outcome as an event."""
    outcome = "ok"
    try:
        await work
    except ClientLeft:
        outcome = CLIENT_LEFT
    except PeterRecError as error:
        outcome = outcome_of(error)
        await send_error(call.send, error, call.head.request_id)
    except Exception:
        # The last guard of a request: the caller gets our form of a 500 for any mistake of ours.
        outcome = "error"
        log.exception("request_failed", request_id=call.head.request_id)
        await send_error(call.send, InternalError(), call.head.request_id)
    duration = time.monotonic() - call.started
    for task in call.tasks:
        context.emit(_finished(call, task, outcome, duration))


def _finished(call: Call, task: str, outcome: str, duration_s: float) -> RequestFinished:
    """Make the event of one task: by its own outcome, and its instances by theirs."""
    own = call.outcomes.get(task)
    if own is None:
        return RequestFinished(call.tenant, task, outcome, duration_s, call.rows)
    outcome = "ok" if "ok" in own else min(own, key=SEVERITY.index)
    return RequestFinished(call.tenant, task, outcome, duration_s, len(own), Counter(own))


def _authenticate(context: PredictContext, call: Call) -> Principal:
    principal = context.authenticator.authenticate(call.head.authorization, call.head.api_key)
    call.tenant = principal.tenant
    return principal


def _read(call: Call, form: BodyForm) -> Awaitable[bytes]:
    query = call.scope["query_string"]
    if query:
        raise query_refused(form, query)
    return read_body(
        call.receive,
        call.head.content_length,
        MAX_BODY_BYTES,
        has_arrived=call.connection.has_whole_body,
    )


async def _predict(context: PredictContext, call: Call, task: str) -> None:
    principal = _authenticate(context, call)
    deadline = call.started + call.head.timeout_s(context.request_timeout_ms)
    body = await _read(call, PREDICT)
    context.table.existing(principal.tenant, task)
    call.tasks = (task,)
    principal.require("predict", task)
    instances, parameters = parse_predict(body)
    call.rows = len(instances)
    questions = context.predictor.questions(instances, parameters)
    asked = TaskQuestions(task, parameters.version, questions)
    predicted = await call.connection.while_it_lasts(
        context.predictor.predict(principal.tenant, (asked,), deadline)
    )
    served, answered = predicted.tasks[0]
    if isinstance(served, PeterRecError):
        raise await context.registered.judged(principal.tenant, served)
    failed = {
        at: each.answer
        for at, each in enumerate(answered)
        if isinstance(each.answer, PeterRecError)
    }
    if failed:
        call.outcomes = {task: [_outcome(each.answer) for each in answered]}
    if len(failed) == len(answered):
        raise failed[0] if len(failed) == 1 else NothingAnswered(_by_number(failed))
    by = served if served.split is None else _answering(served, answered)
    response = PredictResponse(
        task=task,
        version=by.version,
        digest=by.digest,
        alias=by.alias,
        role=by.role,
        kind=by.bundle.kind,
        registry_revision=predicted.registry_revision,
        request_id=call.head.request_id,
        predictions=[
            _slot(*pair, has_traffic=served.split is not None)
            for pair in zip(instances, answered, strict=True)
        ],
    )
    await send_json(call.send, 200, encode_json(response), _headers(call, by.digest))


async def _users_predict(context: PredictContext, call: Call) -> None:
    principal = _authenticate(context, call)
    deadline = call.started + call.head.timeout_s(context.request_timeout_ms)
    request = parse_users_predict(await _read(call, PREDICT_USER))
    choices = _choices(context.table, request, principal)
    call.rows = 1
    call.tasks = [_label(context.table, principal, choice.task) for choice in choices]
    history = context.predictor.map_history(request.history, request.parameters.unknown_items)
    asked = [_task_question(principal, request, history, choice) for choice in choices]
    predicted = await call.connection.while_it_lasts(
        context.predictor.predict(principal.tenant, asked, deadline)
    )
    results, errors = _sort(choices, predicted.tasks)
    if errors:
        errors = {
            task: await context.registered.judged(principal.tenant, error)
            for task, error in errors.items()
        }
        call.outcomes = _outcomes_by_label(call.tasks, choices, errors)
    if errors and not results:
        raise NothingAnswered(errors)
    response = UsersPredictResponse(
        registry_revision=predicted.registry_revision,
        request_id=call.head.request_id,
        results=results,
        errors={task: error_body(error) for task, error in errors.items()},
    )
    await send_json(call.send, 200, encode_json(response), _headers(call))


def _label(table: TaskTable, principal: Principal, task: str) -> str:
    """Return the task as a label of the metrics: only registered ones may become values."""
    return task if table.entry(principal.tenant, task) else ""


def _outcome(answer: Prediction | PeterRecError) -> str:
    return outcome_of(answer) if isinstance(answer, PeterRecError) else "ok"


def _by_number(errors: Mapping[int, PeterRecError]) -> dict[str, PeterRecError]:
    return {str(at): error for at, error in errors.items()}


def _outcomes_by_label(
    labels: Sequence[str], choices: Sequence[TaskChoice], errors: Mapping[str, PeterRecError]
) -> dict[str, list[str]]:
    """Return the outcome of each task of a call in which some failed.

    Tasks that are not registered share one label, and none of them is answered.
    """
    pairs = zip(labels, choices, strict=True)
    return {
        label: [outcome_of(errors[choice.task]) if choice.task in errors else "ok"]
        for label, choice in pairs
    }


def _choices(
    table: TaskTable, request: UsersPredictRequest, principal: Principal
) -> list[TaskChoice]:
    """Return the requested tasks with their own parameters; refuse one that is named twice."""
    if request.tasks == "all":
        if not table.epoch:
            raise DeviceUnavailable
        names = [entry.task for entry in table.entries(principal.tenant)]
        choices = [TaskChoice(name) for name in names if principal.may("predict", name)]
    else:
        choices = [TaskChoice(t) if isinstance(t, str) else t for t in request.tasks]
    if len(choices) > MAX_TASKS:
        raise TooManyRows(
            f"the call is for {len(choices)} tasks, at most {MAX_TASKS} are accepted.",
            hint="Name the tasks that you need.",
        )
    ((name, times),) = Counter(choice.task for choice in choices).most_common(1) or [("", 0)]
    if times > 1:
        raise MalformedRequest(
            f"task {name[:128]!r} is named {times} times at $.tasks.", hint="Name it once."
        )
    return choices


def _task_question(
    principal: Principal, request: UsersPredictRequest, history: MappedHistory, choice: TaskChoice
) -> TaskQuestions:
    """Build the question to one of many tasks; an error instead if the caller may not ask it."""
    version = request.parameters.version if choice.version is None else choice.version
    refusal = principal.refusal("predict", choice.task)
    question = refusal or _user_question(request, history, choice)
    return TaskQuestions(choice.task, version, (question,))


def _user_question(
    request: UsersPredictRequest, history: MappedHistory, choice: TaskChoice
) -> Question:
    parameters = request.parameters
    seen = choice.exclude_seen
    explain = parameters.explain if choice.explain is None else choice.explain
    return Question(
        history=history,
        item_ids=request.history,
        top_k=parameters.top_k if choice.top_k is None else choice.top_k,
        exclude_seen=parameters.exclude_seen if seen is None else seen,
        exclude=choice.exclude,
        candidates=choice.candidates,
        user_id=request.user_id,
        unknown_items=parameters.unknown_items,
        explain=asked_for(explain),
    )


def _sort(
    choices: Sequence[TaskChoice], tasks: Sequence[TaskAnswers]
) -> tuple[dict[str, Prediction], dict[str, PeterRecError]]:
    """Split into results, each with the name of its bundle, and errors; both by task."""
    results: dict[str, Prediction] = {}
    errors: dict[str, PeterRecError] = {}
    for choice, task in zip(choices, tasks, strict=True):
        answer, by = task.answers[0]
        if isinstance(answer, PeterRecError):
            errors[choice.task] = answer
        else:
            results[choice.task] = _signed(answer, by)
    return results, errors


def _answering(prod: ServedTask, answered: Sequence[Answered]) -> ServedTask:
    """Return the version that gave all answers if there is one, else prod."""
    by = {each.by.bundle.digest: each.by for each in answered if each.by is not None}
    return next(iter(by.values())) if len(by) == 1 else prod


def _signed(answer: Prediction, by: ServedTask | None) -> Prediction:
    """Add the name of the version that gave the answer."""
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


def _headers(call: Call, digest: str = "") -> Headers:
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"x-request-id", call.head.request_id.encode()),
    ]
    if digest:
        headers.append((b"x-bundle-digest", digest.encode()))
    return headers
