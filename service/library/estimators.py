"""Tasks in the manner of scikit-learn, for its cross-validation, searches and pipelines.

``X`` is one history for each sample: a list, an array or a Series of lists of item ids. ``y`` has
one label, number, set of tags or list of target items for each. The parameters of an estimator are
the options of ``finetune`` under the same names, with ``random_state`` for the seed.
"""

import inspect
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Self, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import assert_all_finite, check_consistent_length, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from peterrec.model.data.values import settled
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.service.errors import ArgumentInvalid
from peterrec.service.library.backbone import BackboneOrPath, DeviceName, as_backbone
from peterrec.service.library.inputs import ItemId, sequence
from peterrec.service.library.keywords import errors_in_python, keywords_of
from peterrec.service.library.option_types import FinetuneKeywords
from peterrec.service.library.task import Task
from peterrec.service.library.training import finetune
from peterrec_client import ClassificationPrediction, RankingPrediction, TagsPrediction
from peterrec_client.kinds.value import ValuePrediction

OPTIONS = tuple(k for k in keywords_of(FinetuneSettings) if k.name != "seed")
"""Parameters that every estimator has; ``random_state`` stands for the seed."""

FEWEST_SAMPLES = 3
"""Users that fine-tuning needs: one each to train, validate and test with."""

Matrix = npt.NDArray[np.float64]
Seed = int | np.random.RandomState | None


class _Estimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What all estimators share: parameters, and a task that is trained on lists of histories."""

    kind: ClassVar[str]

    def __init__(
        self,
        backbone: BackboneOrPath | None = None,
        *,
        random_state: Seed = 0,
        device: DeviceName = "auto",
        progress: bool | None = False,
        **options: Unpack[FinetuneKeywords],
    ) -> None:
        self.backbone = backbone
        self.random_state = random_state
        self.device = device
        self.progress = progress
        given: dict[str, object] = {**options}
        for each in OPTIONS:
            setattr(self, each.name, given.pop(each.name, each.default))
        if given:
            raise TypeError(f"{type(self).__name__}() has no parameter {', '.join(given)}")

    def __sklearn_tags__(self) -> Any:  # Any: scikit-learn has no types
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        tags.target_tags.required = True
        return tags

    def _train(self, histories: list[Sequence[ItemId]], answers: object, form: str) -> Task:
        if self.backbone is None:
            raise ArgumentInvalid(
                f"{type(self).__name__} has no backbone.",
                hint="Give backbone=, a folder or what peterrec.pretrain returned.",
            )
        if len(histories) < FEWEST_SAMPLES:
            raise ArgumentInvalid(
                f"n_samples={len(histories)} leaves no users to train, validate and test with.",
                hint=f"Give {FEWEST_SAMPLES} samples or more.",
            )
        options: dict[str, Any] = {each.name: getattr(self, each.name) for each in OPTIONS}
        options |= {form: answers, "seed": self._seed(), "progress": self.progress}
        return finetune(as_backbone(self.backbone), histories, kind=self.kind, **options)

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _answers(self, X: object, **options: Any) -> list[Any]:  # Any: answers of one kind
        check_is_fitted(self, "task_")
        with errors_in_python(()):
            histories = histories_of(X)
        task: Task = self.task_
        return list(task.predict(histories, device=self.device, progress=self.progress, **options))


def _parameters(init: Any) -> None:  # Any: a method whose signature is set
    """Let the signature of ``__init__`` list every parameter: scikit-learn reads it."""
    own = [p for p in inspect.signature(init).parameters.values() if p.kind is not p.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(each.name, keyword, default=each.default) for each in OPTIONS]
    init.__signature__ = inspect.Signature([*own, *more])


_parameters(_Estimator.__init__)


class ProfileClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]  # as above
    """Predicts one of several classes from a user's history.

    ``classes_`` are the sorted labels, with the type that they have in ``y``; ``task_`` is the
    trained task, to be saved or pushed. Labels that ``min_label_count`` drops have probability 0.
    """

    kind = "classification"

    def fit(self, X: object, y: object) -> Self:
        """Fine-tune a task on histories and one label for each."""
        histories, labels = _samples(X, y)
        labels = column_or_1d(labels, warn=True)
        check_classification_targets(labels)
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise ArgumentInvalid("y has one class only.", hint="A task needs two classes.")
        self._columns = _columns_of(self.classes_.tolist())
        self.task_ = self._train(histories, [str(each) for each in labels.tolist()], "labels")
        return self

    def predict_proba(self, X: object) -> Matrix:
        """Probabilities [samples, classes], in the order of ``classes_``."""
        answers: list[ClassificationPrediction] = self._answers(X)
        return _matrix([answer.scores for answer in answers], self._columns)

    def predict(self, X: object) -> npt.NDArray[Any]:  # Any: the type of the labels
        """The most probable class of each sample."""
        best = self.predict_proba(X).argmax(axis=1)
        predicted: npt.NDArray[Any] = self.classes_[best]
        return predicted


class ProfileRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]  # as above
    """Predicts a number from a user's history; ``task_`` is the trained task."""

    kind = "value"

    def fit(self, X: object, y: object) -> Self:
        """Fine-tune a task on histories and one number for each."""
        histories, numbers = _samples(X, y)
        numbers = column_or_1d(numbers, dtype=np.float64, warn=True)
        assert_all_finite(numbers, input_name="y")
        self.task_ = self._train(histories, numbers.tolist(), "labels")
        return self

    def predict(self, X: object) -> Matrix:
        """The number of each sample."""
        answers: list[ValuePrediction] = self._answers(X)
        return np.array([answer.value for answer in answers], dtype=np.float64)


class TagsClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]  # as above
    """Predicts which of many tags apply to a user, each independently of the others.

    ``y`` has a list of tags for each sample, or is a matrix of zeros and ones. ``classes_`` are the
    sorted tags, or the numbers of the matrix's columns.
    """

    kind = "tags"

    def __sklearn_tags__(self) -> Any:  # Any: scikit-learn has no types
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.classifier_tags.multi_class = False
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: object, y: object) -> Self:
        """Fine-tune a task on histories and the tags of each."""
        histories, given = _samples(X, y)
        tags = _tag_lists(given)
        if isinstance(given, np.ndarray) and given.ndim == 2:
            self.classes_ = np.arange(given.shape[1])
        else:
            self.classes_ = np.unique([tag for own in tags for tag in own])
        self._columns = _columns_of(self.classes_.tolist())
        answers = [[str(tag) for tag in own] for own in tags]
        self.task_ = self._train(histories, answers, "labels")
        return self

    def predict_proba(self, X: object) -> Matrix:
        """Probability of each tag [samples, tags], in the order of ``classes_``."""
        answers: list[TagsPrediction] = self._answers(X)
        return _matrix([answer.scores for answer in answers], self._columns)

    def predict(self, X: object) -> npt.NDArray[np.int64]:
        """A matrix of zeros and ones [samples, tags]: which tags reach the threshold."""
        answers: list[TagsPrediction] = self._answers(X)
        applying = [{tag.label: 1.0 for tag in answer.tags} for answer in answers]
        return _matrix(applying, self._columns).astype(np.int64)

    def score(self, X: object, y: object, sample_weight: object = None) -> float:
        """The share of samples whose tags are all predicted rightly."""
        _, given = _samples(X, y)
        if not (isinstance(given, np.ndarray) and given.ndim == 2):
            columns = {tag: column for column, tag in enumerate(self.classes_.tolist())}
            marked = [dict.fromkeys(own, 1.0) for own in _tag_lists(given)]
            given = _matrix(marked, columns).astype(np.int64)
        return float(super().score(X, given, sample_weight))


class Recommender(_Estimator):
    """Recommends items from what users did before.

    ``y`` has the items that each user took afterwards. Without it, the newest item of each history
    is what is learned, from the items before it. ``top_k`` is how many items ``predict`` returns
    and ``score`` looks at.
    """

    kind = "ranking"

    def __init__(
        self,
        backbone: BackboneOrPath | None = None,
        *,
        top_k: int = 10,
        exclude_seen: bool = True,
        random_state: Seed = 0,
        device: DeviceName = "auto",
        progress: bool | None = False,
        **options: Unpack[FinetuneKeywords],
    ) -> None:
        super().__init__(
            backbone, random_state=random_state, device=device, progress=progress, **options
        )
        self.top_k = top_k
        self.exclude_seen = exclude_seen

    def __sklearn_tags__(self) -> Any:  # Any: scikit-learn has no types
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags

    def fit(self, X: object, y: object = None) -> Self:
        """Fine-tune a task on histories and the items that followed each."""
        histories, targets = _following(X, y)
        self._items = _texts_of([item for own in targets for item in own])
        self.task_ = self._train(histories, targets, "targets")
        return self

    def recommend(
        self,
        X: object,
        n: int | None = None,
        *,
        candidates: Sequence[ItemId] | None = None,
    ) -> list[list[ItemId]]:
        """The best ``n`` items for each history, best first, with the type that they had in fit.

        ``candidates`` are the only items that may be returned.
        """
        asked = {"top_k": self.top_k if n is None else n, "exclude_seen": self.exclude_seen}
        answers: list[RankingPrediction] = self._answers(X, candidates=candidates, **asked)
        return [[self._items[item.id] for item in answer.items] for answer in answers]

    def predict(self, X: object) -> npt.NDArray[np.object_]:
        """The best items for each history, as an array of lists."""
        found = self.recommend(X)
        rows = np.empty(len(found), dtype=object)
        rows[:] = found
        return rows

    def score(self, X: object, y: object = None) -> float:
        """The share of users who took one of the recommended items (hit rate)."""
        histories, targets = _following(X, y)
        found = self.recommend(histories)
        hits = [not set(own).isdisjoint(items) for items, own in zip(found, targets, strict=True)]
        return float(np.mean(hits))


_parameters(Recommender.__init__)


def histories_of(X: Any) -> list[Sequence[ItemId]]:  # Any: a list, an array, a Series, a column
    """One history for each sample; of a table with one column of lists, that column."""
    if hasattr(X, "tocsr"):
        raise TypeError("sparse X is not supported: X is a list of histories.")
    if hasattr(X, "shape") and len(X.shape) == 2 and not isinstance(X, np.ndarray):
        X = np.asarray(X, dtype=object)
    rows = sequence(X, "a list of histories as X")
    if rows and all(_is_cell(row) for row in rows):
        rows = [row[0] for row in rows]
    return [sequence(row, f"a list of item ids as sample {at}") for at, row in enumerate(rows)]


def _is_cell(row: object) -> bool:
    """True for a row of a table that has one cell, and a list in it."""
    return (
        isinstance(row, list | np.ndarray)
        and len(row) == 1
        and isinstance(row[0], list | tuple | np.ndarray)
    )


def _samples(X: object, y: object) -> tuple[list[Sequence[ItemId]], Any]:  # Any: y, not checked
    with errors_in_python(()):
        histories = histories_of(X)
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    check_consistent_length(histories, y)
    return histories, y


def _following(X: object, y: object) -> tuple[list[Sequence[ItemId]], list[Sequence[ItemId]]]:
    """Histories and what followed: ``y``, or each history's newest item, which is taken off it."""
    if y is not None:
        histories, given = _samples(X, y)
        return histories, [sequence(own, "a list of items in y") for own in sequence(given, "y")]
    with errors_in_python(()):
        histories = [row for row in histories_of(X) if len(row) > 1]
    return [row[:-1] for row in histories], [row[-1:] for row in histories]


def _tag_lists(y: Any) -> list[Sequence[Hashable]]:  # Any: lists of tags, or a matrix
    if isinstance(y, np.ndarray) and y.ndim == 2:
        return [np.flatnonzero(row).tolist() for row in y]
    return [sequence(own, "a list of tags in y") for own in sequence(y, "a list of tag lists as y")]


def _texts_of(values: Sequence[Hashable]) -> dict[str, Any]:  # Any: one of the values
    """The distinct values of a column by their texts in the bundle, as the readers write them."""
    distinct = list(dict.fromkeys(values))
    texts = settled(pa.array(list(map(str, distinct)), pa.string()), "y", "y").texts.to_pylist()
    found = dict(zip(texts, distinct, strict=True))
    if len(found) < len(distinct):
        raise ArgumentInvalid(
            "two values of y have the same text.",
            hint="Give values of one type, such as 1 or '1', without blanks around them.",
        )
    return found


def _columns_of(classes: Sequence[Hashable]) -> dict[str, int]:
    """The column of each class by its text."""
    place = {each: column for column, each in enumerate(classes)}
    return {text: place[each] for text, each in _texts_of(classes).items()}


def _matrix(rows: Sequence[Any], columns: dict[Any, int]) -> Matrix:  # Any: scores by class
    """Values by text as a matrix; what has no value is 0, what has no column is left out."""
    matrix = np.zeros((len(rows), len(columns)))
    for place, row in enumerate(rows):
        for text, value in row.items():
            if text in columns:
                matrix[place, columns[text]] = value
    return matrix
