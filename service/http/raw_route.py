"""Routes that answer over plain ASGI, for calls in which each layer of a framework counts."""

import time
from collections.abc import Mapping, Sequence

from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from peterrec.service.errors import plain_problem
from peterrec.service.http.asgi import RequestHead, send_problem
from peterrec.service.http.connection import Connection


class Call(HTTPConnection):
    """One request of a raw route. ``tenant``, ``tasks`` and ``rows`` are set for the metrics.

    ``outcomes`` has, for each task of which not all instances were answered, their outcomes. A
    connection of Starlette, so that FastAPI accepts it as a parameter of a handler.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.head = RequestHead.read(scope)
        self.connection = Connection.of(scope)
        self.receive = receive
        self.send = send
        self.started = time.monotonic()
        self.tenant = ""
        self.tasks: Sequence[str] = ("",)
        self.rows = 0
        self.outcomes: Mapping[str, Sequence[str]] = {}


class RawRoute(APIRoute):
    """A route whose handler reads the body and sends the answer itself.

    The handler takes a ``Call`` and the parameters of the path, and returns None. FastAPI reads its
    declaration for the OpenAPI document, but solves no dependencies and adds no layers, which would
    cost 0.1 ms of CPU per request (docs/decisions/0050-one-http-framework.md).
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the path alone, by Starlette's pattern for it."""
        found = self.path_regex.fullmatch(scope["path"])
        if found is None:
            return Match.NONE, {}
        return Match.FULL, {"path_params": found.groupdict()}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the handler, or refuse the method."""
        methods = self.methods or set()
        if scope["method"] in methods:
            await self.endpoint(Call(scope, receive, send), **scope["path_params"])
        else:
            await _refuse_method(scope, send, sorted(methods))


async def _refuse_method(scope: Scope, send: Send, allowed: Sequence[str]) -> None:
    names = ", ".join(allowed)
    detail = f"{scope['method']} {scope['path'][:200]}: only {names} is allowed."
    problem = plain_problem(405, detail, RequestHead.read(scope).request_id)
    await send_problem(send, problem, [(b"allow", names.encode())])
