"""What a sample of a task's answers says about them: drift from the training, and diversity.

One ``TaskQuality`` holds a few kilobytes, whatever happened: counts that fade, and the last
rankings.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from peterrec.service.protocol.answer_prior import AnswerPrior
from peterrec.service.telemetry.events import AnswersSampled

HALF_LIFE_S = 1800.0
"""Seconds after which an answer counts half: an hour of traffic has three quarters of a drift."""

RANKINGS = 256
"""The last rankings, each of another history, whose diversity is told."""

FEWEST_RANKINGS = 20
"""Rankings below which their diversity says nothing."""

SMOOTHING = 0.5
"""Added to each count, so that a group without a user has a logarithm (Jeffreys' prior)."""

CERTAINTY = 1.96
"""Standard errors below the estimate at which the lower bound lies: 95 % of both sides."""


@dataclass(frozen=True, slots=True)
class Drift:
    """The population stability index of what is answered, without bias, and its lower bound."""

    index: float
    low: float


def drift_of(expected: Sequence[float], seen: Sequence[float], size: float) -> Drift | None:
    """Compare counts with those of the training; None without answers or with a single group.

    ``size`` is the number of equally weighted answers that ``seen`` is worth. The index is the sum
    over groups of ``(p - q) ln(p / q)``. Where nothing has drifted, it is not 0 but on average
    ``(K - 1)(1/n + 1/m)`` (Yurdakul, Statistical Properties of Population Stability Index, 2018),
    which is subtracted. The variance is that of the delta method for two multinomial samples, plus
    that of the index without a drift, ``2 (K - 1)(1/n + 1/m)^2``.
    """
    total = sum(seen)
    if len(expected) < 2 or total <= 0:
        return None
    users = sum(expected)
    q = _shares(expected, users)
    p = _shares([count * size / total for count in seen], size)
    noise = 1 / size + 1 / users
    bias = (len(q) - 1) * noise
    index = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    by_p = [math.log(a / b) + 1 - b / a for a, b in zip(p, q, strict=True)]
    by_q = [math.log(b / a) + 1 - a / b for a, b in zip(p, q, strict=True)]
    variance = _variance(p, by_p) / size + _variance(q, by_q) / users
    error = math.sqrt(variance + 2 * (len(q) - 1) * noise**2)
    unbiased = index - bias
    return Drift(max(0.0, unbiased), max(0.0, unbiased - CERTAINTY * error))


def _shares(counts: Sequence[float], total: float) -> list[float]:
    whole = total + SMOOTHING * len(counts)
    return [(count + SMOOTHING) / whole for count in counts]


def _variance(shares: Sequence[float], slopes: Sequence[float]) -> float:
    mean = sum(share * slope for share, slope in zip(shares, slopes, strict=True))
    return sum(share * (slope - mean) ** 2 for share, slope in zip(shares, slopes, strict=True))


@dataclass(slots=True)
class FadingCounts:
    """Counts of groups in which old answers weigh less; ``size`` is what they are worth."""

    counts: list[float]
    weight: float = 0.0
    squares: float = 0.0

    def fade(self, factor: float) -> None:
        """Let everything so far weigh less."""
        self.counts = [count * factor for count in self.counts]
        self.weight *= factor
        self.squares *= factor * factor

    def add(self, counts: Sequence[int]) -> None:
        """Add answers that weigh 1."""
        self.counts = [old + new for old, new in zip(self.counts, counts, strict=True)]
        self.weight += sum(counts)
        self.squares += sum(counts)

    @property
    def size(self) -> float:
        """The number of equally weighted answers that have as much information."""
        return self.weight**2 / self.squares if self.squares else 0.0


@dataclass(slots=True)
class TaskQuality:
    """What was seen of one version of a task; times are in monotonic seconds."""

    version: int
    prior: AnswerPrior | None
    changed_at: float
    outputs: FadingCounts
    scores: FadingCounts
    answers: float = 0.0
    cold: float = 0.0
    items: float = 0.0
    unknown_items: float = 0.0
    catalog: int = 0
    rankings: deque[tuple[int, int, Sequence[int]]] = field(
        default_factory=lambda: deque(maxlen=RANKINGS)
    )

    @classmethod
    def begin(cls, event: AnswersSampled, now: float) -> "TaskQuality":
        """Begin with a version of which nothing was seen."""
        prior = AnswerPrior.unpacked(event.prior)
        outputs, scores = (0, 0) if prior is None else (len(prior.outputs), len(prior.scores))
        return cls(
            event.version, prior, now, FadingCounts([0.0] * outputs), FadingCounts([0.0] * scores)
        )

    def add(self, event: AnswersSampled, now: float) -> None:
        """Add what a worker saw."""
        factor = 0.5 ** ((now - self.changed_at) / HALF_LIFE_S)
        self.changed_at = now
        for counts, seen in ((self.outputs, event.outputs), (self.scores, event.scores)):
            counts.fade(factor)
            if len(seen) == len(counts.counts):
                counts.add(seen)
        self.answers = self.answers * factor + event.answers
        self.cold = self.cold * factor + event.cold
        self.items = self.items * factor + event.items
        self.unknown_items = self.unknown_items * factor + event.unknown_items
        self.catalog = event.catalog
        width = len(event.listed) // len(event.lists) if event.lists else 0
        for at, pair in enumerate(zip(event.histories, event.lists, strict=True)):
            self.rankings.append((*pair, event.listed[at * width : (at + 1) * width]))

    def drifts(self) -> dict[str, Drift | None]:
        """Return the drift of what is answered, by what is compared."""
        if self.prior is None:
            return {}
        return {
            "outputs": drift_of(self.prior.outputs, self.outputs.counts, self.outputs.size),
            "scores": drift_of(self.prior.scores, self.scores.counts, self.scores.size),
        }

    def shares(self) -> dict[str, float | None]:
        """Return shares of answers, items and rankings by name; None where they say nothing."""
        different = {history: (ranking, items) for history, ranking, items in self.rankings}
        found = len(different)
        enough = found >= FEWEST_RANKINGS
        items = {item for _, listed in different.values() for item in listed}
        return {
            "cold": self.cold / self.answers if self.answers else None,
            "unknown_items": self.unknown_items / self.items if self.items else None,
            "distinct_lists": len({one for one, _ in different.values()}) / found
            if enough
            else None,
            "catalog": min(1.0, len(items) / self.catalog) if enough and self.catalog else None,
        }
