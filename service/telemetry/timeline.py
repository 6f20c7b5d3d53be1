"""Where the time of one request went: what the routes, the link and the log know of it.

A request has a timeline only if something asks for it: a trace, the log of slow requests, the
header ``X-Server-Timing`` or logs as JSON. It is found by a context variable, so that no function
in between has a parameter for it. Times are on ``time.monotonic``, which all processes of a machine
share.
"""

from contextvars import ContextVar
from time import monotonic

import msgspec

from peterrec.service.protocol.messages import BatchTimes
from peterrec.service.telemetry.trace_context import TraceContext

STAGES = ("receive", "prepare", "queue", "swap", "kernels", "head", "batch", "answer")
"""Stages of a prediction in their order. ``swap``, ``kernels`` and ``head`` are the parts of the
wait in the queue in which the device process changed what is served, prepared kernels, or read an
evicted head back. ``answer`` has what follows the last batch."""


class Round(msgspec.Struct, array_like=True):
    """Rows that were sent to the device together; mostly there is one round.

    ``returned_at`` is when the last of them was answered. ``epoch`` is that of the batches.
    ``head_s`` is the longest time that one of the rows waited for its head.
    """

    sent_at: float
    returned_at: float = 0.0
    batches: list[BatchTimes] = []
    epoch: int = 0
    head_s: float = 0.0

    def note(self, epoch: int, times: BatchTimes, place: int) -> None:
        """Note the batch that ran a row, which has this place in its message."""
        self.epoch = epoch
        if not self.batches or self.batches[-1].number != times.number:
            self.batches.append(times)
        if times.head_waits:
            self.head_s = max(self.head_s, times.head_waits.get(place, 0.0))

    @property
    def ended_at(self) -> float:
        """When the last batch of the rows ended; without any, when waiting for them did."""
        return max((each.ended_at for each in self.batches), default=self.returned_at)

    def spent(self) -> dict[str, float]:
        """Return the seconds from sending the rows to the end of their last batch, by stage."""
        batch_s = sum(each.duration_s for each in self.batches)
        left_s = max(0.0, self.ended_at - self.sent_at - batch_s)
        found = {"batch": batch_s}
        held = {"head": self.head_s, **_held(self.batches)}
        for stage, seconds in held.items():
            found[stage] = min(seconds, left_s)
            left_s -= found[stage]
        return {**found, "queue": left_s}


class Timeline:
    """The moments of one request, noted while it runs. ``trace`` is None if it is not traced."""

    __slots__ = ("began_at", "read_at", "request_id", "rounds", "trace")

    def __init__(self, request_id: str, began_at: float, trace: TraceContext | None) -> None:
        self.request_id = request_id
        self.began_at = began_at
        self.trace = trace
        self.read_at = 0.0
        self.rounds: list[Round] = []

    def spent(self, ended_at: float) -> dict[str, float]:
        """Return the seconds of each stage up to a moment; together they are all the time."""
        found = dict.fromkeys(STAGES, 0.0)
        read_at = self.read_at or (self.rounds[0].sent_at if self.rounds else ended_at)
        found["receive"] = read_at - self.began_at
        if self.rounds:
            found["prepare"] = self.rounds[0].sent_at - read_at
        for each in self.rounds:
            for stage, seconds in each.spent().items():
                found[stage] += seconds
        rest = ended_at - self.began_at - sum(found.values())
        found["answer" if self.rounds or not self.read_at else "prepare"] += max(0.0, rest)
        return found


def _held(batches: list[BatchTimes]) -> dict[str, float]:
    """Return what held the rows of some batches up, by stage."""
    found: dict[str, float] = {}
    for batch in batches:
        for stage, seconds in batch.held_s.items():
            found[stage] = found.get(stage, 0.0) + seconds
    return found


TIMELINE: ContextVar[Timeline | None] = ContextVar("timeline", default=None)
"""The timeline of the request that the running task belongs to."""


def mark_read() -> None:
    """Note that the whole body of the current request is here."""
    timeline = TIMELINE.get()
    if timeline is not None:
        timeline.read_at = monotonic()


def ids_of_request() -> dict[str, str]:
    """Return what a log line of the current request names it by."""
    timeline = TIMELINE.get()
    if timeline is None:
        return {}
    trace = {} if timeline.trace is None else {"trace_id": timeline.trace.trace_id.hex()}
    return {"request_id": timeline.request_id, **trace}
