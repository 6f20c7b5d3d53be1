"""Calibration: one temperature so that probabilities are as often right as they say.

Guo et al. 2017, "On calibration of modern neural networks": the temperature is fitted on held-out
users, never on those trained on, and changes no decision. One thing is added: a prior worth one
choice, so that a handful of users who are all answered rightly do not make the rest certain.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
"""Equally wide ranges of confidence that the calibration error compares."""

TEMPERATURES = (1e-3, 1e3)
"""What a bundle may say."""

NEWTON_STEPS = 50
ENOUGH = 1e-9
"""A relative step so small that the fit is over."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Choices among K alternatives: ``logits`` [M, K] and the right ones, ``chosen`` int64 [M].

    A tag of a user is one choice of two: absent, whose logit is 0, or present.
    """

    logits: Tensor
    chosen: Tensor


def tag_choices(logits: Tensor, targets: Tensor) -> Choices:
    """Every pair of user and tag of ``logits`` and 0/1 ``targets``, both [N, K], as a choice."""
    present = logits.flatten()  # [N, K] -> [N·K]
    return Choices(torch.stack([torch.zeros_like(present), present], 1), targets.flatten().long())


def fit_temperature(choices: Choices) -> float:
    """The temperature of the lowest loss, by Newton steps kept inside a shrinking bracket.

    The loss is convex in ``b = 1 / T``; the prior adds ``b - log b``, least at 1.
    """
    logits = choices.logits.double()  # [M, K]
    own = logits.gather(1, choices.chosen.unsqueeze(1)).sum().item()
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    at = 1.0
    for _ in range(NEWTON_STEPS):
        shares = torch.softmax(logits * at, 1)
        means = (shares * logits).sum(1, keepdim=True)  # [M, K] -> [M, 1]
        slope = means.sum().item() - own + 1 - 1 / at
        curve = (shares * (logits - means).square()).sum().item() + 1 / at**2
        low, high = (low, at) if slope > 0 else (at, high)
        step = at - slope / curve
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - at) <= ENOUGH * at:
            break
        at = following
    return min(max(1 / at, TEMPERATURES[0]), TEMPERATURES[1])


def calibration_error(choices: Choices, temperature: float = 1.0) -> float:
    """Expected calibration error of the likeliest alternative: 0 is perfect, 1 the worst.

    Over ranges of confidence, the mean distance between how sure the answers are and how often
    they are right, weighted by their number.
    """
    confidence, best = _answers(choices, temperature)
    gaps = confidence - (best == choices.chosen).double()
    return float(_by_bin(confidence, gaps).abs().sum()) / len(confidence)


def chance_error(choices: Choices, temperature: float = 1.0) -> float:
    """The calibration error that these answers would show by chance if they were calibrated.

    A range's gaps then sum to a normal number of mean 0 whose variance is that of its coin tosses.
    """
    confidence, _ = _answers(choices, temperature)
    variances = _by_bin(confidence, confidence * (1 - confidence))
    return float((variances * 2 / math.pi).sqrt().sum()) / len(confidence)


def calibration_metrics(choices: Choices, temperature: float) -> dict[str, float]:
    """The error without the temperature and with it, and what is due to chance alone."""
    return {
        "ece_uncalibrated": calibration_error(choices),
        "ece": calibration_error(choices, temperature),
        "ece_by_chance": chance_error(choices, temperature),
    }


def _answers(choices: Choices, temperature: float) -> tuple[Tensor, Tensor]:
    """Probability [M] and index [M] of each choice's likeliest alternative."""
    confidence, best = torch.softmax(choices.logits.double() / temperature, 1).max(1)
    return confidence, best


def _by_bin(confidence: Tensor, values: Tensor) -> Tensor:
    """Sums [BINS] of values [M] over the ranges of confidence."""
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    return torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, values)
