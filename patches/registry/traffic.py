"""The split of a task's requests: weighted canaries, shadows, and a guard that watches both."""

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum

from peterrec.patches.errors import InvalidTraffic
from peterrec.patches.identity import Digest, TaskRef

PROD = "prod"
"""The alias that answers every request that no canary answers."""

MAX_CANARIES = 8
"""Most canaries of one task."""

MAX_SHADOWS = 4
"""Most shadows of one task. Each shadow adds a row to every request."""

MAX_WEIGHT = 1_000_000
"""Largest weight; weights are relative to each other."""

MAX_WINDOW_S = 86_400
"""Longest window over which a guard judges: one day."""


def _require(is_valid: bool, message: str, hint: str = "") -> None:
    if not is_valid:
        raise InvalidTraffic(message, hint)


@dataclass(frozen=True, slots=True)
class Canary:
    """A version that answers a share of the users: its weight divided by the sum of all weights."""

    digest: Digest
    weight: int

    def __post_init__(self) -> None:
        _require(
            0 <= self.weight <= MAX_WEIGHT, f"weight {self.weight} is outside 0..{MAX_WEIGHT}."
        )


class GuardReason(StrEnum):
    """The bound of a guard that was exceeded."""

    ERROR_SHARE = "error_share"
    P99_MS = "p99_ms"
    DIVERGENCE = "divergence"
    HIT_DROP = "hit_drop"


@dataclass(frozen=True, slots=True)
class Observed:
    """What a replica measured of one canary or shadow version within the guard's window.

    ``divergence`` is how far its answers differ from prod's, from 0 to 1: the mean over the rows
    that prod answered too; None if there were none. ``hit_drop`` is how much less often than prod's
    its answers were right, by ``outcomes`` that callers told of it, or of prod if these are fewer.
    """

    digest: Digest
    requests: int
    errors: int
    p99_ms: float
    divergence: float | None = None
    hit_drop: float | None = None
    outcomes: int = 0


@dataclass(frozen=True, slots=True)
class Guard:
    """Bounds that a canary or shadow must not exceed; None sets no bound.

    A version is judged once it had ``min_requests`` requests within the last ``window_s`` seconds;
    by ``max_hit_drop`` once as many outcomes were told of it, and of prod.
    """

    max_error_share: float | None = None
    max_p99_ms: float | None = None
    max_divergence: float | None = None
    max_hit_drop: float | None = None
    min_requests: int = 100
    window_s: int = 300

    def __post_init__(self) -> None:
        for name in ("max_error_share", "max_divergence", "max_hit_drop"):
            share = getattr(self, name)
            _require(share is None or 0 <= share <= 1, f"{name} {share} is outside 0..1.")
        latency = self.max_p99_ms
        is_latency = latency is None or (math.isfinite(latency) and latency > 0)
        _require(is_latency, f"max_p99_ms {latency} is not above 0.")
        _require(self.min_requests >= 1, f"min_requests {self.min_requests} is not above 0.")
        _require(
            1 <= self.window_s <= MAX_WINDOW_S,
            f"window_s {self.window_s} is outside 1..{MAX_WINDOW_S}.",
        )
        bounds = (self.max_error_share, self.max_p99_ms, self.max_divergence, self.max_hit_drop)
        _require(any(bound is not None for bound in bounds), "the guard has no bound.")

    def broken_by(self, observed: Observed) -> GuardReason | None:
        """Return the first bound that is exceeded; None if there is none, or too few requests."""
        found: dict[GuardReason, tuple[float | None, float | None]] = {}
        if observed.requests >= self.min_requests:
            share = observed.errors / observed.requests
            found[GuardReason.ERROR_SHARE] = (share, self.max_error_share)
            found[GuardReason.P99_MS] = (observed.p99_ms, self.max_p99_ms)
            found[GuardReason.DIVERGENCE] = (observed.divergence, self.max_divergence)
        if observed.outcomes >= self.min_requests:
            found[GuardReason.HIT_DROP] = (observed.hit_drop, self.max_hit_drop)
        broken = (
            reason
            for reason, (value, bound) in found.items()
            if value is not None and bound is not None and not value <= bound
        )
        return next(broken, None)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The split of the requests that do not ask for a certain version.

    ``prod_weight`` is the weight of the version that the alias prod names. Shadows compute every
    answer as well, but their answers are never returned. A version may be both canary and shadow.
    """

    prod_weight: int = 0
    canary: tuple[Canary, ...] = ()
    shadow: tuple[Digest, ...] = ()
    guard: Guard | None = None

    def __post_init__(self) -> None:
        _require(
            0 <= self.prod_weight <= MAX_WEIGHT,
            f"prod_weight {self.prod_weight} is outside 0..{MAX_WEIGHT}.",
        )
        _require(
            bool(self.canary or self.shadow),
            "there is neither a canary nor a shadow.",
            "Clear the traffic instead, if prod is to answer everything.",
        )
        _require(
            len(self.canary) <= MAX_CANARIES,
            f"{len(self.canary)} canaries, at most {MAX_CANARIES} are possible.",
        )
        _require(
            len(self.shadow) <= MAX_SHADOWS,
            f"{len(self.shadow)} shadows, at most {MAX_SHADOWS} are possible.",
        )
        canaries = [entry.digest for entry in self.canary]
        for what, digests in (("canary", canaries), ("shadow", list(self.shadow))):
            _require(len(set(digests)) == len(digests), f"a {what} version occurs twice.")
        total = self.prod_weight + sum(entry.weight for entry in self.canary)
        _require(
            total > 0,
            "the weights of prod and of the canaries add up to 0.",
            "Give prod_weight, the canaries' weights, or both.",
        )

    def digests(self) -> tuple[Digest, ...]:
        """Return the versions that take part in addition to prod, each once, canaries first."""
        canaries = [entry.digest for entry in self.canary]
        return tuple(dict.fromkeys([*canaries, *self.shadow]))

    def choose(self, ref: TaskRef, user: bytes) -> Digest | None:
        """Return the canary that answers this user; None means prod.

        This is weighted rendezvous hashing: a user keeps its version while the weights stay, and a
        changed weight only moves users to or from its version. Different versions get different
        users first.
        """
        scores = {
            entry.digest: entry.weight / -math.log(_uniform(ref, entry.digest, user))
            for entry in self.canary
        }
        prod = self.prod_weight / -math.log(_uniform(ref, PROD, user))
        best = max(scores, key=scores.__getitem__, default=None)
        return best if best is not None and scores[best] > prod else None


def _uniform(ref: TaskRef, choice: str, user: bytes) -> float:
    """Return a pseudo-random number in (0, 1) that depends on the arguments only."""
    key = f"{ref.tenant}/{ref.task}\n{choice}\n".encode() + user
    bits = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 12
    return (bits + 0.5) / (1 << 52)
