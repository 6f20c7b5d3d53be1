"""How many requests and connections a worker refuses, by error code."""

import asyncio

from starlette.types import Scope

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import (
    BodyTooLarge,
    MalformedRequest,
    NothingAnswered,
    RequestTimedOut,
    TooManyValues,
    Unauthenticated,
)
from peterrec.service.http.refusal_log import RefusalLog
from peterrec.service.telemetry.events import Emit, Refused

FLUSH_S = 0.5
"""Seconds for which refusals are counted before an event says how many there were."""


TOLD = frozenset(
    error.code
    for error in (BodyTooLarge, MalformedRequest, RequestTimedOut, TooManyValues, Unauthenticated)
)
"""Codes that say that a client is broken, or attacks: the log names its address."""


def peer_of(scope: Scope) -> str:
    """The address of the client of a request."""
    client = scope.get("client")
    return str(client[0]) if client else "local"


class RefusalCounts:
    """Counts refusals, and tells of them a few times a second. Lives on the event loop."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._counts: dict[str, int] = {}
        self._log = RefusalLog()

    def count(self, code: str) -> None:
        """Count a refusal."""
        if not self._counts:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
        self._counts[code] = self._counts.get(code, 0) + 1

    def count_error(self, error: PeterRecError, peer: str, request_id: str) -> None:
        """Count the refusal of a call; the log gets a line for some, one a second at most."""
        code = (error.first if isinstance(error, NothingAnswered) else error).code
        self.count(code)
        if code in TOLD:
            self._log.note(code, peer, request_id)

    def flush(self) -> None:
        """Tell what was counted."""
        counts, self._counts = self._counts, {}
        for code, count in counts.items():
            self._emit(Refused(code, count))
