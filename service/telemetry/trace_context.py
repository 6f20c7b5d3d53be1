"""Which requests are traced, and the ids that a trace is continued by (W3C Trace Context)."""

import random
import re
import time
from dataclasses import dataclass

MOST_PER_S = 50.0
"""Traces that one worker begins per second. A caller may ask for a trace in each of its requests;
the spans of one cost the supervisor 0.2 ms."""

BURST = 100.0
"""Traces that a worker may begin at once after a pause."""

# Later versions may have further fields after these.
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")

_random = random.Random()  # noqa: S311  # ids are no secrets


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A request's place in its trace. ``parent_id`` is empty if the trace begins here."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Parent:
    """What a caller said of its own span."""

    trace_id: bytes
    span_id: bytes
    is_sampled: bool


def read_traceparent(value: bytes) -> Parent | None:
    """Read the header ``traceparent``; None if it is absent or not valid, as the standard says."""
    found = _TRACEPARENT.match(value) if value else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    is_valid = version != b"ff" and not (version == b"00" and more)
    if not is_valid or not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    sampled = bool(int(flags, 16) & 1)
    return Parent(bytes.fromhex(trace_id.decode()), bytes.fromhex(span_id.decode()), sampled)


class Sampler:
    """Chooses the requests that are traced, at most so many per second.

    A caller's own choice is followed. Of requests that bring none, ``share`` are traced.
    """

    def __init__(self, share: float, most_per_s: float = MOST_PER_S, burst: float = BURST) -> None:
        self._share = share
        self._most_per_s = most_per_s
        self._burst = self._left = burst
        self._at = time.monotonic()
        self.left_out = 0  # requests that should have been traced, since the last look

    def choose(self, traceparent: bytes, now: float) -> TraceContext | None:
        """Return the context of a request that is traced, before it runs."""
        parent = read_traceparent(traceparent)
        is_wanted = parent.is_sampled if parent else _random.random() < self._share
        return self._begin(parent, now) if is_wanted else None

    def choose_late(self, traceparent: bytes, now: float) -> TraceContext | None:
        """Return the context of a request that turned out to be worth it.

        One whose caller has said that it is not traced stays so.
        """
        parent = read_traceparent(traceparent)
        return None if parent else self._begin(None, now)

    def _begin(self, parent: Parent | None, now: float) -> TraceContext | None:
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._most_per_s)
        self._at = now
        if self._left < 1:
            self.left_out += 1
            return None
        self._left -= 1
        span_id = _random_id(8)
        if parent is None:
            return TraceContext(_random_id(16), span_id)
        return TraceContext(parent.trace_id, span_id, parent.span_id)


def _random_id(size_bytes: int) -> bytes:
    """Return random bytes that are not all zero, which would be no id."""
    return (_random.getrandbits(8 * size_bytes) or 1).to_bytes(size_bytes, "big")
