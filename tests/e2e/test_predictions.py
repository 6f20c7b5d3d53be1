"""Predictions over real HTTP equal the plain reference, and say what they rest on."""

import numpy as np
import pytest

from peterrec.model import kinds
from peterrec.model.kinds.value import ValueScale
from tests.e2e.conftest import KINDS, push
from tests.service.random_bundles import ITEMS

TOLERANCE = 1e-5
HISTORY = ["item-3", 7, "42", "item-99", 0, "item-3"]


def tokens(history):
    return [4 + ITEMS.index(str(item)) for item in history if str(item) in ITEMS]


def expected(workshop, kind, history, seed=1):
    """Scores of this history alone by the plain reference."""
    logits = workshop.task(kind, seed).logits(tokens(history))
    return kinds.KINDS[kind].scores(logits.unsqueeze(0))[0].numpy()


def predict(api, task, **body):
    answer = api.post(f"/tasks/{task}/predict", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def test_a_class_answer_equals_the_plain_reference(api, workshop):
    (found,) = predict(api, "classification", history=HISTORY)
    scores = expected(workshop, "classification", HISTORY)
    np.testing.assert_allclose([*found["scores"].values()], scores, atol=TOLERANCE)
    assert [*found["scores"]] == ["label-0", "label-1", "label-2"]
    assert found["label"] == f"label-{scores.argmax()}"


def test_a_tags_answer_equals_the_plain_reference(api, workshop):
    (found,) = predict(api, "tags", history=HISTORY)
    scores = expected(workshop, "tags", HISTORY)
    np.testing.assert_allclose([*found["scores"].values()], scores, atol=TOLERANCE)
    listed = [tag["score"] for tag in found["tags"]]
    assert listed == sorted([s for s in found["scores"].values() if s >= 0.5], reverse=True)


def test_a_value_answer_equals_the_plain_reference(api, workshop):
    (found,) = predict(api, "value", history=HISTORY)
    assert found["value"] == pytest.approx(
        expected(workshop, "value", HISTORY).item(), abs=TOLERANCE
    )


def test_a_value_is_answered_in_float64_on_its_bundles_own_scale(api, workshop):
    line = ValueScale(scale=1 / 1024, shift=20240000000.0)
    push(api, "large", workshop.bundle("value", seed=1, line=line))
    (found,) = predict(api, "large", history=HISTORY)
    logit = expected(workshop, "value", HISTORY).item()
    assert (found["value"] - line.shift) / line.scale == pytest.approx(logit, abs=0.01)
    assert found["value"] != line.shift


def test_a_ranking_answer_equals_the_plain_reference(api, workshop):
    (found,) = predict(api, "ranking", history=HISTORY)
    scores = expected(workshop, "ranking", HISTORY)
    best = (-scores).argsort(kind="stable")
    assert [item["id"] for item in found["items"]] == [f"film-{index}" for index in best]
    np.testing.assert_allclose(
        [item["score"] for item in found["items"]], scores[best], atol=TOLERANCE
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_history_is_a_cold_start(api, kind):
    (found,) = predict(api, kind, history=[])
    assert found["cold"] is True
    assert (found["used_items"], found["unknown_items"], found["truncated"]) == (0, 0, False)


def test_an_answer_names_the_version_that_gave_it(api):
    answer = api.post("/tasks/classification/predict", json={"history": [1]})
    body = answer.json()
    task = api.get("/tasks/classification").json()
    assert body["version"] == task["aliases"]["prod"]["version"]
    assert body["digest"] == task["aliases"]["prod"]["digest"]
    assert (body["task"], body["alias"], body["kind"]) == (
        "classification",
        "prod",
        "classification",
    )
    assert body["registry_revision"] >= task["revision"]
    assert answer.headers["x-bundle-digest"] == body["digest"]
    assert answer.headers["x-request-id"] == body["request_id"]


def test_only_the_newest_items_count(api, workshop):
    history = ["item-1"] * 5 + HISTORY * 5
    (found,) = predict(api, "classification", history=history)
    np.testing.assert_allclose(
        [*found["scores"].values()],
        expected(workshop, "classification", history[-20:]),
        atol=TOLERANCE,
    )
    assert (found["used_items"], found["truncated"]) == (20, True)


def test_unknown_items_are_left_out_and_told(api, workshop):
    (found,) = predict(api, "classification", history=["item-3", "nope", 7, 12345])
    np.testing.assert_allclose(
        [*found["scores"].values()],
        expected(workshop, "classification", ["item-3", 7]),
        atol=TOLERANCE,
    )
    assert (found["unknown_items"], found["unknown"]) == (2, ["nope", 12345])


def test_unknown_items_mapped_to_unk_change_the_answer(api):
    history = ["item-3", "nope", 7]
    (dropped,) = predict(api, "classification", history=history)
    (mapped,) = predict(api, "classification", history=history, parameters={"unknown_items": "map"})
    assert mapped["used_items"] == 3
    assert mapped["scores"] != dropped["scores"]


def test_unknown_items_can_be_refused(api):
    body = {"history": ["nope"], "parameters": {"unknown_items": "error"}}
    answer = api.post("/tasks/classification/predict", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "unknown_items")


def test_a_bad_row_never_fails_its_neighbours(api, workshop):
    good, bad, long, other = predict(
        api,
        "classification",
        instances=[
            {"history": HISTORY, "user_id": "u1"},
            {"history": [None], "user_id": "u2"},
            {"history": ["item-1"] * 10_001},
            {"history": ["item-1"], "user_id": 4},
        ],
    )
    np.testing.assert_allclose(
        [*good["scores"].values()], expected(workshop, "classification", HISTORY), atol=TOLERANCE
    )
    assert (good["user_id"], other["user_id"]) == ("u1", 4)
    assert bad["error"]["code"] == "malformed_request"
    assert "$.instances[1].history[0]" in bad["error"]["message"]
    assert long["error"]["code"] == "history_too_long"


def test_the_only_row_fails_the_call(api):
    body = {"instances": [{"history": ["item-1"] * 10_001}]}
    answer = api.post("/tasks/classification/predict", json=body)
    assert (answer.status_code, answer.json()["code"]) == (413, "history_too_long")


def test_a_full_call_of_instances_is_answered_in_order(api, workshop):
    histories = [[ITEMS[n % 200]] for n in range(256)]
    found = predict(api, "classification", instances=[{"history": h} for h in histories])
    np.testing.assert_allclose(
        [*found[17]["scores"].values()],
        expected(workshop, "classification", histories[17]),
        atol=TOLERANCE,
    )
    assert len(found) == 256
    assert found[3]["scores"] == found[203]["scores"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"top_k": 1}, 1),
        ({"exclude": ["film-0", "film-1"]}, 1),
        ({"candidates": ["film-2", "film-0", "film-77"]}, 2),
        ({"candidates": ["film-2", "film-0"], "exclude": ["film-0"]}, 1),
        ({"candidates": ["film-77"]}, 0),
        ({"exclude": ["film-0", "film-1", "film-2"]}, 0),
    ],
)
def test_a_ranking_returns_only_what_it_may(api, options, names):
    (found,) = predict(api, "ranking", instances=[{"history": HISTORY, **options}])
    ids = {item["id"] for item in found["items"]}
    assert len(ids) == names
    assert not ids & set(options.get("exclude", []))
    assert ids <= set(options.get("candidates", ["film-0", "film-1", "film-2"]))
    assert found.get("unknown_candidates", []) == [
        c for c in options.get("candidates", []) if c == "film-77"
    ]


def test_items_of_the_history_are_not_recommended_unless_asked_for(api):
    (held,) = predict(api, "ranking", history=["film-1"])
    (shown,) = predict(api, "ranking", history=["film-1"], parameters={"exclude_seen": False})
    assert (len(held["items"]), held["filtered"]) == (2, 1)
    assert (len(shown["items"]), shown["filtered"]) == (3, 0)


def test_candidates_of_a_task_that_ranks_nothing_are_refused(api):
    body = {"instances": [{"history": [], "candidates": ["film-1"]}]}
    answer = api.post("/tasks/tags/predict", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "not_a_ranking_task")


def test_one_call_gives_the_whole_profile(api, workshop):
    tasks = ["classification", {"task": "ranking", "top_k": 2}, "value"]
    answer = api.post("/users/predict", json={"history": HISTORY, "tasks": tasks})
    body = answer.json()
    assert set(body["results"]) == {"classification", "ranking", "value"}
    assert body["errors"] == {}
    gender = body["results"]["classification"]
    np.testing.assert_allclose(
        [*gender["scores"].values()], expected(workshop, "classification", HISTORY), atol=TOLERANCE
    )
    assert (gender["alias"], gender["kind"]) == ("prod", "classification")
    assert gender["digest"].startswith("sha256:")
    assert len(body["results"]["ranking"]["items"]) == 2


def test_a_profile_of_all_tasks_has_every_active_task(api):
    answer = api.post("/users/predict", json={"history": HISTORY, "tasks": "all"}).json()
    assert set(KINDS) <= set(answer["results"])


def test_a_profile_tells_which_tasks_it_could_not_answer(api):
    body = {"history": HISTORY, "tasks": ["tags", "no-such-task"]}
    answer = api.post("/users/predict", json=body)
    assert answer.status_code == 200
    assert set(answer.json()["results"]) == {"tags"}
    assert answer.json()["errors"]["no-such-task"]["code"] == "task_not_found"


def test_a_profile_without_any_answer_is_a_refusal(api):
    answer = api.post("/users/predict", json={"history": [], "tasks": ["x", "y"]})
    assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")
    assert set(answer.json()["errors"]) == {"x", "y"}


def test_a_task_named_twice_is_refused(api):
    answer = api.post("/users/predict", json={"history": [], "tasks": ["tags", "tags"]})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


def test_too_many_tasks_are_refused(api):
    body = {"history": [], "tasks": [f"t{n}" for n in range(513)]}
    assert api.post("/users/predict", json=body).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/tasks/no-such-task/predict", b'{"history":[]}', 404, "task_not_found"),
        ("POST", "/tasks/tags/predict", b"{", 400, "malformed_request"),
        ("POST", "/tasks/tags/predict", b'{"history":[true]}', 400, "malformed_request"),
        ("POST", "/tasks/tags/predict", b" " * 2_000_001, 413, "body_too_large"),
        ("GET", "/tasks/tags/predict", b"", 405, "method_not_allowed"),
        ("POST", "/tasks/tags/predict/x", b"", 404, "route_not_found"),
        ("POST", "/tasks/a%2Fb/predict", b"", 404, "route_not_found"),
        ("GET", "/nothing", b"", 404, "route_not_found"),
        ("DELETE", "/readyz", b"", 405, "method_not_allowed"),
    ],
)
def test_every_refusal_is_a_problem_with_a_code(api, method, path, body, status, code):
    answer = api.request(method, path, content=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert {"title", "status", "detail", "hint", "retryable", "error"} <= set(answer.json())


def test_a_body_without_a_length_is_limited_while_it_is_read(api):
    chunks = (b" " * 100_000 for _ in range(30))
    answer = api.post("/tasks/tags/predict", content=chunks)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_a_sane_request_id_is_kept(api):
    kept = api.post(
        "/tasks/tags/predict", json={"history": []}, headers={"X-Request-Id": "trace-1:2"}
    )
    assert kept.json()["request_id"] == "trace-1:2"


def test_a_request_id_that_is_not_sane_is_replaced(api):
    other = api.get("/backbone", headers={"X-Request-Id": "no spaces please"})
    assert other.headers["x-request-id"] != "no spaces please"


@pytest.mark.parametrize("value", ["0", "soon", "-1", "600001", "1.5"])
def test_a_timeout_that_is_no_number_of_milliseconds_is_refused(api, value):
    answer = api.post(
        "/tasks/tags/predict", json={"history": []}, headers={"X-Request-Timeout-Ms": value}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


def test_a_task_without_a_prod_version_is_not_active(api):
    assert api.put("/tasks/planned", json={"description": "soon"}).status_code == 201
    answer = api.post("/tasks/planned/predict", json={"history": []})
    assert (answer.status_code, answer.json()["code"]) == (409, "task_not_active")
    assert api.delete("/tasks/planned").status_code == 200
    assert api.post("/tasks/planned/predict", json={"history": []}).status_code == 404
