"""The estimators take part in scikit-learn's cross-validation, searches and pipelines."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import asdict
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, LeaveOneOut, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, MultiLabelBinarizer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

import peterrec
from peterrec import ProfileClassifier, ProfileRegressor, Recommender, TagsClassifier
from tests.service.library.conftest import FINETUNE, PRETRAIN

QUICK: dict[str, Any] = {"epochs": 1, "queries": 2, "parts": "reader"}


def test_cross_validation_and_a_search_go_through(backbone, shop):
    estimator = ProfileClassifier(backbone, **QUICK)
    scores = cross_val_score(estimator, shop.histories, shop.genders, cv=3)
    assert scores.shape == (3,)
    grid = {"model__lr": np.logspace(-3, -1, 2), "model__queries": np.array([2, 4])}
    search = GridSearchCV(Pipeline([("model", estimator)]), grid, cv=2, error_score="raise")
    search.fit(shop.histories, shop.genders)
    assert set(search.best_params_) == set(grid)
    assert set(search.predict(shop.histories[:9])) <= {"female", "male"}


@pytest.mark.slow  # each process imports everything and compiles
def test_a_search_in_two_processes_gives_the_result_of_one(backbone, shop):
    def searched(jobs: int) -> np.ndarray:
        search = GridSearchCV(
            ProfileClassifier(backbone, **QUICK), {"lr": [1e-3, 1e-2]}, cv=2, n_jobs=jobs
        )
        search.fit(shop.histories, shop.genders)
        return search.cv_results_["mean_test_score"]

    np.testing.assert_array_equal(searched(2), searched(1))


@pytest.mark.parametrize("form", [list, pd.Series, lambda rows: np.array(rows, dtype=object)])
def test_histories_may_be_a_list_a_series_or_an_array(form, backbone, shop):
    expected = ProfileClassifier(backbone, **QUICK).fit(shop.histories, shop.genders)
    found = ProfileClassifier(backbone, **QUICK).fit(form(shop.histories), form(shop.genders))
    np.testing.assert_array_equal(
        found.predict_proba(form(shop.histories[:7])), expected.predict_proba(shop.histories[:7])
    )


def test_a_column_of_lists_passes_through_a_pipeline(backbone, shop):
    frame = pd.DataFrame({"history": shop.histories})
    column = FunctionTransformer(lambda data: data[["history"]])
    pipeline = Pipeline([("column", column), ("model", ProfileClassifier(backbone, **QUICK))])
    assert pipeline.fit(frame, shop.genders).predict(frame).shape == (len(frame),)


@pytest.mark.parametrize(
    "labels",
    [["b", "a"], [7, -1], [True, False], [np.int8(1), np.int8(0)]],
    ids=["texts", "integers", "booleans", "small integers"],
)
def test_classes_keep_the_type_of_the_labels(labels, backbone, shop):
    y = np.array([labels[gender == "male"] for gender in shop.genders])
    estimator = ProfileClassifier(backbone, **QUICK).fit(shop.histories, y)
    np.testing.assert_array_equal(estimator.classes_, np.unique(y))
    assert estimator.classes_.dtype == y.dtype
    assert estimator.predict(shop.histories).dtype == y.dtype
    probabilities = estimator.predict_proba(shop.histories)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(
        estimator.classes_[probabilities.argmax(axis=1)], estimator.predict(shop.histories)
    )


def test_an_estimator_gives_the_answers_of_its_task(backbone, shop):
    estimator = ProfileClassifier(backbone, **QUICK).fit(shop.histories, shop.genders)
    answers = estimator.task_.predict(shop.histories)
    column = list(estimator.classes_).index("male")
    found = estimator.predict_proba(shop.histories)[:, column]
    assert found.tolist() == [asdict(answer)["scores"]["male"] for answer in answers]


def test_a_class_that_is_dropped_has_no_probability(backbone, shop):
    labels = ["rare", "rare", *shop.genders[2:]]
    estimator = ProfileClassifier(backbone, min_label_count=5, **QUICK)
    estimator.fit(shop.histories, labels)
    assert estimator.classes_.tolist() == ["female", "male", "rare"]
    assert (estimator.predict_proba(shop.histories)[:, 2] == 0).all()


def test_equal_seeds_give_equal_results_and_others_do_not(backbone, shop):
    def fitted(state) -> np.ndarray:
        estimator = ProfileClassifier(backbone, random_state=state, **QUICK)
        return estimator.fit(shop.histories, shop.genders).predict_proba(shop.histories)

    np.testing.assert_array_equal(fitted(3), fitted(3))
    np.testing.assert_array_equal(
        fitted(np.random.RandomState(3)), fitted(np.random.RandomState(3))
    )
    assert not np.array_equal(fitted(3), fitted(4))


def test_predictions_follow_the_order_of_the_samples(backbone, shop):
    estimator = ProfileRegressor(backbone, **QUICK).fit(shop.histories, shop.spends)
    forwards = estimator.predict(shop.histories)
    np.testing.assert_array_equal(estimator.predict(shop.histories[::-1]), forwards[::-1])
    alone = [estimator.predict([row])[0] for row in shop.histories[:5]]
    assert alone == forwards[:5].tolist()


def test_one_sample_may_be_left_out_at_a_time(backbone, shop):
    few = slice(0, 6)
    histories, spends = shop.histories[few], shop.spends[few]
    estimator = ProfileRegressor(backbone, **QUICK)
    assert cross_val_predict(estimator, histories, spends, cv=LeaveOneOut()).shape == (6,)


def test_unseen_items_are_read_as_a_cold_start(backbone, shop):
    estimator = ProfileClassifier(backbone, **QUICK).fit(shop.histories, shop.genders)
    unseen, empty = estimator.predict_proba([["never", "seen"], []])
    np.testing.assert_array_equal(unseen, empty)


def test_tags_come_as_lists_or_as_a_matrix(backbone, shop):
    binarizer = MultiLabelBinarizer()
    matrix = binarizer.fit_transform(shop.tags)
    lists = TagsClassifier(backbone, **QUICK).fit(shop.histories, shop.tags)
    marked = TagsClassifier(backbone, **QUICK).fit(shop.histories, matrix)
    assert lists.classes_.tolist() == binarizer.classes_.tolist()
    assert marked.classes_.tolist() == list(range(matrix.shape[1]))
    assert lists.predict(shop.histories).shape == matrix.shape
    assert lists.predict_proba(shop.histories[:3]).shape == (3, matrix.shape[1])
    assert 0 <= lists.score(shop.histories, shop.tags) <= 1
    scores = cross_val_score(
        TagsClassifier(backbone, min_label_count=3, **QUICK),
        shop.histories,
        matrix,
        cv=2,
        scoring="f1_micro",
    )
    assert np.isfinite(scores).all()


def test_a_recommender_learns_what_follows(backbone, shop):
    given = Recommender(backbone, **QUICK).fit(shop.histories, shop.targets)
    assert {str(item)[:7] for row in given.recommend(shop.histories) for item in row} == {"product"}
    own = Recommender(backbone, **QUICK).fit(shop.histories)
    rows = own.recommend(shop.histories[:4], 3)
    assert [len(row) for row in rows] == [3] * 4
    assert all(not set(row) & set(seen) for row, seen in zip(rows, shop.histories, strict=False))
    assert own.predict(shop.histories[:2]).shape == (2,)
    scores = cross_val_score(Recommender(backbone, **QUICK), shop.histories, shop.targets, cv=2)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_recommended_items_keep_their_type():
    rows: list[list[str | int]] = [
        [at % 7, (at + 1) % 7, (at + 2) % 7, (at + 3) % 7] for at in range(60)
    ]
    backbone = peterrec.pretrain(rows, **PRETRAIN)
    recommender = Recommender(backbone, **QUICK).fit(rows)
    assert all(isinstance(item, int) for item in recommender.recommend(rows[:1], 3)[0])


def test_a_backbone_may_be_a_folder(backbone, shop, tmp_path):
    folder = backbone.save(tmp_path / "bb")
    from_folder = ProfileClassifier(str(folder), **QUICK).fit(shop.histories, shop.genders)
    from_object = ProfileClassifier(backbone, **QUICK).fit(shop.histories, shop.genders)
    np.testing.assert_array_equal(
        from_folder.predict_proba(shop.histories), from_object.predict_proba(shop.histories)
    )


def test_parameters_are_got_set_cloned_and_pickled(backbone, shop):
    estimator = ProfileClassifier(backbone, bottleneck=4, **QUICK)
    assert clone(estimator).get_params() == estimator.get_params()
    assert clone(estimator).backbone is backbone
    estimator.set_params(lr=0.5)
    assert estimator.get_params()["lr"] == 0.5
    fitted = estimator.fit(shop.histories, shop.genders)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(
        again.predict_proba(shop.histories[:5]), fitted.predict_proba(shop.histories[:5])
    )
    with pytest.raises(TypeError, match="no parameter bottelneck"):
        ProfileClassifier(backbone, bottelneck=4)  # type: ignore[call-arg]  # that is the test


def test_what_is_missing_is_told(backbone, shop):
    with pytest.raises(NotFittedError):
        ProfileClassifier(backbone).predict(shop.histories)
    with pytest.raises(peterrec.PeterRecError, match="no backbone"):
        ProfileClassifier().fit(shop.histories, shop.genders)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ProfileClassifier(backbone).fit(shop.histories, shop.genders[1:])
    with pytest.raises(ValueError, match="one class"):
        ProfileClassifier(backbone).fit(shop.histories, ["x"] * len(shop.histories))


BINS = 8
NUMBERS: dict[str, Any] = {**QUICK, "parts": "none", "epochs": 2, "max_unknown_share": 1.0}


def items_of(X: np.ndarray) -> list[list[int]]:
    """A history for each row of numbers: an item for each column and bin."""
    bins = np.clip(np.round(np.asarray(X) * 2), -BINS, BINS - 1).astype(int) + BINS
    return [[int(column % 4 * 100 + value) for column, value in enumerate(row)] for row in bins]


class OfNumbers(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Turns rows of numbers, which scikit-learn's checks give, into histories."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = True, False
        tags.no_validation = False
        for own in filter(None, (tags.classifier_tags, tags.regressor_tags)):
            own.poor_score = True
        return tags

    def fit(self, X, y):
        X, y = validate_data(self, X, y, y_numeric=isinstance(self, ProfileRegressor))
        return super().fit(items_of(X), y)

    def _answers(self, X, **options):
        check_is_fitted(self)
        return super()._answers(items_of(validate_data(self, X, reset=False)), **options)


class ClassifierOfNumbers(OfNumbers, ProfileClassifier):
    pass


class RegressorOfNumbers(OfNumbers, ProfileRegressor):
    pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", [ClassifierOfNumbers, RegressorOfNumbers])
def test_an_estimator_passes_all_checks_of_scikit_learn_over_numbers_as_items(estimator):
    """The checks give rows of numbers, so each number becomes an item; see decision 95."""
    items = [column * 100 + value for column in range(4) for value in range(2 * BINS)]
    backbone = peterrec.pretrain(
        [items] * 40, channels=16, dilations=(1,), max_len=10, epochs=1, start="random"
    )
    results = check_estimator(estimator(backbone, **NUMBERS), on_fail=None)
    failed = {r["check_name"]: str(r["exception"]) for r in results if r["status"] == "failed"}
    assert failed == {}
    assert sum(result["status"] == "passed" for result in results) >= 45


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator", [ProfileClassifier, ProfileRegressor, TagsClassifier, Recommender]
)
def test_an_estimator_passes_the_checks_that_need_no_data(estimator, backbone):
    check_estimator(estimator(backbone, **FINETUNE))
