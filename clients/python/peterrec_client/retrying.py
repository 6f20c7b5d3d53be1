"""Decides when a failed attempt is repeated, and after how long. Both clients use it."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Generic

import msgspec

from peterrec_client.call import Call, Lost, Outcome, Repeat, Reply, T
from peterrec_client.errors import not_understood

SHORTEST_ATTEMPT_S = 0.001
"""Seconds that an attempt gets at least; HTTP timeouts can't be zero."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to try again, and how long to wait before it.

    ``attempts`` includes the first one. Waits double from ``first_wait_s`` up to ``max_wait_s``;
    each is shortened at random, at most by half. The time of a ``Retry-After`` is added in full.

    All calls of a client share a budget: further attempts may be ``budget_share`` of all calls, and
    ``budget_reserve`` beside them. So a server that is down or overloaded is not asked several
    times as often as one that is well.
    """

    attempts: int = 4
    first_wait_s: float = 0.1
    max_wait_s: float = 5.0
    budget_share: float = 0.2
    budget_reserve: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}, at least 1 is needed")
        if self.budget_share < 0 or self.budget_reserve < 0:
            raise ValueError("a budget is not negative")

    def wait_s(self, attempt: int, asked_s: float) -> float:
        """Seconds between the failure of ``attempt`` (counted from 1) and the next attempt."""
        longest = min(self.max_wait_s, self.first_wait_s * 2.0 ** (attempt - 1))
        spread = random.uniform(0.5, 1.0)  # noqa: S311  # no secret
        return asked_s + longest * spread


@dataclass(frozen=True, slots=True)
class Wait:
    """Try again after this many seconds."""

    seconds: float


class RetryBudget:
    """Counts the further attempts that the calls of a client may make. Threads may share it."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._share = policy.budget_share
        self._reserve = policy.budget_reserve
        self._left = policy.budget_reserve
        self._lock = threading.Lock()

    def note_call(self) -> None:
        """Count a call, which earns a part of a further attempt."""
        with self._lock:
            self._left = min(self._reserve, self._left + self._share)

    def take(self) -> bool:
        """Take one further attempt; False if none is left."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


class Exchange(Generic[T]):
    """All attempts at one call: how long the next one may take, and what its outcome means."""

    def __init__(
        self,
        call: Call[T],
        policy: RetryPolicy,
        timeout_s: float,
        clock: Callable[[], float],
        budget: RetryBudget,
    ) -> None:
        budget.note_call()
        self._call = call
        self._policy = policy
        self._budget = budget
        self._clock = clock
        self._ends_at = clock() + timeout_s
        self._attempts = 0

    def begin(self) -> float:
        """Start an attempt and return the seconds left for it."""
        self._attempts += 1
        return max(self._ends_at - self._clock(), SHORTEST_ATTEMPT_S)

    def judge(self, outcome: Outcome) -> T | Wait:
        """Return the call's result or how long to wait for another attempt, or raise the error."""
        if isinstance(outcome, Reply) and self._is_answer(outcome.status):
            return self._read(outcome)
        wait_s = self._policy.wait_s(self._attempts, retry_after_s(outcome))
        has_time = self._clock() + wait_s < self._ends_at
        may_repeat = self._attempts < self._policy.attempts and self._may_repeat(outcome)
        if may_repeat and has_time and self._budget.take():
            return Wait(wait_s)
        raise outcome.error() from outcome.cause

    def _is_answer(self, status: int) -> bool:
        return 200 <= status < 300 or status in self._call.also_answers

    def _read(self, reply: Reply) -> T:
        try:
            return self._call.read(reply.body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            what = f"{self._call.method} {self._call.path}"
            raise not_understood(what, error, reply.status) from error

    def _may_repeat(self, outcome: Outcome) -> bool:
        if not outcome.is_repeatable:
            return False
        if self._call.repeat is Repeat.IF_UNSENT:
            return isinstance(outcome, Lost) and outcome.is_unsent
        return self._call.repeat is Repeat.ALWAYS


def retry_after_s(outcome: Outcome) -> float:
    """Seconds that an answer asks the client to wait; 0 without a readable ``Retry-After``.

    ``Retry-After`` is a number of seconds or a date. A date is compared with the answer's own Date
    header, so that the clocks of the two machines need not agree.
    """
    if isinstance(outcome, Lost):
        return 0.0
    text = outcome.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    moment, now = _date(text), _date(outcome.headers.get("date", ""))
    if moment is None:
        return 0.0
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
