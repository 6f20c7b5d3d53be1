"""The HTTP application of one worker. It receives its collaborators and opens nothing."""

from collections.abc import Sequence
from importlib.metadata import version

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from peterrec.model.documents import Document
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
from peterrec.service.http.asgi import ClientLeft, Header, Headers, RequestHead, encode_json
from peterrec.service.http.context import AdminContext, PredictContext
from peterrec.service.http.guesses import BODY, field_hint, route_hint
from peterrec.service.http.known_queries import refuse_unknown_queries
from peterrec.service.http.openapi import DESCRIPTION, REFUSALS, add_schemas
from peterrec.service.http.routes import (
    aliases,
    backbone,
    health,
    keys,
    predict,
    registry_feed,
    tasks,
    traffic,
    versions,
)

CLIENT_CLOSED = 499
"""Status of a request whose client has left. Nobody receives it."""

HEALTH_PATHS = frozenset({"/livez", "/readyz"})
"""Paths that answer before the worker knows which tasks are served."""

START_PATIENCE_S = 1.0
"""Seconds that a request waits for the table of tasks while the workers start."""

ROUTERS = (tasks, versions, aliases, traffic, registry_feed, keys, backbone)
"""Modules of the routes that FastAPI runs, in the order of the OpenAPI document after health."""


class Application(FastAPI):
    """FastAPI behind one router, in which the prediction calls come first.

    The router passes a prediction straight to its handler and everything else on to FastAPI's
    layers, which cost 0.03 ms of CPU per request even if a route uses none of them
    (docs/decisions/0050-one-http-framework.md).
    """

    def __init__(self, admin: AdminContext, predictions: PredictContext) -> None:
        super().__init__(
            title="PeterRec serving",
            version=version("peterrec-serving"),
            description=DESCRIPTION,
            responses=REFUSALS,
        )
        self.predictions = predictions  # not in ``state``, whose look-up takes 0.7 µs
        self.state.admin = admin
        self.state.backbone = backbone.describe_backbone(admin.backbone)
        self._readiness = admin.readiness
        self._link = admin.link
        self._front = Router(
            predict.router.routes, redirect_slashes=False, default=self._run_layers
        ).app
        self.include_router(health.router)
        for routes in ROUTERS:
            self.include_router(routes.router, dependencies=[Depends(refuse_unknown_queries)])
        _add_error_handlers(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        if self._readiness.is_draining:
            send = _with_header(send, (b"connection", b"close"))
        if not self._link.was_welcomed and scope["path"] not in HEALTH_PATHS:
            await self._link.welcomed(START_PATIENCE_S)
        await self._front(scope, receive, send)

    async def _run_layers(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a request through FastAPI, with a request id in its state and in its answer."""
        request_id = RequestHead.read(scope).request_id
        scope.setdefault("state", {})["request_id"] = request_id
        send = _with_header(send, (b"x-request-id", request_id.encode()))
        await super().__call__(scope, receive, send)

    def openapi(self) -> Document:
        """Return the OpenAPI document, built from the routes on the first call."""
        if self.openapi_schema is None:
            self.openapi_schema = get_openapi(
                title=self.title,
                version=self.version,
                description=self.description,
                routes=[*predict.router.routes, *self.routes],
            )
            add_schemas(self.openapi_schema)
        return self.openapi_schema


def _add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(PeterRecError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_body)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(ClientLeft, _ignore)
    app.add_exception_handler(Exception, _fail)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, PeterRecError)
    return _response(problem_of(error, request.state.request_id))


async def _refuse_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    unknown = [str(each["loc"][-1]) for each in problems if each["type"] == "extra_forbidden"]
    path = getattr(request.scope.get("route"), "path", "")
    hint = field_hint(request.app.openapi(), request.method, path, unknown) if unknown else BODY
    problem = MalformedRequest(_describe(problems), hint=hint)
    return _response(problem_of(problem, request.state.request_id))


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        missing = RouteNotFound(
            f"there is no route {request.url.path[:200]!r}.",
            hint=route_hint(request.app.openapi(), request.url.path[:200]),
        )
        return _response(problem_of(missing, request.state.request_id))
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}."
    response = _response(plain_problem(error.status_code, detail, request.state.request_id))
    response.headers.update(error.headers or {})
    return response


async def _ignore(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


async def _fail(request: Request, error: Exception) -> Response:
    return _response(problem_of(InternalError(), request.state.request_id))


def _response(problem: Problem) -> Response:
    headers = {name.decode(): value.decode() for name, value in retry_headers(problem.status)}
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(encode_json(problem), problem.status, headers, "application/problem+json")


def _describe(problems: Sequence[object]) -> str:
    """Describe every problem of a body with its place, without the values."""
    described = []
    for problem in problems:
        assert isinstance(problem, dict)
        place = ".".join(str(part) for part in problem["loc"])
        described.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(described) + "."


def _with_header(send: Send, header: Header) -> Send:
    """Add a header to the answer."""

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Headers = [*message.get("headers", []), header]
            message = {**message, "headers": headers}
        await send(message)

    return send_more
