"""The linear model of items is scikit-learn's, in float64."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from peterrec.model.errors import BaselineTooLarge
from peterrec.model.spec import FIRST_ITEM, UNK
from peterrec.model.training.baselines import linear
from peterrec.model.training.baselines.linear import CERTAIN, Known, fit_linear

ITEMS = 12


def histories(users: int, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [FIRST_ITEM + random.integers(0, ITEMS, random.integers(1, 9)) for _ in range(users)]


def by_hand(model, targets, method: str):
    """Twenty lines with scikit-learn, which read texts."""
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, vocabulary=[str(i) for i in range(ITEMS)], token_pattern=r"\d+"
    )
    learned, asked = (
        [" ".join(str(token - FIRST_ITEM) for token in row) for row in rows]
        for rows in (histories(60, 0), histories(20, 1))
    )
    model.fit(vectorizer.fit_transform(learned), targets)
    return getattr(model, method)(vectorizer.transform(asked))


def test_classes_are_those_of_a_logistic_regression_on_tf_idf():
    targets = np.random.default_rng(2).integers(0, 3, 60)
    known = Known(histories(60, 0), targets, ITEMS, 3)
    model = fit_linear("classification", known, 5.0)
    expected = by_hand(LogisticRegression(C=5.0, max_iter=1000), targets, "predict_log_proba")
    found = model.scores(histories(20, 1))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert model.weights == 3 * ITEMS + 3 + ITEMS  # weights, intercepts, IDF
    assert model.size_bytes == 4 * model.weights


def test_two_classes_take_one_weight_for_each_item():
    targets = np.arange(60) % 2
    model = fit_linear("classification", Known(histories(60, 0), targets, ITEMS, 2), 5.0)
    assert model.weights == ITEMS + 1 + ITEMS
    np.testing.assert_allclose(np.exp(model.scores(histories(20, 1))).sum(1), 1)


def test_a_class_without_training_users_is_never_the_answer():
    targets = 2 * (np.arange(60) % 2)
    model = fit_linear("classification", Known(histories(60, 0), targets, ITEMS, 3), 5.0)
    assert (model.scores(histories(20, 1))[:, 1] == -CERTAIN).all()


def test_tags_are_logistic_regressions_of_their_own():
    targets = np.random.default_rng(2).integers(0, 2, (60, 3)).astype(np.float64)
    targets[:, 2] = 0  # nobody has it
    model = fit_linear("tags", Known(histories(60, 0), targets, ITEMS, 3), 5.0)
    found = model.scores(histories(20, 1))
    for tag in (0, 1):
        own = targets[:, tag] > 0.5
        expected = by_hand(LogisticRegression(C=5.0, max_iter=1000), own, "decision_function")
        np.testing.assert_allclose(found[:, tag], expected, atol=1e-12)
    assert (found[:, 2] == -CERTAIN).all()
    assert model.weights == 2 * ITEMS + 3 + ITEMS


def test_numbers_are_a_ridge_regression():
    targets = np.random.default_rng(2).normal(size=60)
    model = fit_linear("value", Known(histories(60, 0), targets, ITEMS, 1), 0.5)
    expected = by_hand(Ridge(alpha=2.0), targets, "predict")
    np.testing.assert_allclose(model.scores(histories(20, 1))[:, 0], expected, atol=1e-12)


def test_tokens_that_are_no_items_are_not_read():
    targets = np.arange(60) % 2
    model = fit_linear("classification", Known(histories(60, 0), targets, ITEMS, 2), 5.0)
    row = histories(1, 1)[0]
    found = model.scores([row, np.concatenate([row, [UNK]])])
    assert (found[0] == found[1]).all()


def test_more_weights_than_the_memory_allows_are_refused(monkeypatch):
    monkeypatch.setattr(linear, "MOST_WEIGHTS", 2 * ITEMS)
    known = Known(histories(60, 0), np.arange(60) % 3, ITEMS, 3)
    with pytest.raises(BaselineTooLarge, match="36 weights; 24 is the limit"):
        fit_linear("classification", known, 1.0)
    fit_linear("classification", Known(known.rows, np.arange(60) % 2, ITEMS, 2), 1.0)
