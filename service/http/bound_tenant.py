"""One tenant with quotas for requests: what it may do now, and the fields that say so.

Buckets and counts are shared by the workers of a replica (``service/protocol/quota_table.py``); the
follower shares them with other replicas. Nothing here waits for anybody.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from peterrec.service.errors import AtOnceExceeded, RateExceeded, TooManyRows
from peterrec.service.http.asgi import Header
from peterrec.service.protocol.quota_table import (
    Bucket,
    Cell,
    Leased,
    QuotaTable,
    ServedTenant,
)

GRAIN_S = 1e-6
"""Seconds that a bucket may lack for a token: less than a clock and a float can tell."""

POLICY = b"ratelimit-policy"
STATE = b"ratelimit"
"""The fields of draft-ietf-httpapi-ratelimit-headers-11, as lists of RFC 9651."""


class BoundTenant:
    """One tenant with quotas, as a worker finds it: the places of its numbers, and its fields."""

    def __init__(
        self,
        table: QuotaTable,
        cell: int,
        served: ServedTenant,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        assert served.slot is not None, "it has quotas"
        self._table = table
        self._clock = clock
        self._numbers = table.numbers
        self._start = table.start_of(served.slot)
        self._cell = cell = self._start + cell
        self._admitted = cell + Cell.REQUESTS  # sums here, since members of an enum cost 0.1 µs
        self._admitted_rows = cell + Cell.ROWS
        self._waiting = cell + Cell.WAITING_ROWS
        self._slot = served.slot
        self._served = served
        self._may_wait = served.waiting_rows
        has_rate, has_rows = served.requests_per_s is not None, served.rows_per_s is not None
        self._requests = self._start + Bucket.REQUESTS if has_rate else 0
        self._administration = self._start + Bucket.ADMINISTRATION if has_rate else 0
        self._rows = self._start + Bucket.ROWS if has_rows else 0
        self.predict_policy = _policy(
            ("requests", "requests", served.requests_per_s, True),
            ("rows", "rows", served.rows_per_s, True),
            ("waiting_rows", "rows", served.waiting_rows, False),
        )
        self.call_policy = _policy(
            ("administration", "requests", served.requests_per_s, True),
            ("streams", "concurrent-requests", served.streams, False),
        )

    # Predictions

    def draw_request(self) -> None:
        """Take a token for a prediction, if there is one, and at least one for its rows.

        How many rows it has is known only after its body was decoded (``draw_rows``).
        """
        numbers, now = self._numbers, self._clock()
        if at := self._rows:
            wait_s = numbers[at + 2] - now - numbers[at + 1]
            if wait_s > GRAIN_S:
                numbers[self._cell + Cell.REFUSED_BY_ROWS] += 1
                raise self._rate_exceeded("rows_per_s", wait_s, self.predict_fields())
        if at := self._requests:
            ahead_s = numbers[at + 2] - now
            wait_s = ahead_s - numbers[at + 1]
            if wait_s > GRAIN_S:
                numbers[self._cell + Cell.REFUSED_REQUESTS] += 1
                raise self._rate_exceeded("requests_per_s", wait_s, self.predict_fields())
            numbers[at + 2] = now + (ahead_s if ahead_s > 0.0 else 0.0) + numbers[at]
        numbers[self._admitted] += 1.0

    def draw_rows(self, rows: int) -> None:
        """Take the tokens of a prediction's rows, and let them wait until ``release``.

        A bucket that has a token gives as many as are asked for; what it then lacks has to be made
        up for before the next call. A refused call gets the token for its request back.
        """
        numbers, now = self._numbers, self._clock()
        if at := self._rows:
            ahead_s = numbers[at + 2] - now
            wait_s = ahead_s - numbers[at + 1]
            if wait_s > GRAIN_S:
                self._refuse_rows(Cell.REFUSED_BY_ROWS)
                raise self._rate_exceeded("rows_per_s", wait_s)
        if self._may_wait is not None:
            self._let_wait(rows, self._may_wait)
        if at:
            numbers[at + 2] = now + (ahead_s if ahead_s > 0.0 else 0.0) + rows * numbers[at]
        numbers[self._admitted_rows] += rows
        numbers[self._waiting] += rows

    def release(self, rows: int) -> None:
        """Note that rows of ``draw_rows`` do not wait any more."""
        self._numbers[self._waiting] -= rows

    def charge_rows(self, rows: int) -> None:
        """Take the tokens of rows that have run already, as those of explanations."""
        numbers, now = self._numbers, self._clock()
        if self._rows:
            ahead_s = max(numbers[self._rows + 2] - now, 0.0)
            numbers[self._rows + 2] = now + ahead_s + rows * numbers[self._rows]
        numbers[self._cell + Cell.ROWS] += rows

    def _let_wait(self, rows: int, limit: int) -> None:
        if rows > limit:
            self._refuse_rows(Cell.REFUSED_BY_WAITING_ROWS)
            raise TooManyRows(
                f"the call has {rows} rows, and the tenant may have {limit} waiting.",
                hint="Split it, or ask the operator for a larger quota.",
            )
        waiting = self._table.sum_of(self._slot, Cell.WAITING_ROWS)
        if waiting > 0 and waiting + rows > self._numbers[self._start + Leased.WAITING_ROWS]:
            self._refuse_rows(Cell.REFUSED_BY_WAITING_ROWS)
            raise AtOnceExceeded(self._served.tenant, "waiting_rows", limit, int(waiting))

    def give_back(self, rows: int) -> None:
        """Return the tokens of a prediction and of its rows."""
        numbers = self._numbers
        for at, tokens in ((self._requests, 1), (self._rows, rows)):
            if at:
                numbers[at + 2] -= tokens * numbers[at]
        numbers[self._admitted] -= 1.0
        numbers[self._admitted_rows] -= rows

    def _refuse_rows(self, by: Cell) -> None:
        self.give_back(0)
        self._numbers[self._cell + by] += 1

    # Other calls

    def draw_call(self) -> None:
        """Take a token for a call that is no prediction, if there is one."""
        numbers, now = self._numbers, self._clock()
        if at := self._administration:
            ahead_s = numbers[at + 2] - now
            wait_s = ahead_s - numbers[at + 1]
            if wait_s > GRAIN_S:
                numbers[self._cell + Cell.REFUSED_ADMINISTRATION] += 1
                raise self._rate_exceeded("requests_per_s", wait_s, self.call_fields())
            numbers[at + 2] = now + max(ahead_s, 0.0) + numbers[at]
        numbers[self._cell + Cell.ADMINISTRATION] += 1

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count a stream as long as it is open."""
        numbers, limit = self._numbers, self._served.streams
        if limit is not None and self._open_streams() >= limit:
            numbers[self._cell + Cell.REFUSED_STREAMS] += 1
            raise AtOnceExceeded(self._served.tenant, "streams", limit, int(self._open_streams()))
        numbers[self._cell + Cell.STREAMS] += 1
        try:
            yield
        finally:
            numbers[self._cell + Cell.STREAMS] -= 1

    def _open_streams(self) -> float:
        here = self._table.sum_of(self._slot, Cell.STREAMS)
        return here + self._numbers[self._start + Leased.STREAMS_ELSEWHERE]

    # Fields of answers

    def predict_fields(self) -> list[Header]:
        """Return the fields of a prediction's answer."""
        now, state = self._clock(), b""
        if self._requests:
            state = b'"requests";r=%d;t=%d' % self._state_of(self._requests, now)
        if self._rows:
            rows = b'"rows";r=%d;t=%d' % self._state_of(self._rows, now)
            state = b"%b, %b" % (state, rows) if state else rows
        if self._may_wait is not None:
            free = self._numbers[self._start + Leased.WAITING_ROWS]
            free -= self._table.sum_of(self._slot, Cell.WAITING_ROWS)
            waiting = b'"waiting_rows";r=%d' % max(0, free)
            state = b"%b, %b" % (state, waiting) if state else waiting
        return [(POLICY, self.predict_policy), (STATE, state)]

    def call_fields(self) -> list[Header]:
        """Return the fields of any other answer."""
        state = []
        if self._administration:
            left = self._state_of(self._administration, self._clock())
            state.append(b'"administration";r=%d;t=%d' % left)
        if self._served.streams is not None:
            free = max(0, self._served.streams - self._open_streams())
            state.append(b'"streams";r=%d' % free)
        return [(POLICY, self.call_policy), (STATE, b", ".join(state))]

    def _state_of(self, at: int, now: float) -> tuple[float, int]:
        """Return how many tokens there are, and the seconds for which no more can be used.

        Without any, that is the time until there is one, which ``Retry-After`` says as well.
        """
        numbers = self._numbers
        period_s = numbers[at]
        # a bucket that holds less than one token is filled for one: see ``set_rate``
        ahead_s = numbers[at + 2] - now
        spare_s = numbers[at + 1] + GRAIN_S - (ahead_s if ahead_s > 0.0 else 0.0)
        if spare_s >= 0.0:
            return 1.0 + spare_s / period_s, 1
        return 0, _whole(GRAIN_S - spare_s)

    def _rate_exceeded(
        self, quota: str, wait_s: float, fields: Sequence[Header] = ()
    ) -> RateExceeded:
        limit = getattr(self._served, quota)
        return RateExceeded(self._served.tenant, quota, limit, _whole(wait_s), fields)


def _whole(wait_s: float) -> int:
    """Return whole seconds that are not less, and at least one, as ``Retry-After`` needs."""
    return max(1, math.ceil(wait_s - GRAIN_S))


def _policy(*quotas: tuple[str, str, int | None, bool]) -> bytes:
    """Return the list of policies: name, unit, quota, and whether it is one per second."""
    items = [
        f'"{name}";q={limit}' + ("" if unit == "requests" else f';qu="{unit}"') + ";w=1" * is_rate
        for name, unit, limit, is_rate in quotas
        if limit is not None
    ]
    return ", ".join(items).encode()
