"""The HTTP application of one worker; a composition root that receives its collaborators."""

from collections.abc import Sequence
from importlib.metadata import version

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import (
    InternalError,
    MalformedRequest,
    Problem,
    RouteNotFound,
    plain_problem,
    problem_of,
    retry_headers,
)
from peterrec.service.http.asgi import ClientLeft, Headers, RequestHead, encode_json, send_problem
from peterrec.service.http.openapi import DESCRIPTION, Document, build_document
from peterrec.service.http.routes.aliases import aliases_router
from peterrec.service.http.routes.backbone import backbone_router
from peterrec.service.http.routes.context import AdminContext
from peterrec.service.http.routes.health import health_router
from peterrec.service.http.routes.keys import keys_router
from peterrec.service.http.routes.predict import PredictContext, PredictRoutes
from peterrec.service.http.routes.registry_feed import registry_feed_router
from peterrec.service.http.routes.tasks import tasks_router
from peterrec.service.http.routes.traffic import traffic_router
from peterrec.service.http.routes.versions import versions_router

log = structlog.get_logger()

CLIENT_CLOSED = 499
"""Never seen by anyone: the client has left."""

HEALTH_PATHS = frozenset({"/livez", "/readyz"})

START_PATIENCE_S = 1.0
"""At a start the workers learn the table one after the other: a request waits so long for it."""

_TASKS, _PREDICT, _USERS_PREDICT = "/tasks/", "/predict", "/users/predict"


class Application:
    """Predictions go straight to their routes, everything else through FastAPI."""

    def __init__(self, framework: FastAPI, predict: PredictRoutes, admin: AdminContext) -> None:
        self.framework = framework
        self._predict = predict
        self._readiness = admin.readiness
        self._link = admin.link

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.framework(scope, receive, send)
            return
        if self._readiness.is_draining:
            send = _with_header(send, (b"connection", b"close"))
        path: str = scope["path"]
        if not self._link.was_welcomed and path not in HEALTH_PATHS:
            await self._link.welcomed(START_PATIENCE_S)
        is_predict = path.endswith(_PREDICT)
        task = path[len(_TASKS) : -len(_PREDICT)] if is_predict and path.startswith(_TASKS) else ""
        if not (is_predict and (path == _USERS_PREDICT or (task and "/" not in task))):
            await self._run_framework(scope, receive, send)
        elif scope["method"] != "POST":
            await _refuse_method(scope, send)
        elif task:
            await self._predict.predict(scope, receive, send, task)
        else:
            await self._predict.users_predict(scope, receive, send)

    async def _run_framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = RequestHead.read(scope).request_id
        scope.setdefault("state", {})["request_id"] = request_id
        send = _with_header(send, (b"x-request-id", request_id.encode()))
        await self.framework(scope, receive, send)


def create_app(admin: AdminContext, predict: PredictContext) -> Application:
    """The application over its collaborators; opens nothing."""
    app = FastAPI(
        title="PeterRec serving",
        version=version("peterrec-serving"),
        description=DESCRIPTION,
    )
    routers = (
        health_router,
        tasks_router,
        versions_router,
        aliases_router,
        traffic_router,
        registry_feed_router,
        keys_router,
        backbone_router,
    )
    for make_router in routers:
        app.include_router(make_router(admin))
    _add_error_handlers(app)

    def openapi() -> Document:
        return build_document(app)

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it
    return Application(app, PredictRoutes(predict), admin)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(PeterRecError)
    async def refuse(request: Request, error: PeterRecError) -> Response:
        return _response(problem_of(error, request.state.request_id))

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> Response:
        problem = MalformedRequest(_describe(error.errors()), hint="/docs shows the body.")
        return _response(problem_of(problem, request.state.request_id))

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            missing = RouteNotFound(
                f"there is no route {request.url.path[:200]!r}.", hint="/docs lists the routes."
            )
            return _response(problem_of(missing, request.state.request_id))
        detail = f"{request.method} {request.url.path[:200]}: {error.detail}."
        response = _response(plain_problem(error.status_code, detail, request.state.request_id))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ClientLeft)
    async def ignore(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return _response(problem_of(InternalError(), request.state.request_id))


def _response(problem: Problem) -> Response:
    headers = {name.decode(): value.decode() for name, value in retry_headers(problem.status)}
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(encode_json(problem), problem.status, headers, "application/problem+json")


def _describe(problems: Sequence[object]) -> str:
    """Every problem with its place, without the values."""
    described = []
    for problem in problems:
        assert isinstance(problem, dict)
        place = ".".join(str(part) for part in problem["loc"])
        described.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(described) + "."


async def _refuse_method(scope: Scope, send: Send) -> None:
    detail = f"{scope['method']} {scope['path']}: only POST is allowed."
    problem = plain_problem(405, detail, RequestHead.read(scope).request_id)
    await send_problem(_with_header(send, (b"allow", b"POST")), problem)


def _with_header(send: Send, header: tuple[bytes, bytes]) -> Send:
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Headers = [*message.get("headers", []), header]
            message = {**message, "headers": headers}
        await send(message)

    return send_more
