"""Sums over the rows of one version in one role: workers fill them, the guard adds them up."""

import math
from collections import Counter
from dataclasses import dataclass, field

from peterrec.service.protocol.messages import VersionSeen
from peterrec.service.protocol.served_task import Role

BUCKET_RATIO = 1.02
"""Ratio of the bounds of a latency bucket: a percentile is exact within 1 %."""

_LOG_RATIO = math.log(BUCKET_RATIO)

SHORTEST_MS = 1e-3
"""Shorter latencies, in milliseconds, are counted as this one, since zero has no logarithm."""


def bucket_of(latency_ms: float) -> int:
    """Return the number of the bucket that a latency is counted in."""
    return math.ceil(math.log(max(latency_ms, SHORTEST_MS)) / _LOG_RATIO)


def latency_of(bucket: int) -> float:
    """Return the latency in milliseconds that a bucket stands for: its middle."""
    return 2 * BUCKET_RATIO**bucket / (1 + BUCKET_RATIO)


@dataclass(slots=True)
class Tally:
    """Counts of rows and errors, latencies by bucket, and the divergence from prod's answers.

    ``divergence`` is a sum over the ``compared`` rows, which prod answered too.
    """

    requests: int = 0
    errors: int = 0
    latencies: Counter[int] = field(default_factory=Counter)
    compared: int = 0
    divergence: float = 0.0

    def count(self, latency_s: float, *, is_error: bool, diverged: float | None) -> None:
        """Add a row; ``diverged`` is None if prod did not answer it too."""
        self.requests += 1
        self.errors += is_error
        self.latencies[bucket_of(latency_s * 1000)] += 1
        if diverged is not None:
            self.compared += 1
            self.divergence += diverged

    def add(self, more: "VersionSeen | Tally") -> None:
        """Add the sums of a worker's message or of another tally."""
        self.requests += more.requests
        self.errors += more.errors
        self.latencies.update(more.latencies)
        self.compared += more.compared
        self.divergence += more.divergence

    def seen(self, digest: str, role: Role) -> VersionSeen:
        """Return the sums as the message that a worker sends of one version."""
        return VersionSeen(
            digest,
            role,
            self.requests,
            self.errors,
            dict(self.latencies),
            self.compared,
            self.divergence,
        )

    def p99_ms(self) -> float:
        """Return the latency that one in a hundred rows exceeds; 0 without rows."""
        left = math.ceil(0.99 * self.requests)
        for bucket in sorted(self.latencies):
            left -= self.latencies[bucket]
            if left <= 0:
                return latency_of(bucket)
        return 0.0

    def mean_divergence(self) -> float | None:
        """Return the mean over the rows that prod answered too; None if there were none."""
        return self.divergence / self.compared if self.compared else None


Tallies = dict[tuple[str, Role], Tally]
"""Tallies by digest and role."""
