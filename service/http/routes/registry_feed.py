"""The changes of the registry: as a stream that can be resumed, and as the audit trail."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import RegistryUnavailable
from peterrec.patches.registry.registry import Registry
from peterrec.service.errors import (
    EventsLost,
    MalformedRequest,
    RegistryNotLost,
    TooManyStreams,
    error_body,
)
from peterrec.service.http.asgi import encode_json
from peterrec.service.http.auth import Principal
from peterrec.service.http.context import AdminContext, Caller, Context
from peterrec.service.http.openapi import NDJSON
from peterrec.service.http.views.audit import AuditEntry, entry_for

PAGE = 500
"""Changes that are read from the registry in one call."""

MAX_LIMIT = 10_000
"""Largest number of changes in one answer of the audit trail."""

DEFAULT_LIMIT = 1000
"""Number of changes in one answer of the audit trail if the caller gives none."""

MAX_STREAMS = 64
"""Streams that one worker serves at the same time."""

LOOK_INTERVAL_S = 0.5
"""Seconds after which a stream notices that the server drains, and changes of which this replica's
table did not notify it."""

SSE = "text/event-stream"

router = APIRouter(prefix="/registry", tags=["registry"])

LAST_REVISION = 1 << 53
"""Largest revision: Redis counts in Lua's numbers, which are whole only up to here."""

Since = Annotated[
    int,
    Query(
        ge=0,
        le=LAST_REVISION,
        description="Only changes after this revision; 0 returns all that are kept.",
    ),
]


class AuditView(BaseModel):
    """Changes, oldest first.

    Pass ``next_since`` as ``since`` to get the next page; it is null on the last page.
    ``is_complete`` is false if some changes after ``since`` are no longer kept;
    ``oldest_revision`` is the oldest one that is.
    """

    events: list[AuditEntry]
    next_since: int | None
    oldest_revision: int
    is_complete: bool


class EventStream:
    """The changes after a revision that one caller may see, until it leaves or the server drains.

    The replica's own table notifies streams of changes, so an idle stream costs Redis one call per
    ``LOOK_INTERVAL_S``.
    """

    def __init__(self, context: AdminContext, caller: Principal, since: int) -> None:
        self._context = context
        self._caller = caller
        self._since = since

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Yield each change as an event. A stream without changes gets comments from FastAPI."""
        yield ServerSentEvent(comment="following")
        while self._may_continue():
            with suppress(RegistryUnavailable):  # the stream continues when Redis is back
                async for event in self._news():
                    yield event
            await self._context.table.turn(LOOK_INTERVAL_S)

    def _may_continue(self) -> bool:
        is_valid = self._context.authenticator.is_valid(self._caller)
        return is_valid and not self._context.readiness.is_draining

    async def _news(self) -> AsyncIterator[ServerSentEvent]:
        registry = self._context.registry
        revision = await registry.feed.revision()
        if revision == self._since:
            return
        if revision < self._since or await registry.feed.oldest_event() > self._since + 1:
            yield self._reset(revision)
        while events := await registry.feed.events(self._since, PAGE):
            for event in events:
                self._since = event.revision
                entry = entry_for(self._caller, event)
                if entry is not None:
                    yield _event(event.revision, event.action, entry)

    def _reset(self, revision: int) -> ServerSentEvent:
        """Skip to a revision and report it: changes in between are lost to this stream."""
        self._since = revision
        data = encode_json({"revision": revision}).decode()
        return ServerSentEvent(id=str(revision), event="reset", raw_data=data)


async def open_stream(
    caller: Caller,
    context: Context,
    response: Response,
    since: Annotated[
        int | None,
        Query(ge=0, le=LAST_REVISION, description="Begin after this revision; default: now."),
    ] = None,
    last_event_id: Annotated[
        str | None,
        Header(description="Sent by an EventSource when it reconnects; replaces since."),
    ] = None,
) -> AsyncGenerator[EventStream, None]:
    """Open a stream of changes for one request, and count it as long as the request lasts."""
    _require_admin(caller)
    if len(context.streams) >= MAX_STREAMS:
        raise TooManyStreams(MAX_STREAMS)
    revision = await context.registry.feed.revision()
    begun = _begin(since, last_event_id)
    if begun is None:
        begun = revision
    elif begun > revision or await context.registry.feed.oldest_event() > begun + 1:
        raise EventsLost(begun, await context.registry.feed.oldest_event(), revision)
    response.headers["Cache-Control"] = "no-store"
    stream = EventStream(context, caller, begun)
    with context.quotas.stream(caller.tenant):
        context.streams.add(stream)
        try:
            yield stream
        finally:
            context.streams.discard(stream)


@router.get(
    "/events",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "Server-sent events: id is the revision, event the action, data an "
            "entry of the audit trail.",
            "content": {SSE: {"schema": {"type": "string"}}},
        }
    },
)
async def follow(
    stream: Annotated[EventStream, Depends(open_stream)],
) -> AsyncIterator[ServerSentEvent]:
    """Stream every change from now on, or after a revision, without a gap, until the server drains.

    410 `events_lost` if changes after that revision are no longer kept: read the tasks, then follow
    from now on. An event `reset` reports that changes were lost while the stream was open.
    """
    async for event in stream.events():
        yield event


async def count_lines(
    request: Request, caller: Caller, context: Context
) -> AsyncGenerator[None, None]:
    """Count an answer of the audit trail as a stream if it is one."""
    if request.query_params.get("format") == "ndjson":
        with context.quotas.stream(caller.tenant):
            yield
    else:
        yield


@router.get(
    "/audit",
    dependencies=[Depends(count_lines)],
    responses={200: {"model": AuditView, "content": {NDJSON: {"schema": {"type": "string"}}}}},
)
async def audit(
    caller: Caller,
    context: Context,
    response: Response,
    task: Annotated[str | None, Query(description="Only changes of this task.")] = None,
    since: Since = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    form: Annotated[
        Literal["json", "ndjson"],
        Query(
            alias="format",
            description="ndjson: everything after since, one object per "
            "line; the last one has only `error` if reading broke off.",
        ),
    ] = "json",
) -> Response:
    """List who changed what and when, with the values before and after; oldest first."""
    _require_admin(caller)
    oldest = await context.registry.feed.oldest_event()
    found = _entries(context.registry, caller, task, since)
    is_complete = oldest <= since + 1
    if form == "ndjson":
        headers = {
            "X-Audit-Complete": str(is_complete).lower(),
            "X-Audit-Oldest-Revision": str(oldest),
        }
        first = await anext(found, None)
        return StreamingResponse(_lines(first, found), media_type=NDJSON, headers=headers)
    events: list[AuditEntry] = []
    next_since: int | None = None
    async for entry in found:
        if len(events) == limit:
            next_since = events[-1].revision
            break
        events.append(entry)
    view = AuditView(
        events=events, next_since=next_since, oldest_revision=oldest, is_complete=is_complete
    )
    content = view.model_dump_json(exclude_none=False).encode()
    return Response(content, media_type="application/json")


class ReplicaView(BaseModel):
    """A server of this registry. ``seen_s``: seconds since it was heard of, three at most.

    ``host`` is null to callers who are no operators. A replica whose ``revision`` stays behind does
    not get the changes, or refuses a bundle.
    """

    replica: str
    host: str | None
    revision: int
    seen_s: float


class ReplicasView(BaseModel):
    """The replicas that are there, and the revision that the registry has."""

    registry_revision: int
    replicas: list[ReplicaView]


@router.get("/replicas")
async def list_replicas(caller: Caller, context: Context) -> ReplicasView:
    """List the servers that follow this registry, with the revision that each serves."""
    _require_admin(caller)
    revision = await context.registry.feed.revision()
    found = await context.registry.shares.replicas()
    return ReplicasView(
        registry_revision=revision,
        replicas=[
            ReplicaView(
                replica=each.replica,
                host=each.presence.host if caller.is_operator else None,
                revision=each.presence.revision,
                seen_s=round(each.seen_s, 3),
            )
            for each in found
        ],
    )


class AcceptedView(BaseModel):
    """What takes the place of a registry that was lost, and the revision that is given up."""

    registry_revision: int
    lost_revision: int


@router.post(":accept")
async def accept(caller: Caller, context: Context) -> AcceptedView:
    """Follow what Redis holds now, on every replica, and give up the registry that it has lost.

    For operators. 409 `registry_not_lost` unless this replica says `registry_lost` in /readyz. To
    put the lost registry back instead, use `peterrec registry restore`.
    """
    caller.require_operator()
    known = context.link.knowledge
    if not known.loss or known.position is None:
        raise RegistryNotLost
    lost = known.position
    seen = await context.registry.feed.position()
    revision = await context.registry.accept(lost, seen, caller.key_id)
    await context.wait_until_served(revision)
    return AcceptedView(registry_revision=revision, lost_revision=lost.revision)


def _require_admin(caller: Principal) -> None:
    """Require ``operator``, or ``admin`` for at least one task; ``entry_for`` decides the rest."""
    if not any(scope.action in {"admin", "operator"} for scope in caller.scopes):
        caller.require_everywhere("admin")


def _begin(since: int | None, last_event_id: str | None) -> int | None:
    if last_event_id is None:
        return since
    if not (last_event_id.isdecimal() and len(last_event_id) < 19):
        raise MalformedRequest(
            f"Last-Event-ID {last_event_id[:40]!r} is not the id of an event.",
            hint="Send the id of the last event that arrived unchanged.",
        )
    return int(last_event_id)


def _event(revision: int, action: str, entry: AuditEntry) -> ServerSentEvent:
    data = encode_json(entry.model_dump(mode="json", exclude_none=True)).decode()
    return ServerSentEvent(id=str(revision), event=action, raw_data=data)


async def _entries(
    registry: Registry, caller: Principal, task: str | None, since: int
) -> AsyncIterator[AuditEntry]:
    """Yield the entries after a revision that the caller may see, read page by page."""
    while events := await registry.feed.events(since, PAGE):
        for event in events:
            entry = entry_for(caller, event) if task in {None, event.task} else None
            if entry is not None:
                yield entry
        since = events[-1].revision


async def _lines(
    first: AuditEntry | None, others: AsyncIterator[AuditEntry]
) -> AsyncIterator[bytes]:
    """Yield entries as lines. The last line is an object with ``error`` if not all could be read.

    The first entry was read before: until then, an error is an answer of its own.
    """
    try:
        if first is not None:
            yield _line(first)
        async for entry in others:
            yield _line(entry)
    except PeterRecError as error:
        yield encode_json({"error": error_body(error)}) + b"\n"


def _line(entry: AuditEntry) -> bytes:
    return encode_json(entry.model_dump(mode="json", exclude_none=True)) + b"\n"
