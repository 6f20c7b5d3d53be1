"""Each kind of head in a worker: numbers from the device → predictions, and how these differ."""

import numpy as np
import pytest
from msgspec import UNSET

from peterrec.patches.bundle.bundle import Catalog
from peterrec.service.predict.item_ids import ItemVocabulary, map_selection
from peterrec.service.predict.kinds import ANSWERS, Prediction, Ranked, Subject, divergence
from peterrec.service.predict.kinds.classification import ClassPrediction
from peterrec.service.predict.kinds.ranking import RankedItem, RankingPrediction
from peterrec.service.predict.kinds.tags import Tag, TagsPrediction
from peterrec.service.predict.kinds.value import ValuePrediction
from peterrec.service.protocol.messages import BundleEntry, RowResult
from tests.service.messages import DIGEST_A, USED, bundle_entry

HISTORY = ItemVocabulary(["a"], 5).map_history(["a", "x"], "drop")
CATALOG = Catalog.pack(["f0", "f1", "f2"])


def subject(bundle: BundleEntry, ranked: Ranked | None = None) -> Subject:
    return Subject(bundle, HISTORY, "u1", ranked)


def result(values: list[float], indices: list[int] | None = None) -> RowResult:
    packed = np.array(indices or [], np.int64).tobytes()
    return RowResult(1, 0, np.array(values, np.float32).tobytes(), packed)


def test_a_class_answer_has_probabilities_in_label_order():
    bundle = bundle_entry(1, DIGEST_A, labels=("x", "y", "z"))
    answer = ANSWERS["classification"].decode(subject(bundle), result([0.25, 0.5, 0.25]))
    assert isinstance(answer, ClassPrediction)
    assert answer.label == "y"
    assert [*answer.scores.items()] == [("x", 0.25), ("y", 0.5), ("z", 0.25)]


@pytest.mark.parametrize("outputs", [2, 3, 1000])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_classes_are_measured_by_their_odds_against_all_others(outputs, scale):
    logits = np.random.default_rng(outputs).normal(0, scale, (20, outputs))
    labels = tuple(map(str, range(outputs)))
    bundle = bundle_entry(1, DIGEST_A, labels=labels)
    found = ANSWERS["classification"].measure.scores(bundle, logits)
    for place in range(outputs) if outputs < 9 else (0, 500, 999):
        others = np.delete(logits, place, axis=1)
        expected = logits[:, place] - np.logaddexp.reduce(others, axis=1)
        np.testing.assert_allclose(found[:, place], expected, rtol=1e-12, atol=1e-12)


def test_two_classes_have_opposite_odds_and_one_has_none():
    two, one = (bundle_entry(1, DIGEST_A, labels=labels) for labels in (("x", "y"), ("x",)))
    measure = ANSWERS["classification"].measure
    np.testing.assert_array_equal(measure.scores(two, np.array([[1.0, 4.0]])), [[-3.0, 3.0]])
    np.testing.assert_array_equal(measure.scores(one, np.array([[1.0], [4.0]])), [[0.0], [0.0]])


def test_a_tags_answer_lists_tags_at_or_above_the_threshold_best_first():
    bundle = bundle_entry(1, DIGEST_A, "tags", ("x", "y", "z"))
    answer = ANSWERS["tags"].decode(subject(bundle), result([0.5, 0.25, 0.75]))
    assert isinstance(answer, TagsPrediction)
    assert answer.tags == [Tag("z", 0.75), Tag("x", 0.5)]
    assert [*answer.scores] == ["x", "y", "z"]
    assert answer.threshold == 0.5


def test_a_value_answer_is_a_number():
    answer = ANSWERS["value"].decode(subject(bundle_entry(1, DIGEST_A, "value", ())), result([1.5]))
    assert isinstance(answer, ValuePrediction)
    assert answer.value == 1.5


def test_a_ranking_answer_names_items_by_their_external_ids():
    ranked = Ranked(CATALOG, map_selection(CATALOG, ["f1"], ["f0", "f1", "f2", "f9"]))
    bundle = bundle_entry(1, DIGEST_A, "ranking", ())
    answer = ANSWERS["ranking"].decode(subject(bundle, ranked), result([2.0, 1.0], [2, 0]))
    assert isinstance(answer, RankingPrediction)
    assert answer.items == [RankedItem("f2", 2.0), RankedItem("f0", 1.0)]
    assert (answer.filtered, answer.unknown_candidates) == (1, ["f9"])


@pytest.mark.parametrize("kind", ["classification", "value"])
def test_every_answer_says_how_the_history_was_read(kind):
    answer = ANSWERS[kind].decode(subject(bundle_entry(1, DIGEST_A, kind, ("x",))), result([1.0]))
    assert (answer.used_items, answer.unknown_items, answer.unknown) == (1, 1, ["x"])
    assert (answer.truncated, answer.cold, answer.user_id) == (False, False, "u1")
    assert answer.digest is UNSET


def of_class(label: str) -> ClassPrediction:
    return ClassPrediction(label=label, scores={"F": 0.5, "M": 0.5}, **USED)


def of_tags(*labels: str, among: str) -> TagsPrediction:
    tags = [Tag(label, 0.9) for label in labels]
    return TagsPrediction(tags=tags, scores=dict.fromkeys(among, 0.9), threshold=0.5, **USED)


def of_items(*ids: str) -> RankingPrediction:
    return RankingPrediction(items=[RankedItem(i, 1.0) for i in ids], filtered=0, **USED)


def of_value(value: float) -> ValuePrediction:
    return ValuePrediction(value=value, **USED)


def test_classes_are_the_same_or_not():
    assert divergence(of_class("a"), of_class("a")) == 0.0
    assert divergence(of_class("a"), of_class("b")) == 1.0


def test_tags_count_by_the_share_that_differs():
    one, other = of_tags("a", "b", among="abcdefgh"), of_tags("b", "c", among="abcdefgh")
    assert divergence(one, other) == 0.25
    assert divergence(of_tags(among=""), of_tags(among="")) == 0.0
    assert divergence(of_tags("a", among="ab"), of_tags("c", among="cd")) == 0.5


def test_rankings_differ_by_what_does_not_overlap_in_any_order():
    assert divergence(of_items("a", "b"), of_items("b", "a")) == 0.0
    assert divergence(of_items("a", "b"), of_items("b", "c")) == 0.5
    assert divergence(of_items("a"), of_items("a", "b")) == 0.5
    assert divergence(of_items(), of_items()) == 0.0
    assert divergence(of_items(), of_items("a")) == 1.0


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0.0, 0.0, 0.0), (2.0, 1.0, 0.5), (-1.0, 1.0, 1.0), (0.0, 3.0, 1.0), (-4.0, -3.0, 0.25)],
)
def test_values_differ_in_relation_to_the_larger(first, second, expected):
    assert divergence(of_value(first), of_value(second)) == expected
    assert divergence(of_value(second), of_value(first)) == expected


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (of_class("F"), "F"),
        (of_tags("a", "b", among="abc"), "a, b"),
        (of_tags(among="abc"), "none"),
        (of_items("f1", "f0"), "f1, f0"),
        (of_value(41.26), "41.3"),
    ],
)
def test_every_answer_can_be_said_in_a_few_words(answer: Prediction, text: str):
    kind = ANSWERS[str(answer.__struct_config__.tag)]
    assert kind.text(answer) == text
