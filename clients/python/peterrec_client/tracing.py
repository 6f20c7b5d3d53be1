"""Traces of the calls, if the program that makes them uses OpenTelemetry.

Nothing is imported for it: a program that has spans has imported OpenTelemetry already.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def traced(method: str, path: str) -> Iterator[Mapping[str, str]]:
    """Make a span of one attempt, if there is a tracer; yields the headers that continue it."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        yield {}
        return
    with api.get_tracer("peterrec_client").start_as_current_span(
        f"peterrec {method}", kind=api.SpanKind.CLIENT, attributes={"url.path": path}
    ) as span:
        context = span.get_span_context()
        yield {"traceparent": _traceparent(context)} if context.is_valid else {}


def _traceparent(context: Any) -> str:  # Any: OpenTelemetry may not be installed
    """Return a span's context as W3C Trace Context writes it."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
