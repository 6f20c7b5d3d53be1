"""The spans of traced requests and of the batches that ran their rows, before they are sent.

A request has a span for each stage. A batch serves many requests, so it has a trace of its own: its
span has a link to each of them, and theirs have a link to it. Ids are derived rather than drawn, so
each process could say them.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from peterrec.service.protocol.messages import BatchTimes
from peterrec.service.telemetry.events import RequestTraced
from peterrec.service.telemetry.timeline import Round

BATCH_HELD_S = 2.0
"""Seconds that a batch's span waits for the requests of the batch: all of them answer soon."""

FAILURES = frozenset({"error", "deadline"})
"""Outcomes for which a request's span is marked as failed: the server did not answer it."""

About = dict[str, str | int | float]

BatchKey = tuple[int, int]
"""A batch: the epoch of the device process, and its number."""


@dataclass(frozen=True, slots=True)
class SpanLink:
    """Another span that one belongs to without being a part of it."""

    trace_id: bytes
    span_id: bytes
    about: About = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """One span. Times are on the monotonic clock. ``parent_id`` is empty at the root of a trace.

    The span of a request is ``is_server``; its parent is the caller's.
    """

    name: str
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    began_at: float
    ended_at: float
    about: About
    links: list[SpanLink] = field(default_factory=list)
    is_server: bool = False
    is_failed: bool = False


def spans_of_request(event: RequestTraced) -> list[Span]:
    """Return the span of a request and those of its stages."""
    trace = event.trace
    spans = [
        Span(
            event.name,
            trace.trace_id,
            trace.span_id,
            trace.parent_id,
            event.began_at,
            event.ended_at,
            {**event.about, "peterrec.process": event.process},
            is_server=True,
            is_failed=event.about.get("peterrec.outcome") in FAILURES,
        )
    ]
    if not (event.read_at or event.rounds):
        return spans  # no prediction, or one whose body never came
    at = event.began_at
    sent_at = event.rounds[0].sent_at if event.rounds else event.ended_at
    for name, until in (("receive", event.read_at), ("prepare", sent_at)):
        if until:
            spans.append(_stage(event, name, at, until))
            at = until
    for number, each in enumerate(event.rounds):
        spans += _spans_of_round(event, number, each)
    if event.rounds:
        answered_at = max(each.ended_at for each in event.rounds)
        spans.append(_stage(event, "answer", answered_at, event.ended_at))
    return spans


def _spans_of_round(event: RequestTraced, number: int, sent: Round) -> Iterator[Span]:
    """Yield the spans of rows that were sent together: their wait, and their batches."""
    started_at = min((each.started_at for each in sent.batches), default=sent.returned_at)
    spent = sent.spent()
    held: About = {
        f"peterrec.{stage}_ms": round(1000 * spent[stage], 3)
        for stage in ("swap", "kernels", "head")
        if spent.get(stage)
    }
    yield _stage(event, "queue", sent.sent_at, started_at, number, held)
    for at, times in enumerate(sent.batches):
        span = _stage(
            event, "batch", times.started_at, times.ended_at, (number, at), _about_batch(times)
        )
        span.links.append(SpanLink(*_ids_of_batch((sent.epoch, times.number))))
        yield span


def _stage(
    event: RequestTraced,
    name: str,
    began_at: float,
    ended_at: float,
    place: object = 0,
    about: About | None = None,
) -> Span:
    trace = event.trace
    span_id = _derived(trace.span_id + f"{name} {place}".encode(), 8)
    return Span(name, trace.trace_id, span_id, trace.span_id, began_at, ended_at, about or {})


class BatchSpans:
    """The batches of traced requests, until their own spans are made."""

    def __init__(self) -> None:
        self._batches: OrderedDict[BatchKey, tuple[float, Span]] = OrderedDict()

    def note(self, event: RequestTraced, spans: list[Span]) -> None:
        """Note the batches of a request, whose spans are given."""
        of_batches = iter([span for span in spans if span.name == "batch"])
        request_id = event.about.get("peterrec.request_id", "")
        for sent in event.rounds:
            for times in sent.batches:
                span = next(of_batches)
                batch = self._find((sent.epoch, times.number), times)
                batch.links.append(
                    SpanLink(span.trace_id, span.span_id, {"peterrec.request_id": request_id})
                )

    def take(self, *, also_fresh: bool) -> list[Span]:
        """Take out the spans of batches of which no further request is expected."""
        until = time.monotonic() - BATCH_HELD_S
        taken: list[Span] = []
        for key, (seen_at, span) in list(self._batches.items()):
            if seen_at > until and not also_fresh:
                break
            del self._batches[key]
            taken.append(span)
        return taken

    def _find(self, key: BatchKey, times: BatchTimes) -> Span:
        if key not in self._batches:
            about: About = {**_about_batch(times), "peterrec.process": "device"}
            span = Span(
                "device batch", *_ids_of_batch(key), b"", times.started_at, times.ended_at, about
            )
            self._batches[key] = time.monotonic(), span
        return self._batches[key][1]


def _about_batch(times: BatchTimes) -> About:
    return {
        "peterrec.batch.number": times.number,
        "peterrec.batch.rows": times.rows,
        "peterrec.batch.distinct_bundles": times.distinct_bundles,
    }


def _ids_of_batch(key: BatchKey) -> tuple[bytes, bytes]:
    """Return the ids of a batch's trace and of its span."""
    epoch, number = key
    derived = _derived(f"batch {epoch} {number}".encode(), 24)
    return derived[:16], derived[16:]


def _derived(source: bytes, size_bytes: int) -> bytes:
    return hashlib.sha256(source).digest()[:size_bytes]
