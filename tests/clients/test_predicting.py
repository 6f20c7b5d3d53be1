"""Typed predictions of a real server."""

import numpy as np
import pytest

from peterrec_client import (
    ClassificationPrediction,
    Conflict,
    FailedInstance,
    Forbidden,
    Instance,
    InvalidRequest,
    NotFound,
    RankingPrediction,
    TagsPrediction,
    TaskChoice,
    TooLarge,
    Unauthenticated,
    ValuePrediction,
)

HISTORY: list[str | int] = ["item-3", 7, "42", "item-99"]
TYPES = {
    "classification": ClassificationPrediction,
    "tags": TagsPrediction,
    "ranking": RankingPrediction,
    "value": ValuePrediction,
}


@pytest.fixture
def api(server):
    with server.client() as api:
        yield api


def plain(prediction):
    """The result alone, without what names the request and the bundle."""
    left_out = {"task", "version", "digest", "alias", "registry_revision", "request_id"}
    fields = {name: getattr(prediction, name) for name in prediction.__struct_fields__}
    return {name: value for name, value in fields.items() if name not in left_out}


@pytest.mark.parametrize("kind", TYPES)
def test_each_kind_of_task_has_its_type_and_names_its_bundle(client, api, kind):
    found = client.predict(kind, HISTORY)
    told = api.get(f"/tasks/{kind}").json()["aliases"]["prod"]
    assert type(found) is TYPES[kind]
    assert (found.task, found.alias) == (kind, "prod")
    assert (found.version, found.digest) == (told["version"], told["digest"])
    assert (found.used_items, found.unknown_items, found.truncated, found.cold) == (
        4,
        0,
        False,
        False,
    )
    assert found.request_id


def test_a_class_has_a_label_and_every_probability(client, api):
    found = client.predict("classification", HISTORY)
    (raw,) = api.post("/tasks/classification/predict", json={"history": HISTORY}).json()[
        "predictions"
    ]
    assert (found.label, found.scores) == (raw["label"], raw["scores"])


def test_tags_are_those_at_or_above_the_threshold(client):
    found = client.predict("tags", HISTORY)
    assert found.threshold == 0.5
    expected = {label for label, score in found.scores.items() if score >= found.threshold}
    assert {tag.label for tag in found.tags} == expected


def test_a_ranking_obeys_its_options(client):
    best = client.predict("ranking", HISTORY, top_k=1)
    assert len(best.items) == 1
    others = client.predict("ranking", HISTORY, exclude=[best.items[0].id])
    assert best.items[0].id not in {item.id for item in others.items}
    assert others.filtered == 1
    only = client.predict("ranking", HISTORY, candidates=["film-2", "film-77"])
    assert [item.id for item in only.items] == ["film-2"]
    assert only.unknown_candidates == ("film-77",)


def test_seen_items_are_held_back_unless_asked_for(client):
    assert client.predict("ranking", ["film-1"]).filtered == 1
    assert client.predict("ranking", ["film-1"], exclude_seen=False).filtered == 0


def test_a_value_is_a_number(client):
    assert isinstance(client.predict("value", HISTORY).value, float)


def test_an_empty_history_is_a_cold_start(client):
    found = client.predict("classification", [], user_id="u-1")
    assert (found.cold, found.used_items, found.user_id) == (True, 0, "u-1")


def test_unknown_items_are_reported_mapped_or_refused(client):
    history = ["item-1", "nope", 12345]
    dropped = client.predict("classification", history)
    assert (dropped.unknown_items, dropped.unknown, dropped.used_items) == (2, ("nope", 12345), 1)
    assert client.predict("classification", history, unknown_items="map").used_items == 3
    with pytest.raises(InvalidRequest) as refused:
        client.predict("classification", history, unknown_items="error")
    assert refused.value.code == "unknown_items"


def test_old_items_beyond_the_backbones_length_are_reported(client):
    found = client.predict("classification", ["item-1"] * 30)
    assert (found.used_items, found.truncated) == (20, True)


@pytest.mark.parametrize(
    "history", [np.array([3, 7, 42]), (3, 7, 42), range(3), [np.int64(3), np.int32(7)]]
)
def test_histories_of_other_libraries_are_understood(client, history):
    expected = client.predict("classification", [int(item) for item in history])
    assert plain(client.predict("classification", history)) == plain(expected)


@pytest.mark.parametrize("history", ["1193", b"1193"])
def test_a_string_is_not_a_history(client, history):
    with pytest.raises(TypeError, match="history is a list of item ids"):
        client.predict("classification", history)
    with pytest.raises(TypeError, match="history is a list of item ids"):
        client.predict_user(history)


def test_only_items_can_be_sent(client):
    with pytest.raises(TypeError):
        client.predict("classification", [object()])


def test_many_users_are_answered_in_order(client):
    found = client.predict_many(
        "classification", [HISTORY, Instance([], user_id=7), Instance(["item-1"], user_id="b")]
    )
    assert [each.user_id for each in found] == [None, 7, "b"]
    assert plain(found[0]) == plain(client.predict("classification", HISTORY))
    assert found[1].cold


def test_instances_have_their_own_parameters(client):
    found = client.predict_many("ranking", [Instance(HISTORY, top_k=1), HISTORY], top_k=2)
    assert [len(each.items) for each in found] == [1, 2]


def test_an_instance_that_fails_leaves_the_others_alone(client):
    found = client.predict_many(
        "classification", [HISTORY, Instance(["item-1"] * 10_001, user_id="long")]
    )
    assert found[0].label
    assert isinstance(found[1], FailedInstance)
    assert (found[1].error.code, found[1].user_id) == ("history_too_long", "long")


def test_one_call_gives_a_users_profile(client):
    card = client.predict_user(HISTORY, ["classification", TaskChoice("ranking", top_k=2), "value"])
    assert {task: type(found) for task, found in card.results.items()} == {
        "classification": ClassificationPrediction,
        "ranking": RankingPrediction,
        "value": ValuePrediction,
    }
    assert len(card.results["ranking"].items) == 2
    assert card.results["value"].registry_revision == card.registry_revision
    assert card.results["value"].digest.startswith("sha256:")
    assert card.errors == {}


def test_a_profile_covers_all_tasks_by_default(client):
    assert set(TYPES) <= set(client.predict_user(HISTORY).results)


def test_a_profile_says_why_a_task_is_missing(client):
    card = client.predict_user(HISTORY, ["tags", "no-such-task"])
    assert set(card.results) == {"tags"}
    assert card.errors["no-such-task"].code == "task_not_found"


def test_a_profile_without_any_answer_is_an_error_with_a_reason_for_each_task(client):
    with pytest.raises(NotFound) as refused:
        client.predict_user(HISTORY, ["nope", "neither"])
    assert {task: reason.code for task, reason in refused.value.errors.items()} == {
        "nope": "task_not_found",
        "neither": "task_not_found",
    }


def test_one_name_is_not_a_list_of_tasks(client):
    with pytest.raises(TypeError, match="tasks is a list"):
        client.predict_user(HISTORY, "gender")


@pytest.mark.parametrize(
    ("task", "history", "options", "error", "code"),
    [
        ("nope", [], {}, NotFound, "task_not_found"),
        ("a/b c", [], {}, NotFound, "route_not_found"),
        ("tags", [None], {}, InvalidRequest, "malformed_request"),
        ("tags", [], {"top_k": 0}, InvalidRequest, "malformed_request"),
        ("tags", [], {"candidates": ["x"]}, InvalidRequest, "not_a_ranking_task"),
        ("tags", ["item-1"] * 10_001, {}, TooLarge, "history_too_long"),
    ],
)
def test_each_refusal_has_its_error_and_code(client, task, history, options, error, code):
    with pytest.raises(error) as refused:
        client.predict(task, history, **options)
    found = refused.value
    assert (found.code, found.retryable) == (code, False)
    assert found.hint or code == "history_too_long"
    assert found.request_id in str(found)


def test_a_task_without_a_version_is_a_conflict(client, api):
    api.put("/tasks/planned", json={"description": "soon"})
    with pytest.raises(Conflict) as refused:
        client.predict("planned", [])
    assert refused.value.code == "task_not_active"
    client.delete_task("planned")


def test_a_call_without_a_valid_key_is_unauthenticated(make, server):
    with pytest.raises(Unauthenticated):
        make(server.url).predict("tags", [])
    with pytest.raises(Unauthenticated):
        make(server.url, "prk_000000000000_wrong").predict("tags", [])


def test_a_key_without_the_scope_is_forbidden(make, server, api):
    key = api.post("/keys", json={"name": "test", "scopes": ["predict:films"]}).json()["api_key"]
    with pytest.raises(Forbidden):
        make(server.url, key).predict("tags", [])


def test_an_option_that_does_not_exist_is_refused_immediately(client):
    with pytest.raises(TypeError, match="topk"):
        client.predict("ranking", HISTORY, topk=3)
    with pytest.raises(TypeError, match="exclude"):
        client.predict_user(HISTORY, exclude=["film-1"])
