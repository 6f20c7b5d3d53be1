"""When a failed attempt is followed by another, and after how long: shared by both clients."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Generic

import msgspec

from peterrec_client.call import Call, Lost, Outcome, Repeat, Reply, T
from peterrec_client.errors import not_understood

SHORTEST_ATTEMPT_S = 0.001


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how slowly to try again.

    ``attempts`` counts the first one. Waits double from ``first_wait_s`` to ``max_wait_s``, each
    shortened at random to as little as half; a ``Retry-After`` is waited for in full first.
    """

    attempts: int = 4
    first_wait_s: float = 0.1
    max_wait_s: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}, at least 1 is needed")

    def wait_s(self, attempt: int, asked_s: float) -> float:
        """Seconds between the failure of ``attempt`` (from 1) and the next."""
        longest = min(self.max_wait_s, self.first_wait_s * 2.0 ** (attempt - 1))
        spread = random.uniform(0.5, 1.0)  # noqa: S311  # no secret
        return asked_s + longest * spread


@dataclass(frozen=True, slots=True)
class Wait:
    """Try again after so many seconds."""

    seconds: float


class Exchange(Generic[T]):
    """All attempts at one call: tells how long the next may take and judges what came of it."""

    def __init__(
        self, call: Call[T], policy: RetryPolicy, timeout_s: float, clock: Callable[[], float]
    ) -> None:
        self._call = call
        self._policy = policy
        self._clock = clock
        self._ends_at = clock() + timeout_s
        self._attempts = 0

    def begin(self) -> float:
        """Start an attempt; gives the seconds left for it."""
        self._attempts += 1
        return max(self._ends_at - self._clock(), SHORTEST_ATTEMPT_S)

    def judge(self, outcome: Outcome) -> T | Wait:
        """The call's result, or how long to wait for another attempt; else raises the error."""
        if isinstance(outcome, Reply) and self._is_answer(outcome.status):
            return self._read(outcome)
        wait_s = self._policy.wait_s(self._attempts, retry_after_s(outcome))
        has_time = self._clock() + wait_s < self._ends_at
        if self._attempts < self._policy.attempts and has_time and self._may_repeat(outcome):
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
    """Seconds that an answer asks to wait, 0 if it does not or can't be read.

    ``Retry-After`` is a number of seconds, or a date: that is compared with the answer's own Date,
    so that the clocks of the two machines need not agree.
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
