"""Calibration: a temperature that makes predicted probabilities match observed frequencies.

Guo et al. 2017, "On calibration of modern neural networks": the temperature is fitted on held-out
users, never on training users, and changes no decision. Unlike there, a prior with the weight of
one sample is added, so that a few users with right answers only do not make every answer certain.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
"""Equally wide ranges of confidence that the calibration error compares."""

TEMPERATURES = (1e-3, 1e3)
"""Lowest and highest temperature that a bundle may contain."""

NEWTON_STEPS = 50
"""Largest number of steps of the temperature fit."""

TOLERANCE = 1e-9
"""The temperature fit ends when a step is smaller than this share of the value."""


@dataclass(frozen=True, slots=True)
class Samples:
    """M samples of K alternatives: ``logits`` [M, K], and the right ones, ``chosen`` int64 [M].

    A tag of a user is a sample of two alternatives: absent, whose logit is 0, or present.
    """

    logits: Tensor
    chosen: Tensor


def tag_samples(logits: Tensor, targets: Tensor) -> Samples:
    """A sample for each user and tag of ``logits`` and 0/1 ``targets``, both [N, K]."""
    present = logits.flatten()  # [N, K] -> [N·K]
    return Samples(torch.stack([torch.zeros_like(present), present], 1), targets.flatten().long())


def fit_temperature(samples: Samples) -> float:
    """Find the temperature with the lowest loss, by Newton steps inside a shrinking bracket.

    The loss is convex in ``b = 1 / T``; the prior adds ``b - log b``, which is lowest at 1.
    """
    logits = samples.logits.double()  # [M, K]
    own = logits.gather(1, samples.chosen.unsqueeze(1)).sum().item()
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    at = 1.0
    for _ in range(NEWTON_STEPS):
        shares = torch.softmax(logits * at, 1)
        means = (shares * logits).sum(1, keepdim=True)  # [M, K] -> [M, 1]
        gradient = means.sum().item() - own + 1 - 1 / at
        curve = (shares * (logits - means).square()).sum().item() + 1 / at**2
        low, high = (low, at) if gradient > 0 else (at, high)
        step = at - gradient / curve
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - at) <= TOLERANCE * at:
            break
        at = following
    return min(max(1 / at, TEMPERATURES[0]), TEMPERATURES[1])


def calibration_error(samples: Samples, temperature: float = 1.0) -> float:
    """Expected calibration error of the likeliest alternative: 0 is perfect, 1 is the worst.

    It is the mean distance between confidence and accuracy over ranges of confidence, weighted by
    the number of samples in each. torchmetrics computes the same value (``docs/decisions/0024``).
    """
    confidence, best = _answers(samples, temperature)
    gaps = confidence - (best == samples.chosen).double()
    return float(_by_bin(confidence, gaps).abs().sum()) / len(confidence)


def chance_error(samples: Samples, temperature: float = 1.0) -> float:
    """The calibration error that calibrated answers with these confidences would have by chance.

    The gaps of a range then add up to a normal variable with mean 0 and the variance of its coin
    tosses.
    """
    confidence, _ = _answers(samples, temperature)
    variances = _by_bin(confidence, confidence * (1 - confidence))
    return float((variances * 2 / math.pi).sqrt().sum()) / len(confidence)


def calibration_metrics(samples: Samples, temperature: float) -> dict[str, float]:
    """The calibration error without and with the temperature, and the error expected by chance."""
    return {
        "ece_uncalibrated": calibration_error(samples),
        "ece": calibration_error(samples, temperature),
        "ece_by_chance": chance_error(samples, temperature),
    }


def _answers(samples: Samples, temperature: float) -> tuple[Tensor, Tensor]:
    """Probability [M] and index [M] of each sample's likeliest alternative."""
    confidence, best = torch.softmax(samples.logits.double() / temperature, 1).max(1)
    return confidence, best


def _by_bin(confidence: Tensor, values: Tensor) -> Tensor:
    """Sums [BINS] of values [M] over the ranges of confidence."""
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    return torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, values)


@dataclass(frozen=True, slots=True)
class ConfidenceRange:
    """Samples whose likeliest alternative has a probability within a range.

    ``confidence`` is their mean probability, ``accuracy`` the share of those that are right.
    """

    low: float
    high: float
    samples: int
    confidence: float
    accuracy: float


def reliability(samples: Samples, temperature: float = 1.0) -> list[ConfidenceRange]:
    """The ranges of the calibration error that have samples, from low to high confidence."""
    confidence, best = _answers(samples, temperature)
    sizes = _by_bin(confidence, torch.ones_like(confidence)).tolist()
    confidences = _by_bin(confidence, confidence).tolist()
    hits = _by_bin(confidence, (best == samples.chosen).double()).tolist()
    return [
        ConfidenceRange(at / BINS, (at + 1) / BINS, int(size), total / size, right / size)
        for at, (size, total, right) in enumerate(zip(sizes, confidences, hits, strict=True))
        if size
    ]
