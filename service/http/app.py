"""The HTTP application of one worker. It receives its collaborators and opens nothing."""

import time
from collections.abc import Sequence
from functools import cached_property, partial
from importlib.metadata import version

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from peterrec.model.documents import Document
from peterrec.model.errors import PeterRecError
from peterrec.service.errors import (
    RETRY_AFTER_S,
    InternalError,
    MalformedRequest,
    Problem,
    RouteNotFound,
    TooManyValues,
    cut,
    plain_problem,
    problem_of,
    retry_after_s,
    retry_headers,
)
from peterrec.service.http.asgi import (
    SHOWN_PATH,
    ClientLeft,
    RequestHead,
    encode_json,
    read_body,
    send_error,
    send_methods,
    send_no_method,
)
from peterrec.service.http.context import AdminContext, PredictContext
from peterrec.service.http.guesses import BODY, field_hint, route_hint
from peterrec.service.http.known_queries import refuse_unknown_queries
from peterrec.service.http.layers import (
    FinishingSend,
    in_pace,
    noting_status,
    replaying,
    with_header,
)
from peterrec.service.http.methods import PAGES, Methods
from peterrec.service.http.openapi import DESCRIPTION, REFUSALS, complete
from peterrec.service.http.raw_route import RawRoute
from peterrec.service.http.refusal_counts import peer_of
from peterrec.service.http.routes import (
    aliases,
    availability,
    backbone,
    caller,
    feedback,
    health,
    keys,
    open_inference,
    pages,
    predict,
    predict_batch,
    profile,
    registry_feed,
    tasks,
    tenants,
    traffic,
    vectors,
    versions,
    webhooks,
)
from peterrec.service.http.seeing import server_timing
from peterrec.service.http.whole_answers import with_fields
from peterrec.service.predict.body_hints import SHOWN_NAME

CLIENT_CLOSED = 499
"""Status of a request whose client has left. Nobody receives it."""

HEALTH_PATHS = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Paths that answer before the worker knows which tasks are served."""

OPEN_PATHS = HEALTH_PATHS.union(PAGES)
"""Paths that answer without a key. None of them reads a body."""

MAX_ADMIN_BODY_BYTES = 64 << 10
"""Largest body of a call of the administration, other than a bundle: a description of 4,096
characters fits, also if each is escaped as two surrogates."""

MAX_ADMIN_FIELDS = 4500
"""Most fields of such a body, counted by their colons, of which a description may have 4,096:
thousands of unknown fields take FastAPI tens of milliseconds."""

BODY_TIMEOUT_S = 10.0
"""Seconds that the body of such a call may take."""

SHOWN_PROBLEMS = 10
"""Problems of a body that an answer lists."""

START_PATIENCE_S = 1.0
"""Seconds that a request waits for the table of tasks while the workers start."""

ROUTERS = (
    tasks,
    versions,
    aliases,
    traffic,
    availability,
    registry_feed,
    keys,
    webhooks,
    tenants,
    backbone,
    caller,
    open_inference,
    profile,
    feedback,
)
"""Modules of the routes that FastAPI runs, in the order of the OpenAPI document after health."""

RAW_ROUTES = (
    *predict.router.routes,
    *predict_batch.router.routes,
    *vectors.router.routes,
    *open_inference.infer_router.routes,
)
"""The routes that run without FastAPI's layers."""


class Application(FastAPI):
    """FastAPI behind the raw routes, which come first.

    A prediction goes straight to its handler, everything else to FastAPI's layers, which cost
    0.03 ms of CPU per request even if a route uses none of them
    (docs/decisions/0050-one-http-framework.md).
    """

    def __init__(self, admin: AdminContext, predictions: PredictContext) -> None:
        super().__init__(
            title="PeterRec serving",
            version=version("peterrec-serving"),
            description=DESCRIPTION,
            responses=REFUSALS,
            docs_url=None,  # its own pages load scripts from a CDN
            redoc_url=None,
            redirect_slashes=False,  # a redirect would name the host that the request names
        )
        self.predictions = predictions  # not in ``state``, whose look-up takes 0.7 µs
        self.state.admin = admin
        self.state.backbones = [*map(backbone.describe_backbone, admin.backbones)]
        self.state.pages = pages.Pages()
        self._readiness = admin.readiness
        self._link = admin.link
        self.refusals = predictions.refusals
        self._identify = admin.authenticator.identify
        self._admit_call = admin.quotas.admit_call
        self._raw_routes = [each for each in RAW_ROUTES if isinstance(each, RawRoute)]
        self.include_router(health.router)
        self.include_router(open_inference.health_router)
        self.include_router(pages.router)
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
            send = with_header(send, (b"connection", b"close"))
        if not self._link.was_welcomed and scope["path"] not in HEALTH_PATHS:
            await self._link.welcomed(START_PATIENCE_S)
        path = scope["path"]
        for route in self._raw_routes:
            found = route.path_regex.fullmatch(path)
            if found is not None:
                await route.answer(scope, receive, send, found.groupdict())
                return
        await self._run_layers(scope, receive, send)

    async def _run_layers(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a request through FastAPI, with a request id in its state and in its answer."""
        head = RequestHead.read(scope)
        scope.setdefault("state", {})["request_id"] = head.request_id
        send = with_header(send, (b"x-request-id", head.request_id.encode()))
        seeing = self.predictions.seeing
        began_at = scope["state"].get("began_at", time.monotonic())
        is_probe = scope["path"] in OPEN_PATHS and not head.traceparent
        timeline = None if is_probe else seeing.begin(head, began_at)
        if timeline is None:
            await self._run_call(scope, receive, send, head)
            return
        statuses: list[int] = []
        if head.server_timing:
            send = with_fields(send, partial(server_timing, timeline))
        await self._run_call(scope, receive, noting_status(send, statuses), head)
        route = getattr(scope.get("route"), "path", "other")
        status = statuses[0] if statuses else CLIENT_CLOSED
        seeing.end_call(timeline, f"{scope['method']} {route}", status)

    async def _run_call(
        self, scope: Scope, receive: Receive, send: Send, head: RequestHead
    ) -> None:
        is_head = scope["method"] == "HEAD"
        methods = self.methods.of(scope["path"])
        if methods and scope["method"] not in methods:
            self.refusals.count("method_not_allowed")
            await send_no_method(send, scope, methods, head.request_id)
            return
        if scope["method"] == "OPTIONS" and methods:
            await send_methods(send, methods)
            return
        if is_head or head.accept_encoding:
            send = FinishingSend(head, send, is_head=is_head)
        if is_head:
            scope = {**scope, "method": "GET"}  # the connection's own scope still says HEAD
        try:
            send = await self._within_quotas(scope, head, send)
            receive = await self._with_body(scope, receive, head)
        except ClientLeft:
            return
        except PeterRecError as error:
            self.refusals.count_error(error, peer_of(scope), head.request_id)
            await send_error(send, error, head.request_id)
            return
        await super().__call__(scope, receive, send)

    async def _within_quotas(self, scope: Scope, head: RequestHead, send: Send) -> Send:
        """Look at the key and its tenant's quotas, before anything of a body is read.

        A call without a body and without a key is refused by its route, if there is one.
        """
        if scope["path"] in OPEN_PATHS:
            return send
        try:
            caller = await self._identify(head.authorization, head.api_key)
        except PeterRecError:
            if head.has_body:
                raise
            return send
        return self._admit_call(caller.tenant, send)

    async def _with_body(self, scope: Scope, receive: Receive, head: RequestHead) -> Receive:
        """Bound the body."""
        if not head.has_body or scope["path"] in OPEN_PATHS:
            return receive
        if versions.is_push(scope):
            return in_pace(receive)
        is_list = availability.is_put(scope)
        limit = availability.MAX_BODY_BYTES if is_list else MAX_ADMIN_BODY_BYTES
        body = await read_body(receive, head, limit, BODY_TIMEOUT_S, has_arrived=False)
        if body.count(b":") > MAX_ADMIN_FIELDS and not is_list:
            raise TooManyValues(MAX_ADMIN_FIELDS)
        return replaying(body, receive)

    def no_route(self, path: str) -> RouteNotFound:
        """Return the error of a path that does not exist."""
        shown = path[:SHOWN_PATH]
        return RouteNotFound(
            f"there is no route {shown!r}.", hint=route_hint(self.openapi(), shown)
        )

    @cached_property
    def methods(self) -> Methods:
        """The methods of every path."""
        return Methods(self.openapi())

    def openapi(self) -> Document:
        """Return the OpenAPI document, built from the routes on the first call."""
        if self.openapi_schema is None:
            self.openapi_schema = get_openapi(
                title=self.title,
                version=self.version,
                description=self.description,
                routes=[*RAW_ROUTES, *self.routes],
            )
            complete(self.openapi_schema)
        return self.openapi_schema


def _add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(PeterRecError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_body)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(ClientLeft, _ignore)
    app.add_exception_handler(Exception, _fail)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, PeterRecError)
    request.app.refusals.count_error(error, peer_of(request.scope), request.state.request_id)
    return _response(problem_of(error, request.state.request_id), retry_after_s(error))


async def _refuse_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()[:SHOWN_PROBLEMS]
    unknown = [_shown(each["loc"][-1]) for each in problems if each["type"] == "extra_forbidden"]
    path = getattr(request.scope.get("route"), "path", "")
    hint = field_hint(request.app.openapi(), request.method, path, unknown) if unknown else BODY
    problem = MalformedRequest(_describe(problems), hint=hint)
    request.app.refusals.count_error(problem, peer_of(request.scope), request.state.request_id)
    return _response(problem_of(problem, request.state.request_id))


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == 404:
        request.app.refusals.count(RouteNotFound.code)
        return _response(problem_of(request.app.no_route(path), request.state.request_id))
    detail = f"{request.method} {path[:SHOWN_PATH]}: {error.detail}."
    return _response(plain_problem(error.status_code, detail, request.state.request_id))


async def _ignore(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


async def _fail(request: Request, error: Exception) -> Response:
    request.app.refusals.count(InternalError.code)
    return _response(problem_of(InternalError(), request.state.request_id))


def _response(problem: Problem, retry_after_s: int = RETRY_AFTER_S) -> Response:
    fields = retry_headers(problem.status, retry_after_s)
    headers = {name.decode(): value.decode() for name, value in fields}
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(encode_json(problem), problem.status, headers, "application/problem+json")


def _shown(name: object) -> str:
    """Return the beginning of a name; half a surrogate pair in it, which is no text, becomes ?."""
    return cut(str(name), SHOWN_NAME).encode(errors="replace").decode()


def _describe(problems: Sequence[object]) -> str:
    """Describe every problem of a body with its place, without the values."""
    described = []
    for problem in problems:
        assert isinstance(problem, dict)
        place = ".".join(map(_shown, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        described.append(f"{place}: {cut(message, SHOWN_PATH)}")
    return "; ".join(described) + "."
