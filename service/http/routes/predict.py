"""``POST /tasks/{task}/predict`` and ``POST /users/predict``: raw routes, decoded by msgspec."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial

import structlog
from fastapi import APIRouter, Depends
from msgspec import UNSET, Struct, structs

from peterrec.model.errors import Category, PeterRecError
from peterrec.service.errors import (
    SEVERITY,
    DeviceUnavailable,
    InternalError,
    MalformedRequest,
    NothingAnswered,
    TooManyRows,
    error_body,
    outcome_of,
    retry_after_s,
)
from peterrec.service.http.asgi import (
    ClientLeft,
    Headers,
    encode_each,
    read_body,
    send_error,
    send_json,
)
from peterrec.service.http.auth import Principal
from peterrec.service.http.body_formats import BodyFormat, format_of_answer, format_of_body
from peterrec.service.http.context import PredictContext, find_caller
from peterrec.service.http.openapi import (
    PREDICT_REQUESTS,
    PREDICT_RESPONSES,
    REFUSALS,
    USERS_REQUESTS,
    USERS_RESPONSES,
    raw_operation,
)
from peterrec.service.http.quotas import NOTHING_DONE
from peterrec.service.http.raw_route import Call, RawRoute
from peterrec.service.http.refusal_counts import peer_of
from peterrec.service.http.refusal_pace import LONGEST_PAUSE_S
from peterrec.service.http.seeing import Finished, server_timing
from peterrec.service.http.whole_answers import with_fields
from peterrec.service.predict.body_hints import PREDICT, PREDICT_USER, BodyForm
from peterrec.service.predict.canary import Answered
from peterrec.service.predict.explanation import asked_for
from peterrec.service.predict.item_ids import History
from peterrec.service.predict.kinds import Prediction
from peterrec.service.predict.parse import query_refused
from peterrec.service.predict.predictor import Predicted, TaskAnswers, TaskQuestions
from peterrec.service.predict.questions import Question
from peterrec.service.predict.schemas import (
    MAX_BODY_BYTES,
    MAX_TASKS,
    FailedRow,
    Instance,
    Parameters,
    PredictRequest,
    PredictResponse,
    TaskChoice,
    UsersPredictRequest,
    UsersPredictResponse,
)
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.sender import Sender
from peterrec.service.protocol.served_task import ServedTask
from peterrec.service.telemetry.events import RequestFinished
from peterrec.service.telemetry.timeline import mark_read

log = structlog.get_logger()

CLIENT_LEFT = "client_left"
"""Label ``outcome`` of a request whose client disconnected before the answer."""

PACED = frozenset({Category.OVERLOADED, Category.OVER_QUOTA})
"""Refusals after which clients come back."""

router = APIRouter(
    tags=["predict"],
    route_class=RawRoute,
    dependencies=[Depends(find_caller)],  # for the OpenAPI document; see authenticate
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
    call.protocol = format_of_body(call.head).protocol
    await guard(context, call, _predict(context, call, task))


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
    call.protocol = format_of_body(call.head).protocol
    await guard(context, call, _users_predict(context, call))


async def _refuse(call: Call, error: PeterRecError) -> None:
    answers = format_of_answer(call.head)
    await send_error(call.send, error, call.head.request_id, answers.encode, answers.problem_type)


Refuse = Callable[[Call, PeterRecError], Awaitable[None]]
"""Sends an error in the form of a protocol."""


async def guard(
    context: PredictContext, call: Call, work: Awaitable[None], refuse: Refuse = _refuse
) -> None:
    """Run a call; send its error as a response, and its outcome as an event."""
    outcome = "ok"
    timeline = context.seeing.begin(call.head, call.started)
    if timeline is not None and call.head.server_timing:
        call.send = with_fields(call.send, partial(server_timing, timeline))
    try:
        await work
    except ClientLeft:
        outcome = CLIENT_LEFT
    except PeterRecError as error:
        outcome = outcome_of(error)
        context.refusals.count_error(error, peer_of(call.scope), call.head.request_id)
        if error.category in NOTHING_DONE:
            context.quotas.give_back(call)
        if error.category in PACED:
            told_s = min(retry_after_s(error), LONGEST_PAUSE_S)
            pause_s = context.refusal_pace.pause_s(call.tenant, told_s)
            call.connection.drop_body(pause_s)  # instead of a new connection: it will be back
        await refuse(call, error)
    except Exception:
        # The last guard of a request: the caller gets our form of a 500 for any mistake of ours.
        outcome = "error"
        log.exception("request_failed", request_id=call.head.request_id)
        await refuse(call, InternalError())
    finally:
        if call.work is not None:
            call.work.end()
        context.quotas.release(call, is_answered=outcome == "ok")
    duration = time.monotonic() - call.started
    trace_id = ""
    if timeline is not None:
        about = Finished(call.tenant, call.tasks, call.rows, call.protocol, outcome)
        name = f"{call.scope['method']} {call.path}"
        trace_id = context.seeing.end(timeline, call.head, name, about)
    for task in call.tasks:
        context.emit(_finished(call, task, outcome, duration, trace_id))


def _finished(
    call: Call, task: str, outcome: str, duration_s: float, trace_id: str
) -> RequestFinished:
    """Make the event of one task: by its own outcome, and its instances by theirs."""
    own = call.outcomes.get(task)
    if own is None:
        return RequestFinished(
            call.tenant, task, outcome, duration_s, call.rows, None, call.protocol, trace_id
        )
    outcome = "ok" if "ok" in own else min(own, key=SEVERITY.index)
    return RequestFinished(
        call.tenant, task, outcome, duration_s, len(own), Counter(own), call.protocol, trace_id
    )


async def authenticate(context: PredictContext, call: Call) -> Principal:
    """Return the caller, whose tenant is noted for the metrics."""
    principal = await context.authenticator.identify(call.head.authorization, call.head.api_key)
    call.tenant = principal.tenant
    call.connection.note_tenant(principal.tenant)
    context.quotas.admit(call)
    return principal


def deadline_of(context: PredictContext, call: Call) -> float:
    """Return until when a call may take, on ``time.monotonic``."""
    timeout_s = call.head.timeout_s(context.request_timeout_ms, context.timeout_limit_ms)
    return call.started + timeout_s


async def begin_work(context: PredictContext, call: Call, sender: Sender, deadline: float) -> None:
    """Begin to work on a call whose body is here, when its sender is due in this worker."""
    call.work = context.shares.call(sender, deadline)
    if not call.work.may_work:
        await call.connection.while_it_lasts(call.work.turn())


def read_form(call: Call, form: BodyForm, deadline: float) -> Awaitable[bytes]:
    """Read the body of a call that has no query parameters, as ``read_whole`` does."""
    query = call.scope["query_string"]
    if query:
        raise query_refused(form, query)
    return read_whole(call, deadline)


def read_whole(call: Call, deadline: float) -> Awaitable[bytes]:
    """Read the body of a call; raises as ``read_body``."""
    return read_body(
        call.receive,
        call.head,
        MAX_BODY_BYTES,
        deadline - time.monotonic(),
        has_arrived=call.connection.has_whole_body,
    )


async def _predict(context: PredictContext, call: Call, task: str) -> None:
    principal = await authenticate(context, call)
    principal.require("predict", task)  # before anything that depends on whether it exists
    deadline = deadline_of(context, call)
    sender = Sender(principal.tenant, call.head.place_of_priority())
    if not call.connection.has_whole_body:
        context.admission.check(sender, call.head.size_bytes, deadline)
    body = await read_form(call, PREDICT, deadline)
    mark_read()
    context.table.existing(principal.tenant, task)
    call.tasks = (task,)
    bodies, answers = format_of_body(call.head), format_of_answer(call.head)
    with context.admission.admit(sender, bodies.count_rows(body), deadline, len(body)) as stay:
        await begin_work(context, call, sender, deadline)
        instances, parameters = bodies.parse_predict(body)
        call.rows = len(instances)
        context.quotas.admit_rows(call, call.rows)
        if parameters.remember:
            _check_users(each.user_id for each in instances if isinstance(each, Instance))
        questions = await context.predictor.questions(instances, parameters)
        asked = TaskQuestions(task, parameters.version, questions)
        predicted = await call.connection.while_it_lasts(
            context.predictor.predict(principal.tenant, (asked,), deadline, sender.priority)
        )
        stay.answered = _answered_rows(predicted)
        context.quotas.charge(call, predicted)
    served, answered = predicted.tasks[0]
    if isinstance(served, PeterRecError):
        raise await context.registered.judged(principal.tenant, served)
    if parameters.prediction_ids or parameters.remember:
        named = (_user_of(each) for each in instances)
        answered = [*map(partial(_named, context, parameters), answered, named)]
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
        predictions=await encode_each(
            (
                _slot(*pair, has_traffic=served.split is not None)
                for pair in zip(instances, answered, strict=True)
            ),
            answers.encode,
        ),
    )
    await _answer(call, answers, response, by.digest)


async def _users_predict(context: PredictContext, call: Call) -> None:
    principal = await authenticate(context, call)
    deadline = deadline_of(context, call)
    sender = Sender(principal.tenant, call.head.place_of_priority())
    context.admission.check(sender, 0, deadline)  # its size says nothing about tasks
    bodies, answers = format_of_body(call.head), format_of_answer(call.head)
    body = await read_form(call, PREDICT_USER, deadline)
    mark_read()
    request = bodies.parse_users_predict(body)
    if request.parameters.remember:
        _check_users([request.user_id])
    choices = _choices(context.table, request, principal)
    call.rows = 1
    context.quotas.admit_rows(call, len(choices))
    call.tasks = [_label(context.table, principal, choice.task) for choice in choices]
    with context.admission.admit(sender, len(choices), deadline) as stay:
        await begin_work(context, call, sender, deadline)
        history = context.predictor.map_history(request.history, request.parameters.unknown_items)
        refused = _refusals(principal, choices)
        allowed = [choice for choice in choices if choice.task not in refused]
        asked = [_task_questions(request, history, choice) for choice in allowed]
        predicted = await call.connection.while_it_lasts(
            context.predictor.predict(principal.tenant, asked, deadline, sender.priority)
        )
        stay.answered = _answered_rows(predicted)
        context.quotas.charge(call, predicted)
    tasks = predicted.tasks
    if request.parameters.prediction_ids or request.parameters.remember:
        tasks = [
            TaskAnswers(
                each.served,
                [_named(context, request.parameters, one, request.user_id) for one in each.answers],
            )
            for each in tasks
        ]
    results, failed = _sort(allowed, tasks)
    failed |= refused
    errors = {
        choice.task: await context.registered.judged(principal.tenant, failed[choice.task])
        for choice in choices
        if choice.task in failed
    }
    if errors:
        call.outcomes = _outcomes_by_label(call.tasks, choices, errors)
    if errors and not results:
        raise NothingAnswered(errors)
    response = UsersPredictResponse(
        registry_revision=predicted.registry_revision,
        request_id=call.head.request_id,
        results=dict(
            zip(results, await encode_each(results.values(), answers.encode), strict=True)
        ),
        errors={task: error_body(error) for task, error in errors.items()},
    )
    await _answer(call, answers, response)


def _check_users(users: Iterable[str | int | None]) -> None:
    """Refuse to remember the answer to a user who has no name."""
    if None in users:
        raise MalformedRequest(
            "remember is set, but there is no user_id.", hint="Send the user_id of each history."
        )


def _named(
    context: PredictContext,
    parameters: Parameters,
    answered: Answered,
    user_id: str | int | None,
) -> Answered:
    """Return an answer with its id, and remember it for its user, as far as that is asked for."""
    is_sensitive = answered.by is not None and answered.by.is_sensitive
    may_keep = parameters.remember and context.predictor.may_sample(is_sensitive=is_sensitive)
    return context.remembered.name(
        answered, user_id, is_shown=parameters.prediction_ids, may_keep=may_keep
    )


def _user_of(given: Instance | PeterRecError) -> str | int | None:
    return given.user_id if isinstance(given, Instance) else None


def _answered_rows(predicted: Predicted) -> int:
    """Count the rows that were answered: those whose time ran out say nothing of the rate."""
    answers = [each.answer for task in predicted.tasks for each in task.answers]
    return len(answers) - sum(isinstance(each, PeterRecError) for each in answers)


def _label(table: TaskTable, principal: Principal, task: str) -> str:
    """Return the task as a label of the metrics: only registered ones may become values."""
    is_known = principal.may("predict", task) and table.entry(principal.tenant, task) is not None
    return task if is_known else ""


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


def _refusals(principal: Principal, choices: Sequence[TaskChoice]) -> dict[str, PeterRecError]:
    """Return the errors of the tasks that the caller may not ask.

    Nothing is looked up for these: neither the answer nor its time says whether they exist.
    """
    found = {choice.task: principal.refusal("predict", choice.task) for choice in choices}
    return {task: refusal for task, refusal in found.items() if refusal is not None}


def _task_questions(
    request: UsersPredictRequest, history: History, choice: TaskChoice
) -> TaskQuestions:
    """Build the question to one of many tasks."""
    version = request.parameters.version if choice.version is None else choice.version
    return TaskQuestions(choice.task, version, (_user_question(request, history, choice),))


def _user_question(request: UsersPredictRequest, history: History, choice: TaskChoice) -> Question:
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
        where=parameters.where if choice.where is None else choice.where,
        is_where_shared=choice.where is None,
        has_titles=parameters.titles,
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
            results[choice.task] = signed(answer, by)
    return results, errors


def _answering(prod: ServedTask, answered: Sequence[Answered]) -> ServedTask:
    """Return the version that gave all answers if there is one, else prod."""
    by = {each.by.bundle.digest: each.by for each in answered if each.by is not None}
    return next(iter(by.values())) if len(by) == 1 else prod


def signed(answer: Prediction, by: ServedTask | None) -> Prediction:
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
        return signed(answer, answered.by) if has_traffic else answer
    user_id = _user_of(given)
    return FailedRow(error_body(answer), UNSET if user_id is None else user_id)


async def _answer(call: Call, answers: BodyFormat, response: Struct, digest: str = "") -> None:
    headers: Headers = [
        (b"content-type", answers.content_type),
        (b"x-request-id", call.head.request_id.encode()),
    ]
    if digest:
        headers.append((b"x-bundle-digest", digest.encode()))
    await send_json(call.send, 200, answers.encode(response), headers, call.head.accept_encoding)
