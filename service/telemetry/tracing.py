"""Sends the spans of traced requests to an OpenTelemetry collector, by OTLP over HTTP.

This runs in the supervisor, in a thread of its own: no process that answers requests makes a span
or imports OpenTelemetry.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from importlib.metadata import version
from socket import gethostname

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from peterrec.service.telemetry.events import Event, RequestTraced, TracesLeftOut
from peterrec.service.telemetry.spans import BatchSpans, Span, spans_of_request

log = structlog.get_logger()

SEND_INTERVAL_S = 0.5
"""Seconds between two messages to the collector."""

MAX_WAITING = 5000
"""Traced requests that wait to be sent; then the oldest are dropped."""

MOST_AT_ONCE = 200
"""Requests of one message, which has about six spans for each."""

EXPORT_TIMEOUT_S = 5.0
"""Seconds that a message may take, with the repetitions of the exporter."""

SCOPE = InstrumentationScope("peterrec.service", version("peterrec-serving"))


def open_exporter(endpoint: str) -> SpanExporter:
    """Return what sends spans to a collector.

    Further options are OpenTelemetry's own variables, such as ``OTEL_EXPORTER_OTLP_HEADERS`` and
    ``OTEL_EXPORTER_OTLP_CERTIFICATE``.
    """
    return OTLPSpanExporter(endpoint=traces_url(endpoint), timeout=EXPORT_TIMEOUT_S)


def traces_url(endpoint: str) -> str:
    """Return the URL that takes traces: by the standard, a path below the endpoint."""
    path = "/v1/traces"
    return endpoint if endpoint.endswith(path) else endpoint.rstrip("/") + path


class Tracer:
    """Takes traced requests from any thread, and sends their spans from a separate one."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME", "peterrec"),
                "service.version": version("peterrec-serving"),
                "service.instance.id": f"{gethostname()}-{os.getpid()}",
            }
        )
        self._waiting: deque[RequestTraced] = deque(maxlen=MAX_WAITING)
        self._batches = BatchSpans()
        self._awake = threading.Event()
        self._is_closing = False
        self._is_failing = False
        self._lost_requests = 0
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def record(self, event: Event) -> None:
        """Take an event about traces; never blocks. Other events are ignored."""
        if isinstance(event, RequestTraced):
            self._lost_requests += len(self._waiting) == MAX_WAITING
            self._waiting.append(event)
        elif isinstance(event, TracesLeftOut):
            log.warning("traces_left_out", requests=event.count, about="a worker's limit")

    def close(self) -> None:
        """Send what waits, unless the collector is away, and stop."""
        self._is_closing = True
        self._awake.set()
        self._thread.join(2 * EXPORT_TIMEOUT_S)
        self._exporter.shutdown()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._awake.wait(SEND_INTERVAL_S)
            is_last = self._is_closing
            self._send_next(is_last=is_last)
            while self._waiting and not self._is_failing:
                self._send_next(is_last=is_last)

    def _send_next(self, *, is_last: bool) -> None:
        """Send the spans of some requests, and those of batches that are complete."""
        requests = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
        spans: list[Span] = []
        for event in requests:
            of_request = spans_of_request(event)
            self._batches.note(event, of_request)
            spans += of_request
        spans += self._batches.take(also_fresh=is_last)
        if spans:
            self._note(len(requests), is_sent=self._export(spans))

    def _export(self, spans: Sequence[Span]) -> bool:
        since_ns = time.time_ns() - time.monotonic_ns()  # the clock may have been set meanwhile
        readable = [_readable(span, self._resource, since_ns) for span in spans]
        try:
            return self._exporter.export(readable) is SpanExportResult.SUCCESS
        except Exception as error:
            # Whatever the library raises, later requests must be sent.
            log.error("traces_failed", reason=repr(error))
            return False

    def _note(self, requests: int, *, is_sent: bool) -> None:
        """Write a line when the collector goes away, and one when it is back."""
        if not is_sent:
            self._lost_requests += requests
        if is_sent == self._is_failing:
            self._is_failing = not is_sent
            if is_sent:
                log.warning("traces_sent_again", lost_requests=self._lost_requests)
                self._lost_requests = 0
            else:
                log.error("traces_not_sent", about="the collector at PETERREC_TRACE_ENDPOINT")


def _readable(span: Span, resource: Resource, since_ns: int) -> ReadableSpan:
    """Return a span as OpenTelemetry has it. ``since_ns`` is the Unix time of the clock's zero."""
    parent = span.parent_id and _context(span.trace_id, span.parent_id, is_remote=span.is_server)
    return ReadableSpan(
        name=span.name,
        context=_context(span.trace_id, span.span_id),
        parent=parent or None,
        resource=resource,
        attributes=span.about,
        links=[Link(_context(each.trace_id, each.span_id), each.about) for each in span.links],
        kind=SpanKind.SERVER if span.is_server else SpanKind.INTERNAL,
        instrumentation_scope=SCOPE,
        status=Status(StatusCode.ERROR if span.is_failed else StatusCode.UNSET),
        start_time=since_ns + round(span.began_at * 1e9),
        end_time=since_ns + round(max(span.began_at, span.ended_at) * 1e9),
    )


def _context(trace_id: bytes, span_id: bytes, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(
        int.from_bytes(trace_id, "big"),
        int.from_bytes(span_id, "big"),
        is_remote,
        TraceFlags(TraceFlags.SAMPLED),
    )
