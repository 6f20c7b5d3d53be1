"""Explanations equal the answers to the histories without each item, one call for each."""

import math
import random
from typing import Any

import pytest

from peterrec.model.kinds.value import ValueScale
from peterrec.model.spec import BackboneSpec, PatchGeometry, TableSpec
from peterrec.service.errors import ExplanationTooLarge, MalformedRequest
from peterrec.service.library.backbone import load_backbone
from peterrec.service.library.task import Task, task_of
from peterrec_client import Explain, ExplainedOutput, Instance
from tests.service.random_bundles import ITEMS, SPEC, Workshop

KINDS = ("classification", "tags", "ranking", "value")
GEOMETRIES = {
    "blocks": PatchGeometry("serial2", 4, (0, 1)),
    "top block": PatchGeometry("parallel2", 4, (1,)),
    "reader": PatchGeometry("serial2", 4, (), queries=2),
    "blocks and reader": PatchGeometry("serial1", 4, (1,), queries=1),
}
TOLERANCE = 2e-5
IDS = [*ITEMS[:30], *range(30), "not known", 12345]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def backbone(workshop):
    return load_backbone(workshop.folder)


@pytest.fixture(scope="module")
def tasks(workshop, backbone) -> dict[str, Task]:
    return {kind: task_of(backbone, workshop.bundle(kind, seed=2)) for kind in KINDS}


def histories(count: int) -> list[list[str | int]]:
    """Short and long ones, with repeated, unknown and int ids; half are longer than max_len."""
    draw = random.Random(5)
    return [draw.choices(IDS, k=draw.randrange(2, 2 * SPEC.max_len)) for _ in range(count)]


def ask(task: Task, histories: Any, **options: Any) -> Any:  # Any: answers of every kind
    return task.predict(histories, **options)


def without(history, item):
    return [each for each in history if str(each) != str(item)]


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))


def scores_of(answer) -> dict[str, float]:
    """The scores of an answer in the unit that its explanation has, by output."""
    match answer.__struct_config__.tag:
        case "classification" | "tags":
            return {label: log_odds(p) for label, p in answer.scores.items()}
        case "ranking":
            return {item.id: item.score for item in answer.items}
    return {"value": answer.value}


def removed_one_by_one(task: Task, history, **options) -> dict[str, dict[str, float]]:
    """What each output loses with each different item, by output and item."""
    items = list(dict.fromkeys(map(str, history)))
    rows = [history, *(without(history, item) for item in items)]
    whole, *rest = map(scores_of, ask(task, rows, **options))
    return {
        output: {item: score - found[output] for item, found in zip(items, rest, strict=True)}
        for output, score in whole.items()
    }


def assert_same_items(output: ExplainedOutput, expected: dict[str, float]) -> None:
    for item in output.items:
        assert item.contribution == pytest.approx(expected[str(item.id)], abs=TOLERANCE)


def assert_same(output: ExplainedOutput, expected: dict[str, float]) -> None:
    """The explanation has the most of the expected contributions, largest first."""
    found = [item.contribution for item in output.items]
    assert found == sorted(found, key=abs, reverse=True)
    assert_same_items(output, expected)
    most = sorted((abs(value) for value in expected.values()), reverse=True)
    assert [abs(each) for each in found] == pytest.approx(most[: len(found)], abs=TOLERANCE)


@pytest.mark.parametrize("policy", ["drop", "map"])
@pytest.mark.parametrize("kind", KINDS)
def test_contributions_are_those_of_removing_the_items_one_by_one(tasks, kind, policy):
    options = {"unknown_items": policy, "exclude_seen": False}
    for history in histories(6):
        expected = removed_one_by_one(tasks[kind], history, **options)
        (answer,) = ask(tasks[kind], [history], explain=Explain(4, "all"), **options)
        assert answer.explanation.method == "leave_one_out"
        assert {output.output for output in answer.explanation.outputs} == set(expected)
        for output in answer.explanation.outputs:
            assert len(output.items) == min(4, answer.explanation.items_looked_at)
            assert_same(output, expected[output.output])
            assert output.score == pytest.approx(scores_of(answer)[output.output], abs=TOLERANCE)


@pytest.mark.parametrize("place", GEOMETRIES)
def test_every_part_of_a_patch_is_explained_exactly(workshop, backbone, place):
    bundle = workshop.bundle("classification", seed=3, geometry=GEOMETRIES[place])
    task = task_of(backbone, bundle)
    for history in histories(6):
        expected = removed_one_by_one(task, history)
        (answer,) = ask(task, [history], explain=100)
        (output,) = answer.explanation.outputs
        assert output.output == answer.label
        assert_same(output, expected[output.output])


FORMS = {
    "presence": TableSpec(1),
    "count": TableSpec(1, counting="count"),
    "hardly divided": TableSpec(1, exponent=0.25),
    "mean of four bits": TableSpec(1, bits=4, counting="count", exponent=1.0),
}


def long_histories(count: int) -> list[list[str | int]]:
    """Histories several times as long as the network reads, with repetitions near and far."""
    draw = random.Random(6)
    return [
        draw.choices(IDS, k=draw.randrange(SPEC.max_len, 5 * SPEC.max_len)) for _ in range(count)
    ]


@pytest.mark.parametrize("policy", ["drop", "map"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["classification", "tags", "value"])
def test_a_table_is_explained_over_the_whole_history(workshop, backbone, kind, form, policy):
    task = task_of(backbone, workshop.bundle(kind, seed=4, table=FORMS[form]))
    for history in [*long_histories(3), *histories(2)]:
        expected = removed_one_by_one(task, history, unknown_items=policy)
        (answer,) = ask(task, [history], explain=Explain(100, "all"), unknown_items=policy)
        explanation = answer.explanation
        assert explanation.method == "leave_one_out_and_table"
        unread = answer.unknown_items and policy == "drop"
        assert explanation.items_looked_at + explanation.items_without_effect == len(
            {*map(str, history)}
        )
        assert bool(explanation.items_without_effect) == bool(unread)
        for output in explanation.outputs:
            assert_same(output, expected[output.output])
            assert output.score == pytest.approx(scores_of(answer)[output.output], abs=TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["classification", "tags", "value"])
def test_a_table_alone_costs_two_rows(workshop, backbone, kind, form):
    bundle = workshop.bundle(kind, 5, table=FORMS[form], reads_network=False)
    task = task_of(backbone, bundle)
    for history in long_histories(3):
        expected = removed_one_by_one(task, history)
        (answer,) = ask(task, [history], explain=Explain(100, "all"))
        assert (answer.explanation.method, answer.explanation.rows) == ("table", 2)
        for output in answer.explanation.outputs:
            assert_same(output, expected[output.output])


@pytest.mark.parametrize("form", FORMS)
def test_a_ranking_with_a_table_is_explained_over_the_whole_history(workshop, backbone, form):
    task = task_of(backbone, workshop.bundle("ranking", 4, outputs=9, table=FORMS[form]))
    for history in histories(2):
        (answer,) = ask(task, [history], exclude_seen=False, explain=Explain(items=100))
        expected = removed_one_by_one(task, history, exclude_seen=False)
        explanation = answer.explanation
        assert explanation.method == "leave_one_out"
        assert explanation.items_left_out == 0
        for output in explanation.outputs:
            found = {str(item.id): item.contribution for item in output.items}
            moved = {item: expected[output.output][item] for item in found}
            assert found == pytest.approx(moved, abs=TOLERANCE)
            assert len(found) == explanation.items_looked_at


def test_a_cold_start_of_a_table_has_no_item_that_moved_it(workshop, backbone):
    task = task_of(backbone, workshop.bundle("tags", seed=4, table=TableSpec(1)))
    for answer in ask(task, [[], ["not known"]], explain=5):
        assert answer.explanation.error is None
        assert answer.explanation.items_looked_at == 0
        assert [output.items for output in answer.explanation.outputs] == [()] * len(
            answer.explanation.outputs
        )


def test_the_newest_items_of_a_table_are_looked_at_on_request(workshop, backbone):
    task = task_of(backbone, workshop.bundle("value", seed=4, table=TableSpec(1)))
    history = ITEMS[:60]
    for newest, rows in ((5, 7), (30, 22)):
        (answer,) = ask(task, [history], explain=Explain(100, newest=newest))
        explanation = answer.explanation
        assert (explanation.items_looked_at, explanation.items_left_out) == (newest, 60 - newest)
        assert explanation.rows == rows
        assert {item.id for item in explanation.outputs[0].items} == {*history[-newest:]}
        assert_same_items(explanation.outputs[0], removed_one_by_one(task, history)["value"])


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("padding", ["exact", "embedded"])
def test_items_out_of_the_networks_reach_cost_no_rows(tmp_path, is_causal, padding):
    spec = BackboneSpec(
        200, channels=8, dilations=(1,), max_len=20, is_causal=is_causal, padding=padding
    )
    workshop = Workshop(tmp_path, spec)
    task = task_of(
        load_backbone(tmp_path),
        workshop.bundle("value", seed=1, geometry=PatchGeometry("serial2", 4, (0,))),
    )
    history = ITEMS[:30]
    (answer,) = ask(task, [history], explain=100)
    expected = removed_one_by_one(task, history)["value"]
    moving = [item for item, moved in expected.items() if abs(moved) > TOLERANCE]
    assert answer.explanation.items_looked_at == (6 if is_causal else 20)
    assert answer.explanation.items_looked_at + answer.explanation.items_without_effect == 30
    assert answer.explanation.rows == 1 + answer.explanation.items_looked_at
    assert set(moving) <= {item.id for item in answer.explanation.outputs[0].items}
    assert_same(answer.explanation.outputs[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_explanation_changes_nothing_else_of_an_answer(tasks, kind):
    rows = histories(20)
    plain = ask(tasks[kind], rows)
    explained = ask(tasks[kind], rows, explain=3)
    for one, other in zip(plain, explained, strict=True):
        assert one.explanation is None
        fields = [name for name in one.__struct_fields__ if name != "explanation"]
        assert [getattr(one, name) for name in fields] == [getattr(other, name) for name in fields]


def test_each_recommended_item_is_explained_for_itself(tasks):
    history = ITEMS[:8]
    (answer,) = ask(tasks["ranking"], [history], explain=2, top_k=2)
    (full,) = ask(tasks["ranking"], [history], explain=2)
    outputs = answer.explanation.outputs
    assert [output.output for output in outputs] == [item.id for item in answer.items]
    assert len(outputs) == 2
    assert outputs == full.explanation.outputs[:2]
    assert answer.explanation.rows == 1 + 8


def test_a_ranking_that_recommends_nothing_needs_no_explanation(tasks):
    (answer,) = ask(tasks["ranking"], [ITEMS[:8]], explain=2, candidates=["none"])
    assert (answer.explanation.outputs, answer.explanation.rows) == ((), 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("history", [[], ["not known", "nor this"]])
def test_a_cold_start_has_no_item_that_moved_it(tasks, kind, history):
    (answer,) = ask(tasks[kind], [history], explain=5)
    explanation = answer.explanation
    assert answer.cold
    assert (explanation.items_looked_at, explanation.items_without_effect) == (0, len(history))
    assert explanation.rows == 1
    assert [output.items for output in explanation.outputs] == [()] * len(explanation.outputs)
    assert explanation.error is None


def test_only_the_newest_items_are_looked_at_on_request(tasks):
    history = ITEMS[:10]
    (whole,) = ask(tasks["value"], [history], explain=10)
    (part,) = ask(tasks["value"], [history], explain=Explain(10, newest=3))
    by_item = {item.id: item for item in whole.explanation.outputs[0].items}
    found = part.explanation
    assert (found.items_looked_at, found.items_left_out, found.rows) == (3, 7, 4)
    assert {item.id for item in found.outputs[0].items} == {*ITEMS[7:10]}
    for item in found.outputs[0].items:
        assert item == by_item[item.id]


def test_items_are_named_as_the_caller_sent_them_and_counted(tasks):
    (answer,) = ask(tasks["value"], [["7", "item-1", 7, "item-1", "item-1"]], explain=5)
    found = {item.id: item.times for item in answer.explanation.outputs[0].items}
    assert found == {7: 2, "item-1": 3}


def test_tags_are_explained_that_apply_or_else_the_nearest(tasks):
    for answer in ask(tasks["tags"], histories(40), explain=1):
        found = [output.output for output in answer.explanation.outputs]
        nearest = max(answer.scores, key=lambda label: answer.scores[label])
        assert found == ([tag.label for tag in answer.tags] or [nearest])


def test_a_values_contributions_are_in_its_unit_whatever_its_scale_is(workshop, backbone):
    line = ValueScale(scale=1 / 1024, shift=20240000000.0)
    plain = task_of(backbone, workshop.bundle("value", seed=1))
    scaled = task_of(backbone, workshop.bundle("value", seed=1, line=line, unit="euro"))
    (one,), (other,) = (ask(task, [ITEMS[:8]], explain=8) for task in (plain, scaled))
    assert (one.explanation.unit, other.explanation.unit) == ("value", "euro")
    for first, second in zip(
        one.explanation.outputs[0].items, other.explanation.outputs[0].items, strict=True
    ):
        assert second.id == first.id
        assert second.contribution == pytest.approx(first.contribution / 1024, rel=1e-12)
    assert other.explanation.outputs[0].score == other.value


def test_instances_decide_for_themselves(tasks):
    asked = [Instance(ITEMS[:4]), Instance(ITEMS[:4], explain=0), Instance(ITEMS[:4], explain=1)]
    default, none, one = ask(tasks["value"], asked, explain=2)
    assert len(default.explanation.outputs[0].items) == 2
    assert none.explanation is None
    assert len(one.explanation.outputs[0].items) == 1


def test_a_call_names_a_bounded_number_of_contributions(workshop, backbone):
    task = task_of(backbone, workshop.bundle("tags", seed=1, outputs=600))
    few, many = (ask(task, [ITEMS[:18]], explain=Explain(n, "all"))[0] for n in (16, 17))
    assert len(few.explanation.outputs) == 600
    assert few.explanation.error is None
    assert many.explanation.outputs == ()
    assert many.explanation.error.code == ExplanationTooLarge.code
    assert len(many.scores) == 600


@pytest.mark.parametrize("given", [-1, 101, Explain(0), Explain(5, newest=0)])
def test_numbers_out_of_bounds_are_refused(tasks, given):
    with pytest.raises(MalformedRequest, match=r"parameters\.explain"):
        ask(tasks["value"], [ITEMS[:4]], explain=given)
