"""Metrics as functions of users' weights, and their intervals by the bootstrap over users.

A metric that can be computed for weighted users can be computed for a resample of them, in which a
user's weight is how often it was drawn (Efron 1979). All arithmetic is in float64.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

RESAMPLES = 1000
FEWEST_RESAMPLES = 200
"""Resamples for many users; their intervals are narrow, and a rough end is good enough."""

DRAWS = 100_000_000
"""Most users drawn in all resamples together: about two seconds."""

MOST_CELLS = 2_000_000_000
"""Numbers that a metric may read in all resamples; above it, it has no interval."""

SEED = 0
SHARE = 95
"""Percent of the resamples' values that an interval contains."""

FEWEST_USERS = 2

SMALLEST_WIDTH = 1e-12
"""Width of an interval, as a share of the value, that is not told from 0."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as a function of the weights [N] of its users; reads ``cells`` numbers a time.

    It is NaN where it is not defined, as the AUC of one class.
    """

    of: Callable[[Floats], float]
    cells: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric's value, and the interval that it would be in for most other samples of users.

    The ends are None where no interval can be told: of one user, of a metric that takes too long,
    and where all resamples agree, such as on two users who are both right.
    """

    value: float
    low: float | None = None
    high: float | None = None


def estimates(metrics: Mapping[str, Metric], users: int) -> dict[str, Estimate]:
    """Every metric of some users with its interval; equal users always give equal intervals.

    All metrics see the same resamples, so that a difference of two metrics is a metric, too. The
    interval is widened to its metric's value where that lies outside, as it can for biased ones.
    """
    values = {name: metric.of(np.ones(users)) for name, metric in metrics.items()}
    count = max(FEWEST_RESAMPLES, min(RESAMPLES, DRAWS // max(1, users)))
    cheap = {
        name: metric
        for name, metric in metrics.items()
        if users >= FEWEST_USERS and metric.cells * count <= MOST_CELLS
    }
    found: dict[str, list[float]] = {name: [] for name in cheap}
    for weights in _resamples(users, count) if cheap else ():
        for name, metric in cheap.items():
            found[name].append(metric.of(weights))
    return {name: _estimate(value, found.get(name, [])) for name, value in values.items()}


def _resamples(users: int, count: int) -> Iterator[Floats]:
    generator = np.random.default_rng(SEED)
    for _ in range(count):
        drawn = generator.integers(0, users, users)
        yield np.bincount(drawn, minlength=users).astype(np.float64)


def _estimate(value: float, resampled: list[float]) -> Estimate:
    finite = np.array([each for each in resampled if np.isfinite(each)])
    if not np.isfinite(value) or len(finite) < FEWEST_RESAMPLES // 2:
        return Estimate(value)
    outside = (100 - SHARE) / 2
    low, high = np.percentile(finite, [outside, 100 - outside]).tolist()
    if high - low <= SMALLEST_WIDTH * max(1.0, abs(value)):
        return Estimate(value)
    return Estimate(value, min(low, value), max(high, value))


def mean_of(numbers: Floats, counts: Floats | None = None) -> Metric:
    """The mean over users of a number [N], or of sums [N] over each user's ``counts`` [N]."""
    of = np.ones(len(numbers)) if counts is None else counts

    def mean(weights: Floats) -> float:
        return _ratio(float(weights @ numbers), float(weights @ of))

    return Metric(mean, 2 * len(numbers))


def difference(one: Metric, other: Metric) -> Metric:
    """How much larger one metric is than another of the same users."""
    return Metric(lambda weights: one.of(weights) - other.of(weights), one.cells + other.cells)


def macro_f1_of(predicted: Ints, targets: Ints, classes: int) -> Metric:
    """Mean F1 over the classes that occur among the predictions or the targets, both [N]."""
    is_hit = (predicted == targets).astype(np.float64)

    def macro_f1(weights: Floats) -> float:
        hits = np.bincount(targets, weights * is_hit, classes)
        chosen = np.bincount(predicted, weights, classes)
        present = np.bincount(targets, weights, classes)
        occurs = chosen + present > 0
        total = float(np.sum(2 * hits[occurs] / (chosen + present)[occurs]))
        return _ratio(total, float(occurs.sum()))

    return Metric(macro_f1, 4 * len(targets) + 6 * classes)


def auc_of(scores: Floats, is_positive: Bools, users: Ints | None = None) -> Metric:
    """Share of (positive, negative) pairs in the right order, ties counting half.

    ``scores`` and ``is_positive`` [M] belong to ``users`` [M]; None: one of each user.
    """
    own = np.arange(len(scores)) if users is None else users
    _, group = np.unique(scores, return_inverse=True)  # ties share a group
    groups = int(group.max(initial=-1)) + 1

    def auc(weights: Floats) -> float:
        each = weights[own]
        positive = np.bincount(group, each * is_positive, groups)
        negative = np.bincount(group, each * ~is_positive, groups)
        below = np.cumsum(negative) - negative
        pairs = float(positive.sum() * negative.sum())
        return _ratio(float(positive @ (below + negative / 2)), pairs)

    return Metric(auc, 6 * len(scores))


def explained_share_of(errors: Floats, targets: Floats) -> Metric:
    """Share of the variance of targets [N] that predictions with these errors [N] explain."""
    squares, centred = errors**2, targets - targets.mean()

    def explained(weights: Floats) -> float:
        mean = _ratio(float(weights @ centred), float(weights.sum()))
        spread = float(weights @ (centred - mean) ** 2)
        return 1 - _ratio(float(weights @ squares), spread)

    return Metric(explained, 4 * len(errors))


def root_mean_of(squares: Floats) -> Metric:
    """The root of the mean of squares [N]."""
    mean = mean_of(squares)
    return Metric(lambda weights: float(np.sqrt(mean.of(weights))), mean.cells)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")
