"""Neighbours, EASE and ridge regression give what their formulas say."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import Ridge

from peterrec.model.errors import BaselineTooLarge
from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.baselines import rankings
from peterrec.model.training.baselines.rankings import Taken, ease, item_knn, linear_to_items

ITEMS = 7


def row(*items: int) -> np.ndarray:
    return FIRST_ITEM + np.array(items)


def shop(users: int, places: tuple[int, ...] = (2, 7, 8), seed: int = 0) -> Taken:
    """Random users; the catalog's first item is item 2 of the histories, the others are not."""
    random = np.random.default_rng(seed)
    rows = [row(*random.integers(0, ITEMS, random.integers(1, 6))) for _ in range(users)]
    targets = [random.choice(len(places), random.integers(0, 3), False) for _ in range(users)]
    return Taken(rows, targets, ITEMS, np.array(places))


def everything(taken: Taken) -> np.ndarray:
    """1 where a user has an item, as history or target [N, 9]."""
    matrix = np.zeros((len(taken.rows), 9))
    for user, (own, targets) in enumerate(zip(taken.rows, taken.targets, strict=True)):
        matrix[user, own - FIRST_ITEM] = 1
        matrix[user, taken.places[targets]] = 1
    return matrix


ASKED = [row(0, 3, 3), row(2), row(5, 6, 1)]

PRESENT = np.array([[1, 0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1, 1]])


def test_cosines_of_three_users_are_those_computed_by_hand():
    # item 0: users a, b, c; item 1: users a, b. Target 0 (place 2): users a, b; target 1: user c.
    taken = Taken(
        [row(0, 1), row(0, 1, 1), row(0)],
        [np.array([0]), np.array([0]), np.array([1])],
        items=2,
        places=np.array([2, 3]),
    )
    found = item_knn(taken, 10, shrinkage=0).scores([row(0), row(1), row(0, 1, 0)])
    half = 2 / np.sqrt(6)  # two users have both, three have item 0, two have target 0
    third = 1 / np.sqrt(3)
    np.testing.assert_allclose(found, [[half, third], [1, 0], [half + 1, third]], atol=1e-8)


def test_only_the_nearest_neighbours_count():
    taken = Taken(
        [row(0, 1), row(0, 1), row(0)],
        [np.array([0]), np.array([0]), np.array([1])],
        items=2,
        places=np.array([2, 3]),
    )
    model = item_knn(taken, 1, shrinkage=0)
    np.testing.assert_allclose(model.scores([row(0, 1)]), [[1, 1 / np.sqrt(3)]], atol=1e-8)
    assert (model.weights, model.size_bytes) == (4, 24)  # two and their indices; two popularities


def test_shrinkage_prefers_pairs_of_many_users_to_the_only_pair_of_one():
    taken = Taken(
        [row(0), *[row(1)] * 4, row(1)],
        [np.array([0]), *[np.array([1])] * 4, np.array([], dtype=np.int64)],
        items=2,
        places=np.array([2, 3]),
    )
    four_of_five = 4 / (np.sqrt(5 * 4) + 10)
    found = item_knn(taken, 5, shrinkage=10).scores([row(0, 1)])
    np.testing.assert_allclose(found, [[1 / 11, four_of_five]], atol=1e-8)


def test_an_item_is_no_neighbour_of_itself():
    taken = Taken([row(0), row(0, 1)], [np.array([0])] * 2, items=2, places=np.array([0]))
    np.testing.assert_allclose(
        item_knn(taken, 5, shrinkage=0).scores([row(0), row(1)]), [[0], [1 / np.sqrt(2)]], atol=1e-8
    )


def test_of_items_without_neighbours_the_more_popular_comes_first():
    taken = Taken(
        [row(0), row(0), row(0), row(1)],
        [np.array([0]), np.array([1]), np.array([1]), np.array([2])],
        items=3,
        places=np.array([3, 4, 5]),
    )
    assert np.argsort(-item_knn(taken, 5, shrinkage=0).scores([row(2)])[0]).tolist()[0] == 1


@pytest.mark.parametrize("users", [5, 200])
def test_ease_is_its_formula_with_fewer_and_with_more_users_than_items(users, monkeypatch):
    monkeypatch.setattr(rankings, "CELLS", 18)
    taken, penalty = shop(users), 3.0
    matrix = everything(taken)
    inverse = np.linalg.inv(matrix.T @ matrix + penalty * np.eye(9))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    expected = PRESENT @ weights[:ITEMS][:, taken.places]
    model = ease(taken, penalty)
    np.testing.assert_allclose(model.scores(ASKED), expected, atol=1e-12)
    assert model.weights == ITEMS * 3


@pytest.mark.parametrize("users", [5, 200])
def test_linear_is_a_ridge_regression_with_fewer_and_with_more_users_than_items(users, monkeypatch):
    monkeypatch.setattr(rankings, "CELLS", 18)
    taken, penalty = shop(users), 0.7
    counts = np.array([np.bincount(own - FIRST_ITEM, minlength=ITEMS) for own in taken.rows])
    asked = np.array([np.bincount(own - FIRST_ITEM, minlength=ITEMS) for own in ASKED])
    transformer = TfidfTransformer(sublinear_tf=True)
    features = transformer.fit_transform(counts).toarray()
    answers = np.zeros((users, 3))
    for user, own in enumerate(taken.targets):
        answers[user, own] = 1
    expected = Ridge(alpha=penalty).fit(features, answers).predict(transformer.transform(asked))
    model = linear_to_items(taken, penalty)
    np.testing.assert_allclose(model.scores(ASKED), expected, atol=1e-12)
    assert model.weights == ITEMS * 3 + 3 + ITEMS  # weights, intercepts, IDF


@pytest.mark.parametrize(
    ("method", "strength"), [(item_knn, 2), (ease, 3.0), (linear_to_items, 0.7)]
)
def test_the_same_users_give_the_same_scores_bit_for_bit(method, strength):
    first, second = (method(shop(40), strength).scores(ASKED) for _ in range(2))
    assert first.dtype == np.float64
    assert (first == second).all()


@pytest.mark.parametrize("method", [ease, linear_to_items])
def test_more_than_the_memory_allows_is_refused_before_it_is_taken(method, monkeypatch):
    monkeypatch.setattr(rankings, "MOST_EQUATIONS", 8)
    with pytest.raises(BaselineTooLarge, match="9 equations for 21 weights"):
        method(shop(200), 1.0)
    method(shop(8), 1.0)  # few users need few equations
