"""One client that follows the registry's changes, as server-sent events."""

import time
from collections.abc import AsyncIterator

from peterrec.patches.errors import RegistryUnavailable
from peterrec.service.http.asgi import encode_json
from peterrec.service.http.auth import Principal
from peterrec.service.http.routes.audit_views import AuditEntry, is_visible
from peterrec.service.http.routes.context import AdminContext

PAGE = 500
LOOK_INTERVAL_S = 0.5
"""A stream notices a drain so soon; and a change, if this replica's follower told of none."""

KEEP_ALIVE_S = 15.0
"""Balancers close connections on which nothing comes for long."""

AWAY_KEEP_ALIVE = b": the registry is away, the stream goes on when it is back\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


class EventStream:
    """What one caller may see of the changes after ``since``, until it leaves or we drain.

    The replica's own table tells when to look, so waiting streams cost Redis nothing but a look
    every half second.
    """

    def __init__(self, context: AdminContext, caller: Principal, since: int) -> None:
        self._context = context
        self._caller = caller
        self._since = since
        self._told_at = time.monotonic()

    async def chunks(self, streams: set["EventStream"]) -> AsyncIterator[bytes]:
        """The stream's bytes; it is one of ``streams`` from its first byte to its end."""
        streams.add(self)
        try:
            yield b": following\n\n"
            while self._goes_on():
                async for chunk in self._news():
                    self._told_at = time.monotonic()
                    yield chunk
                await self._context.table.turn(LOOK_INTERVAL_S)
        finally:
            streams.discard(self)

    def _goes_on(self) -> bool:
        """A revoked key ends its streams, and so does a drain."""
        is_valid = self._context.authenticator.is_valid(self._caller)
        return is_valid and not self._context.readiness.is_draining

    async def _news(self) -> AsyncIterator[bytes]:
        """What has happened since the last look; a comment if nothing was told for long."""
        try:
            revision = await self._context.registry.feed.revision()
            if revision != self._since:
                async for chunk in self._changes(revision):
                    yield chunk
        except RegistryUnavailable:
            if self._is_silent():
                yield AWAY_KEEP_ALIVE
        else:
            if self._is_silent():
                yield KEEP_ALIVE

    async def _changes(self, revision: int) -> AsyncIterator[bytes]:
        registry = self._context.registry
        if revision < self._since or await registry.feed.oldest_event() > self._since + 1:
            yield self._reset(revision)
        while events := await registry.feed.events(self._since, PAGE):
            for event in events:
                self._since = event.revision
                if is_visible(event, self._caller):
                    yield _encode(AuditEntry.of(event))

    def _reset(self, revision: int) -> bytes:
        """Changes are lost to this stream: its client must read the tasks again."""
        self._since = revision
        data = encode_json({"revision": revision})
        return b"id: %d\nevent: reset\ndata: %b\n\n" % (revision, data)

    def _is_silent(self) -> bool:
        return time.monotonic() - self._told_at > KEEP_ALIVE_S


def _encode(entry: AuditEntry) -> bytes:
    data = encode_json(entry.model_dump(mode="json", exclude_none=True))
    action = entry.action.encode()
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (entry.revision, action, data)
