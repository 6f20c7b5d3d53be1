"""What has changed in the registry: as a stream that can be resumed, and as the audit trail."""

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from peterrec.patches.registry.registry import Registry
from peterrec.service.errors import EventsLost, TooManyStreams
from peterrec.service.http.asgi import encode_json
from peterrec.service.http.auth import Principal
from peterrec.service.http.routes.audit_views import AuditEntry, is_visible
from peterrec.service.http.routes.context import AdminContext, find_caller
from peterrec.service.http.routes.following import EventStream

PAGE = 500
MAX_LIMIT = 10_000
DEFAULT_LIMIT = 1000
MAX_STREAMS = 64
"""Streams of one worker at once."""

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"

Since = Annotated[
    int, Query(ge=0, description="Only changes after this revision; 0 is all that are kept.")
]


class AuditView(BaseModel):
    """Changes, oldest first.

    ``next_since`` asks for those after them, null if there are none now. ``is_complete`` is false
    if changes after ``since`` are no longer kept: the oldest that is, is ``oldest_revision``.
    """

    events: list[AuditEntry]
    next_since: int | None
    oldest_revision: int
    is_complete: bool


def registry_feed_router(context: AdminContext) -> APIRouter:
    """``/registry/events`` and ``/registry/audit``: what the caller's key may administer."""
    router = APIRouter(prefix="/registry", tags=["registry"])
    Caller = Annotated[Principal, Depends(find_caller(context.authenticator))]
    registry = context.registry
    streams: set[EventStream] = set()

    @router.get(
        "/events",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "Server-sent events: id is the revision, event the action, data an "
                "entry of the audit trail.",
                "content": {SSE: {"schema": {"type": "string"}}},
            }
        },
    )
    async def follow(
        caller: Caller,
        since: Annotated[
            int | None, Query(ge=0, description="Begin after this revision; default: now.")
        ] = None,
        last_event_id: Annotated[
            str | None, Header(description="As an EventSource sends it; wins over since.")
        ] = None,
    ) -> StreamingResponse:
        """Every change from now on, or after a revision, without a gap, until the server drains.

        410 `events_lost` if changes after that revision are no longer kept: read the tasks, then
        follow from now on. An event `reset` says the same of what happened meanwhile.
        """
        _require_admin(caller)
        if len(streams) >= MAX_STREAMS:
            raise TooManyStreams(MAX_STREAMS)
        revision = await registry.feed.revision()
        begun = _begin(since, last_event_id)
        if begun is None:
            begun = revision
        elif begun > revision or await _oldest(registry) > begun + 1:
            raise EventsLost(begun, await _oldest(registry), revision)
        stream = EventStream(context, caller, begun)
        return StreamingResponse(
            stream.chunks(streams),
            media_type=SSE,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @router.get(
        "/audit",
        responses={200: {"model": AuditView, "content": {NDJSON: {"schema": {"type": "string"}}}}},
    )
    async def audit(
        caller: Caller,
        response: Response,
        task: Annotated[str | None, Query(description="Only changes of this task.")] = None,
        since: Since = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
        form: Annotated[
            Literal["json", "ndjson"],
            Query(alias="format", description="ndjson: everything after since, one object a line."),
        ] = "json",
    ) -> Response:
        """Who changed what, when, from what to what; oldest first."""
        _require_admin(caller)
        oldest = await _oldest(registry)
        is_complete = oldest <= since + 1
        if form == "ndjson":
            headers = {
                "X-Audit-Complete": str(is_complete).lower(),
                "X-Audit-Oldest-Revision": str(oldest),
            }
            found = _entries(registry, caller, task, since)
            return StreamingResponse(_lines(found), media_type=NDJSON, headers=headers)
        events: list[AuditEntry] = []
        next_since: int | None = None
        async for entry in _entries(registry, caller, task, since):
            if len(events) == limit:
                next_since = events[-1].revision
                break
            events.append(entry)
        view = AuditView(
            events=events, next_since=next_since, oldest_revision=oldest, is_complete=is_complete
        )
        content = view.model_dump_json(exclude_none=False).encode()
        return Response(content, media_type="application/json")

    return router


def _require_admin(caller: Principal) -> None:
    """At least one task; which entries are shown depends on each scope's glob."""
    if not any(scope.action == "admin" for scope in caller.scopes):
        caller.require_everywhere("admin")


def _begin(since: int | None, last_event_id: str | None) -> int | None:
    if last_event_id is not None and last_event_id.isdecimal() and len(last_event_id) < 19:
        return int(last_event_id)
    return since


async def _oldest(registry: Registry) -> int:
    return await registry.feed.oldest_event()


async def _entries(
    registry: Registry, caller: Principal, task: str | None, since: int
) -> AsyncIterator[AuditEntry]:
    """The entries after a revision that the caller may see, page by page."""
    while events := await registry.feed.events(since, PAGE):
        for event in events:
            if is_visible(event, caller) and task in {None, event.task}:
                yield AuditEntry.of(event)
        since = events[-1].revision


async def _lines(entries: AsyncIterator[AuditEntry]) -> AsyncIterator[bytes]:
    async for entry in entries:
        yield encode_json(entry.model_dump(mode="json", exclude_none=True)) + b"\n"
