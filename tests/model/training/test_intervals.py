"""Weighted metrics equal the plain ones, and their intervals are those of resampled users."""

import math

import numpy as np
import pytest
import torch

from peterrec.model.training.intervals import (
    Metric,
    auc_of,
    difference,
    estimates,
    explained_share_of,
    macro_f1_of,
    mean_of,
    root_mean_of,
)
from peterrec.model.training.metrics import area_under_roc, macro_f1

USERS = 60
RANDOM = np.random.default_rng(1)
SCORES = RANDOM.integers(0, 9, USERS) / 8
IS_POSITIVE = RANDOM.random(USERS) < 0.2 + 0.6 * SCORES
PREDICTED, TARGETS = (RANDOM.integers(0, 4, USERS) for _ in range(2))
ONES = np.ones(USERS)


def test_equal_weights_give_the_plain_metrics():
    area = area_under_roc(torch.from_numpy(SCORES), torch.from_numpy(IS_POSITIVE))
    f1 = macro_f1(torch.from_numpy(PREDICTED), torch.from_numpy(TARGETS), 5)
    assert auc_of(SCORES, IS_POSITIVE).of(ONES) == pytest.approx(area, abs=1e-12)
    assert macro_f1_of(PREDICTED, TARGETS, 5).of(ONES) == pytest.approx(f1, abs=1e-6)
    errors = SCORES - 0.5
    assert root_mean_of(errors**2).of(ONES) == pytest.approx(np.sqrt(np.mean(errors**2)))
    r2 = 1 - np.mean(errors**2) / np.var(TARGETS)
    assert explained_share_of(errors, TARGETS.astype(float)).of(ONES) == pytest.approx(r2)


@pytest.mark.parametrize(
    "metric",
    [
        lambda at: auc_of(SCORES[at], IS_POSITIVE[at]),
        lambda at: macro_f1_of(PREDICTED[at], TARGETS[at], 5),
        lambda at: explained_share_of(SCORES[at] - 0.5, TARGETS[at].astype(float)),
        lambda at: root_mean_of(SCORES[at]),
        lambda at: mean_of(SCORES[at], TARGETS[at].astype(np.float64) + 1.0),
    ],
)
def test_a_users_weight_is_how_often_the_user_is_there(metric):
    drawn = np.random.default_rng(2).integers(0, USERS, USERS)
    weights = np.bincount(drawn, minlength=USERS).astype(float)
    whole = metric(np.arange(USERS))
    assert whole.of(weights) == pytest.approx(metric(drawn).of(ONES), abs=1e-12)


def test_an_auc_of_pairs_weighs_each_pair_by_its_user():
    users = np.repeat(np.arange(USERS // 2), 2)
    weights = np.zeros(USERS // 2)
    weights[:20] = 1
    own = auc_of(SCORES, IS_POSITIVE, users).of(weights)
    assert own == pytest.approx(auc_of(SCORES[:40], IS_POSITIVE[:40]).of(np.ones(40)))


def test_an_interval_is_that_of_the_normal_approximation_for_a_mean():
    hits = (np.random.default_rng(0).random(2000) < 0.3).astype(float)
    found = estimates({"accuracy": mean_of(hits)}, 2000)["accuracy"]
    error = 1.96 * math.sqrt(hits.mean() * (1 - hits.mean()) / 2000)
    assert found.value == hits.mean()
    assert found.low == pytest.approx(hits.mean() - error, abs=0.002)
    assert found.high == pytest.approx(hits.mean() + error, abs=0.002)


def test_equal_users_give_equal_intervals_whatever_else_is_measured():
    alone = estimates({"a": mean_of(SCORES)}, USERS)["a"]
    together = estimates({"b": auc_of(SCORES, IS_POSITIVE), "a": mean_of(SCORES)}, USERS)["a"]
    assert alone == together


def test_a_difference_of_metrics_has_its_own_narrower_interval():
    noise = np.random.default_rng(3).normal(0, 0.01, USERS)
    one, other = mean_of(SCORES), mean_of(SCORES - 0.1 + noise)
    found = estimates({"gain": difference(one, other), "one": one}, USERS)
    gain, alone = found["gain"], found["one"]
    assert gain.value == pytest.approx(0.1 - noise.mean())
    assert gain.low is not None
    assert gain.high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert gain.high - gain.low < 0.1 * (alone.high - alone.low)


def test_users_who_all_agree_have_no_interval_instead_of_one_without_width():
    assert estimates({"accuracy": mean_of(np.ones(9))}, 9)["accuracy"].low is None


def test_an_interval_contains_its_metric_even_if_the_metric_is_biased():
    largest = Metric(lambda weights: float(SCORES[weights > 0].max() - weights.max()), USERS)
    found = estimates({"biased": largest}, USERS)["biased"]
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("users", [0, 1])
def test_one_user_or_none_has_no_interval(users):
    found = estimates({"mean": mean_of(np.ones(users))}, users)["mean"]
    assert (found.low, found.high) == (None, None)


def test_a_metric_that_is_not_defined_or_too_dear_has_no_interval():
    one_class = auc_of(SCORES, np.ones(USERS, dtype=bool))
    dear = Metric(lambda weights: 1.0, 1 << 40)
    found = estimates({"auc": one_class, "dear": dear}, USERS)
    assert math.isnan(found["auc"].value)
    assert found["auc"].low is None
    assert found["dear"].low is None
