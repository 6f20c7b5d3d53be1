"""Counts a worker's rows by the versions of a task's traffic; sums go to the device process."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from peterrec.model.errors import Category, PeterRecError
from peterrec.service.errors import BundleGone, BundleNotReady
from peterrec.service.predict.kinds import Prediction, divergence
from peterrec.service.protocol.messages import TrafficSeen, VersionSeen
from peterrec.service.protocol.served_task import Role, ServedTask, Split

SEND_INTERVAL_S = 0.2
"""Seconds between the first counted row and the message with its sums."""

BUCKET_RATIO = 1.02
"""Upper bound of a latency bucket divided by its lower bound: percentiles are exact within 1 %."""

_LOG_RATIO = math.log(BUCKET_RATIO)
SHORTEST_MS = 1e-3
"""Milliseconds: shorter latencies are counted as this one, so that the logarithm exists."""


def bucket_of(latency_ms: float) -> int:
    """The bucket that a latency is counted in."""
    return math.ceil(math.log(max(latency_ms, SHORTEST_MS)) / _LOG_RATIO)


def latency_of(bucket: int) -> float:
    """The latency in ms that a bucket stands for: its middle."""
    return 2 * BUCKET_RATIO**bucket / (1 + BUCKET_RATIO)


def is_fault(error: PeterRecError) -> bool:
    """True if the version may be to blame, and not the caller.

    A deadline that passed may also be due to the load; a guard errs on the safe side.
    """
    of_bundle = isinstance(error, BundleGone | BundleNotReady)
    return of_bundle or error.category in {Category.INTERNAL, Category.DEADLINE}


@dataclass(slots=True)
class Tally:
    """Sums over rows of one version in one role."""

    requests: int = 0
    errors: int = 0
    latencies: Counter[int] = field(default_factory=Counter)
    compared: int = 0
    divergence: float = 0.0

    def count(self, latency_s: float, *, is_error: bool, diverged: float | None) -> None:
        """Add a row; ``diverged`` is None if prod has no answer to compare it with."""
        self.requests += 1
        self.errors += is_error
        self.latencies[bucket_of(latency_s * 1000)] += 1
        if diverged is not None:
            self.compared += 1
            self.divergence += diverged

    def add(self, seen: VersionSeen) -> None:
        """Add the sums of a worker."""
        self.requests += seen.requests
        self.errors += seen.errors
        self.latencies.update(seen.latencies)
        self.compared += seen.compared
        self.divergence += seen.divergence

    def merge(self, other: "Tally") -> None:
        """Add another tally."""
        self.requests += other.requests
        self.errors += other.errors
        self.latencies.update(other.latencies)
        self.compared += other.compared
        self.divergence += other.divergence

    def p99_ms(self) -> float:
        """The latency that one in a hundred rows exceeds; 0 without rows."""
        left = math.ceil(0.99 * self.requests)
        for bucket in sorted(self.latencies):
            left -= self.latencies[bucket]
            if left <= 0:
                return latency_of(bucket)
        return 0.0

    def mean_divergence(self) -> float | None:
        """Mean divergence of the rows that prod answered too; None if there were none."""
        return self.divergence / self.compared if self.compared else None


Tallies = dict[tuple[str, Role], Tally]
"""Tallies by digest and role."""


class TrafficObserver:
    """Sums up rows on the event loop, and sends the sums a few times a second if there are any."""

    def __init__(self, send: Callable[[TrafficSeen], None]) -> None:
        self._send = send
        self._sums: dict[tuple[str, str, int], Tallies] = {}

    def count(
        self,
        split: Split,
        by: ServedTask,
        outcome: Prediction | PeterRecError,
        latency_s: float,
        prods: Prediction | PeterRecError | None = None,
    ) -> None:
        """Count a version's outcome, compared with prod's if there is one.

        A refusal that the caller has caused is not counted.
        """
        is_error = isinstance(outcome, PeterRecError)
        if isinstance(outcome, PeterRecError) and not is_fault(outcome):
            return
        diverged = None
        if isinstance(outcome, Prediction) and isinstance(prods, Prediction):
            diverged = divergence(outcome, prods)
        if not self._sums:
            asyncio.get_running_loop().call_later(SEND_INTERVAL_S, self._send_sums)
        tallies = self._sums.setdefault((*split.ref, split.revision), {})
        tally = tallies.setdefault((by.bundle.digest, by.role), Tally())
        tally.count(latency_s, is_error=is_error, diverged=diverged)

    def _send_sums(self) -> None:
        sums, self._sums = self._sums, {}
        for (tenant, task, revision), tallies in sums.items():
            self._send(TrafficSeen(tenant, task, revision, _seen(tallies)))


def _seen(tallies: Mapping[tuple[str, Role], Tally]) -> list[VersionSeen]:
    return [
        VersionSeen(
            digest,
            role,
            tally.requests,
            tally.errors,
            dict(tally.latencies),
            tally.compared,
            tally.divergence,
        )
        for (digest, role), tally in tallies.items()
    ]
