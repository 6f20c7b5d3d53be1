"""The Open Inference Protocol (KServe V2) over HTTP: health, metadata, the index and inference.

Refusals have the protocol's form, ``{"error": "…"}``; the header ``X-Error-Code`` has the code.
"""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from peterrec.model.documents import Document
from peterrec.model.errors import PeterRecError
from peterrec.service.errors import (
    MalformedRequest,
    UnloadRefused,
    cut,
)
from peterrec.service.http.asgi import (
    SHOWN_PATH,
    encode_json,
    send_json,
)
from peterrec.service.http.context import (
    Caller,
    Context,
    PredictContext,
    find_caller,
)
from peterrec.service.http.find_model import find_model
from peterrec.service.http.open_inference_bodies import (
    INFER_REQUESTS,
    INFER_RESPONSES,
    JSON_SIZE,
    IndexRequest,
    InferRequest,
    InferResponse,
    OpenInferenceError,
    RepositoryRequest,
    encode_inferred,
    read_infer,
    refusal_head,
)
from peterrec.service.http.openapi import REFUSALS, answer_of, body_of, raw_operation
from peterrec.service.http.raw_route import Call, RawRoute
from peterrec.service.http.routes.health import readiness_of
from peterrec.service.http.routes.predict import (
    authenticate,
    begin_work,
    deadline_of,
    guard,
    read_whole,
)
from peterrec.service.open_inference.infer import Asked, Engine, failure_text, infer
from peterrec.service.open_inference.metadata import (
    ModelConfig,
    ModelIndex,
    ModelMetadata,
    ServerMetadata,
    index,
    model_config,
    model_metadata,
    server_metadata,
)
from peterrec.service.protocol.sender import Sender
from peterrec.service.telemetry.timeline import mark_read

T = TypeVar("T")

PROTOCOL = "open_inference"
"""Label ``protocol`` of these calls in the metrics."""

infer_router = APIRouter(
    prefix="/v2/models/{task}",
    tags=["open inference"],
    route_class=RawRoute,
    dependencies=[Depends(find_caller)],  # for the OpenAPI document; see _answer
    responses=REFUSALS,
)
INFER: Document = raw_operation(InferRequest, INFER_REQUESTS, InferResponse, INFER_RESPONSES)


@infer_router.post("/infer", operation_id="infer", openapi_extra=INFER)
async def infer_prod(call: Call, task: str) -> None:
    """Answer one task for the users of a call, in tensors.

    The raw bytes of tensors may follow the JSON, as `Inference-Header-Content-Length` says. A call
    is answered as a whole or not at all.
    """
    await _answer(call, task, "")


@infer_router.post("/versions/{version}/infer", operation_id="infer_version", openapi_extra=INFER)
async def infer_version(call: Call, task: str, version: str) -> None:
    """Answer one task by a version: its number, its digest, or an alias that names it."""
    await _answer(call, task, version)


async def _answer(call: Call, task: str, version: str) -> None:
    context: PredictContext = call.scope["app"].predictions
    call.protocol = PROTOCOL
    await guard(context, call, _infer(context, call, task, version), _send_refusal)


async def _infer(context: PredictContext, call: Call, task: str, version: str) -> None:
    principal = await authenticate(context, call)
    principal.require("predict", task)  # before anything that depends on whether it exists
    if call.scope["query_string"]:
        raise MalformedRequest(
            "an inference has no query parameters.", hint="Its parameters are in the body."
        )
    deadline = deadline_of(context, call)
    sender = Sender(principal.tenant, call.head.place_of_priority())
    context.admission.check(sender, call.head.size_bytes, deadline)
    body = await read_whole(call, deadline)
    mark_read()
    context.table.existing(principal.tenant, task)
    call.tasks = (task,)
    await begin_work(context, call, sender, deadline)
    given = read_infer(body, dict(call.scope["headers"]).get(JSON_SIZE), task, version)
    asked = Asked(principal.tenant, task, version or None, sender.priority, call.started, deadline)
    admit_rows = partial(context.quotas.admit_rows, call)
    engine = Engine(context.predictor, context.registered, context.admission, admit_rows)
    try:
        inferred = await infer(engine, asked, given.call, call.connection.while_it_lasts)
    finally:
        call.rows = asked.rows
    encoded = encode_inferred(task, given.request_id, inferred)
    headers = [
        *encoded.headers,
        (b"x-request-id", call.head.request_id.encode()),
        (b"x-bundle-digest", inferred.by.bundle.digest.encode()),
    ]
    await send_json(call.send, 200, encoded.body, headers, call.head.accept_encoding)


async def _send_refusal(call: Call, error: PeterRecError) -> None:
    status, headers = refusal_head(error, call.head.request_id)
    body = encode_json(OpenInferenceError(failure_text(error)))
    await send_json(call.send, status, body, headers)


class OpenInferenceRoute(APIRoute):
    """A route of FastAPI whose refusals have the protocol's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, around which errors become answers."""
        # Any: as FastAPI declares it
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except PeterRecError as error:
                return _refusal(error, request.state.request_id)
            except RequestValidationError:
                refused = MalformedRequest("the call is refused.", hint="/docs shows it.")
                return _refusal(refused, request.state.request_id)

        return answer


def _refusal(error: PeterRecError, request_id: str) -> Response:
    status, fields = refusal_head(error, request_id)
    headers = {name.decode(): value.decode() for name, value in fields}
    return Response(encode_json(OpenInferenceError(failure_text(error))), status, headers)


async def get_predictions(request: Request) -> PredictContext:
    """Return the collaborators of predictions."""
    context: PredictContext = request.app.predictions
    return context


Predictions = Annotated[PredictContext, Depends(get_predictions)]


def _json(answer: object) -> Response:
    return Response(encode_json(answer), media_type="application/json")


async def _read(request: Request, body: type[T]) -> T:
    """Read a body whatever its Content-Type, since clients send none; an empty one is ``{}``."""
    try:
        return msgspec.json.decode(await request.body() or b"{}", type=body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        problem = cut(str(error), SHOWN_PATH)
        raise MalformedRequest(
            f"the body is refused: {problem}.", hint="/docs shows it."
        ) from error


health_router = APIRouter(prefix="/v2", tags=["open inference"], route_class=OpenInferenceRoute)
router = APIRouter(
    prefix="/v2", tags=["open inference"], route_class=OpenInferenceRoute, responses=REFUSALS
)


@health_router.get("/health/live", operation_id="server_live")
async def server_live() -> dict[str, bool]:
    """Report that the process is alive."""
    return {"live": True}


@health_router.get(
    "/health/ready", operation_id="server_ready", responses={503: {"description": "Not ready."}}
)
async def server_ready(context: Context, response: Response) -> dict[str, bool]:
    """Report whether to send requests here, as `/readyz` does."""
    is_ready = readiness_of(context).status == "ready"
    response.status_code = 200 if is_ready else 503
    return {"ready": is_ready}


@router.get("", operation_id="server_metadata", openapi_extra=answer_of(ServerMetadata))
async def get_server_metadata(_caller: Caller) -> Response:
    """Describe the server: its version, and the extensions of the protocol that it has."""
    return _json(server_metadata())


@router.get("/models/{task}/ready", operation_id="model_ready")
async def model_ready(caller: Caller, predictions: Predictions, task: str) -> dict[str, str | bool]:
    """Report that a task answers; any refusal means that it does not."""
    await find_model(predictions, caller, task, "")
    return {"name": task, "ready": True}


@router.get("/models/{task}/versions/{version}/ready", operation_id="model_version_ready")
async def model_version_ready(
    caller: Caller, predictions: Predictions, task: str, version: str
) -> dict[str, str | bool]:
    """Report that a version of a task answers; any refusal means that it does not."""
    await find_model(predictions, caller, task, version)
    return {"name": task, "ready": True}


@router.get("/models/{task}", operation_id="model_metadata", openapi_extra=answer_of(ModelMetadata))
async def get_model_metadata(caller: Caller, predictions: Predictions, task: str) -> Response:
    """Describe a task: its versions, inputs and outputs."""
    return _json(model_metadata(*await find_model(predictions, caller, task, "")))


@router.get(
    "/models/{task}/versions/{version}",
    operation_id="model_version_metadata",
    openapi_extra=answer_of(ModelMetadata),
)
async def get_model_version_metadata(
    caller: Caller, predictions: Predictions, task: str, version: str
) -> Response:
    """Describe a version of a task: its inputs and outputs."""
    return _json(model_metadata(*await find_model(predictions, caller, task, version)))


@router.get(
    "/models/{task}/config", operation_id="model_config", openapi_extra=answer_of(ModelConfig)
)
async def get_model_config(caller: Caller, predictions: Predictions, task: str) -> Response:
    """Describe a task in the form of Triton's model configuration."""
    return _json(model_config(*await find_model(predictions, caller, task, "")))


@router.get(
    "/models/{task}/versions/{version}/config",
    operation_id="model_version_config",
    openapi_extra=answer_of(ModelConfig),
)
async def get_model_version_config(
    caller: Caller, predictions: Predictions, task: str, version: str
) -> Response:
    """Describe a version of a task in the form of Triton's model configuration."""
    return _json(model_config(*await find_model(predictions, caller, task, version)))


@router.post(
    "/repository/index",
    operation_id="repository_index",
    openapi_extra={**body_of(IndexRequest), **answer_of(list[ModelIndex])},
)
async def repository_index(request: Request, caller: Caller, context: Context) -> Response:
    """List the versions of the tasks that this key may ask, and whether they answer."""
    asked = await _read(request, IndexRequest)
    found = await index(
        context.table,
        caller.tenant,
        lambda task: caller.may("predict", task),
        ready_only=asked.ready,
    )
    return _json(found)


@router.post(
    "/repository/models/{task}/load",
    operation_id="repository_load",
    openapi_extra=body_of(RepositoryRequest),
)
async def load_model(
    request: Request, caller: Caller, predictions: Predictions, task: str
) -> Response:
    """Report that a task answers. Nothing is loaded: a server serves what aliases name."""
    await _read(request, RepositoryRequest)
    await find_model(predictions, caller, task, "")
    return _json({})


@router.post(
    "/repository/models/{task}/unload",
    operation_id="repository_unload",
    openapi_extra=body_of(RepositoryRequest),
)
async def unload_model(request: Request, caller: Caller, task: str) -> Response:
    """Refuse to unload a task: remove its alias instead."""
    await _read(request, RepositoryRequest)
    caller.require("predict", task)
    raise UnloadRefused
