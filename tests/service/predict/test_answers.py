"""Numbers from the device → predictions of each kind."""

import numpy as np
import pytest
from msgspec import UNSET

from peterrec.patches.bundle.bundle import Catalog
from peterrec.service.predict.answers import ANSWERS, Ranked, Subject
from peterrec.service.predict.item_ids import ItemVocabulary, map_selection
from peterrec.service.predict.schemas import (
    ClassPrediction,
    RankedItem,
    RankingPrediction,
    Tag,
    TagsPrediction,
    ValuePrediction,
)
from peterrec.service.protocol.messages import BundleEntry, RowResult
from tests.service.messages import DIGEST_A, bundle_entry

HISTORY = ItemVocabulary(["a"], 5).map_history(["a", "x"], "drop")
CATALOG = Catalog.pack(["f0", "f1", "f2"])


def subject(bundle: BundleEntry, ranked: Ranked | None = None) -> Subject:
    return Subject(bundle, HISTORY, "u1", ranked)


def result(values: list[float], indices: list[int] | None = None) -> RowResult:
    packed = np.array(indices or [], np.int64).tobytes()
    return RowResult(1, 0, np.array(values, np.float32).tobytes(), packed)


def test_a_class_answer_has_probabilities_in_label_order():
    bundle = bundle_entry(1, DIGEST_A, labels=("x", "y", "z"))
    answer = ANSWERS["classification"](subject(bundle), result([0.25, 0.5, 0.25]))
    assert isinstance(answer, ClassPrediction)
    assert answer.label == "y"
    assert [*answer.scores.items()] == [("x", 0.25), ("y", 0.5), ("z", 0.25)]


def test_a_tags_answer_lists_tags_at_or_above_the_threshold_best_first():
    bundle = bundle_entry(1, DIGEST_A, "tags", ("x", "y", "z"))
    answer = ANSWERS["tags"](subject(bundle), result([0.5, 0.25, 0.75]))
    assert isinstance(answer, TagsPrediction)
    assert answer.tags == [Tag("z", 0.75), Tag("x", 0.5)]
    assert [*answer.scores] == ["x", "y", "z"]
    assert answer.threshold == 0.5


def test_a_value_answer_is_a_number():
    answer = ANSWERS["value"](subject(bundle_entry(1, DIGEST_A, "value", ())), result([1.5]))
    assert isinstance(answer, ValuePrediction)
    assert answer.value == 1.5


def test_a_ranking_answer_names_items_by_their_external_ids():
    ranked = Ranked(CATALOG, map_selection(CATALOG, ["f1"], ["f0", "f1", "f2", "f9"]))
    bundle = bundle_entry(1, DIGEST_A, "ranking", ())
    answer = ANSWERS["ranking"](subject(bundle, ranked), result([2.0, 1.0], [2, 0]))
    assert isinstance(answer, RankingPrediction)
    assert answer.items == [RankedItem("f2", 2.0), RankedItem("f0", 1.0)]
    assert (answer.filtered, answer.unknown_candidates) == (1, ["f9"])


@pytest.mark.parametrize("kind", ["classification", "value"])
def test_every_answer_tells_what_of_the_history_was_used(kind):
    answer = ANSWERS[kind](subject(bundle_entry(1, DIGEST_A, kind, ("x",))), result([1.0]))
    assert (answer.used_items, answer.unknown_items, answer.unknown) == (1, 1, ["x"])
    assert (answer.truncated, answer.cold, answer.user_id) == (False, False, "u1")
    assert answer.digest is UNSET


def test_every_kind_of_head_has_an_answer():
    from peterrec.model.network.heads import HEAD_KINDS

    assert set(ANSWERS) == set(HEAD_KINDS)
