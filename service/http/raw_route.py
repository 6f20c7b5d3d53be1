"""Routes that answer over plain ASGI, for calls in which each layer of a framework counts."""

from collections.abc import Mapping, Sequence

from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from peterrec.service.http.asgi import RequestHead, send_methods, send_no_method
from peterrec.service.http.bound_tenant import BoundTenant
from peterrec.service.http.connection import Connection
from peterrec.service.predict.loop_shares import LoopCall


class Call(HTTPConnection):
    """One request of a raw route. ``protocol`` to ``rows`` are set for the metrics.

    ``started`` is when its first byte arrived, on ``time.monotonic``.
    ``path`` is the route's.
    ``outcomes`` has, for each task of which not all instances were answered, their outcomes.
    ``bound`` is the tenant if it has quotas for requests, and ``waiting_rows`` counts in them.
    ``work`` is the call as the event loop shares its time by, from when it begins to work. A
    connection of Starlette, so that FastAPI accepts it as a parameter of a handler.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, path: str = "") -> None:
        self.scope = scope
        self.path = path
        self.head = RequestHead.read(scope)
        self.connection = Connection.of(scope)
        self.receive = receive
        self.send = send
        self.started: float = scope["state"]["began_at"]
        self.protocol = "json"
        self.tenant = ""
        self.tasks: Sequence[str] = ("",)
        self.rows = 0
        self.outcomes: Mapping[str, Sequence[str]] = {}
        self.bound: BoundTenant | None = None
        self.waiting_rows = 0
        self.work: LoopCall | None = None


class RawRoute(APIRoute):
    """A route whose handler reads the body and sends the answer itself.

    The handler takes a ``Call`` and the parameters of the path, and returns None. FastAPI reads its
    declaration for the OpenAPI document, but solves no dependencies and adds no layers, which would
    cost 0.1 ms of CPU per request (docs/decisions/0050-one-http-framework.md).
    """

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, parameters: Mapping[str, str]
    ) -> None:
        """Run the handler with the parameters of the path, or refuse the method."""
        methods = self.methods or set()
        if scope["method"] in methods:
            await self.endpoint(Call(scope, receive, send, self.path), **parameters)
        else:
            await _answer_other_method(scope, send, sorted({*methods, "OPTIONS"}))


async def _answer_other_method(scope: Scope, send: Send, methods: Sequence[str]) -> None:
    request_id = RequestHead.read(scope).request_id
    if scope["method"] == "OPTIONS":
        await send_methods(send, methods, (b"x-request-id", request_id.encode()))
    else:
        await send_no_method(send, scope, methods, request_id)
