"""Where requests spend their time: traces, the log of slow requests, and ``Server-Timing``."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

import structlog

from peterrec.service.http.asgi import Headers, RequestHead
from peterrec.service.telemetry.events import Emit, Event, RequestTraced, TracesLeftOut
from peterrec.service.telemetry.timeline import TIMELINE, Timeline
from peterrec.service.telemetry.trace_context import Sampler

log = structlog.get_logger()

SLOW_LINES_PER_S = 5
"""Lines about slow requests that a worker writes per second: in an overload, all are slow."""

SERVER_ERROR = 500
"""Statuses from this one on are the server's own fault."""

SHOWN_TASKS = 3
"""Tasks of a call that its span and its line name."""


About = dict[str, str | int]


def _ignore(event: Event) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that has ended, as the metrics know it. Tasks that are not registered are empty."""

    tenant: str
    tasks: Sequence[str]
    rows: int
    protocol: str
    outcome: str

    @property
    def task(self) -> str:
        """The tasks in one text, the first few of them."""
        names = [name for name in self.tasks[:SHOWN_TASKS] if name]
        more = ["…"] if len(self.tasks) > SHOWN_TASKS else []
        return ",".join([*names, *more])

    def attributes(self) -> About:
        """Return what a span says of it."""
        return {
            "peterrec.tenant": self.tenant,
            "peterrec.task": self.task,
            "peterrec.rows": self.rows,
            "peterrec.protocol": self.protocol,
            "peterrec.outcome": self.outcome,
        }


class SlowLines:
    """Writes lines about slow requests, at most ``SLOW_LINES_PER_S``, and counts the others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0
        self._written = 0
        self._left_out = 0

    def write(self, timeline: Timeline, spent: dict[str, float], about: Finished) -> None:
        """Write what a request was, and where most of its time went."""
        if not self._may_write():
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        reason = max(spent, key=lambda stage: spent[stage])
        stages = {f"{stage}_ms": _ms(seconds) for stage, seconds in spent.items() if seconds}
        batches = [batch for each in timeline.rounds for batch in each.batches]
        log.warning(
            "slow_request",
            request_id=timeline.request_id,
            tenant=about.tenant,
            task=about.task,
            outcome=about.outcome,
            rows=about.rows,
            reason=reason,
            total_ms=_ms(sum(spent.values())),
            **stages,
            batches=",".join(str(batch.number) for batch in batches[:SHOWN_TASKS]),
            left_out=left_out,
        )

    def _may_write(self) -> bool:
        now = self._clock()
        if now >= self._until:
            self._until, self._written = now + 1.0, 0
        self._written += 1
        return self._written <= SLOW_LINES_PER_S


@dataclass(frozen=True, slots=True)
class Seeing:
    """Decides which requests have a timeline, and tells what it says. By default none has.

    ``sampler`` is None if nothing is traced. Requests that take ``slow_s`` or longer are logged.
    With ``names_requests``, log lines of any request have its id. Used on the event loop only.
    """

    emit: Emit = _ignore
    sampler: Sampler | None = None
    slow_s: float = inf
    names_requests: bool = False
    lines: SlowLines = field(default_factory=SlowLines)

    def begin(self, head: RequestHead, began_at: float) -> Timeline | None:
        """Return the timeline of a request, which the running task has from now on."""
        sampler = self.sampler
        if sampler is None and self.slow_s == inf and not self.names_requests:
            if not head.server_timing:
                if TIMELINE.get() is not None:  # of an earlier request on this connection
                    TIMELINE.set(None)
                return None
            trace = None
        else:
            trace = None if sampler is None else sampler.choose(head.traceparent, began_at)
        timeline = Timeline(head.request_id, began_at, trace)
        TIMELINE.set(timeline)
        return timeline

    def end(self, timeline: Timeline, head: RequestHead, name: str, about: Finished) -> str:
        """Tell where the time of a prediction went; return the id of its trace, or an empty one."""
        now = time.monotonic()
        if now - timeline.began_at >= self.slow_s:
            if timeline.trace is None and self.sampler is not None:
                timeline.trace = self.sampler.choose_late(head.traceparent, now)
            self.lines.write(timeline, timeline.spent(now), about)
        if timeline.trace is None:
            return ""
        return self._tell(timeline, name, now, about.attributes())

    def end_call(self, timeline: Timeline, name: str, status: int) -> None:
        """Tell of any other call, if it is traced."""
        if timeline.trace is not None:
            outcome = "error" if status >= SERVER_ERROR else "ok"
            about: About = {"http.response.status_code": status, "peterrec.outcome": outcome}
            self._tell(timeline, name, time.monotonic(), about)

    def _tell(self, timeline: Timeline, name: str, now: float, about: About) -> str:
        assert timeline.trace is not None
        assert self.sampler is not None
        self.emit(
            RequestTraced(
                name=name,
                trace=timeline.trace,
                began_at=timeline.began_at,
                ended_at=now,
                read_at=timeline.read_at,
                rounds=timeline.rounds,
                about={"peterrec.request_id": timeline.request_id, **about},
                process=f"worker-{os.getpid()}",
            )
        )
        if self.sampler.left_out:
            self.emit(TracesLeftOut(self.sampler.left_out))
            self.sampler.left_out = 0
        return timeline.trace.trace_id.hex()


def server_timing(timeline: Timeline) -> Headers:
    """Return the header ``Server-Timing`` (W3C): the milliseconds of each stage until now."""
    now = time.monotonic()
    spent = [(stage, seconds) for stage, seconds in timeline.spent(now).items() if seconds]
    entries = [f"{stage};dur={_ms(seconds)}" for stage, seconds in spent]
    entries.append(f"total;dur={_ms(now - timeline.began_at)}")
    return [(b"server-timing", ", ".join(entries).encode())]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
