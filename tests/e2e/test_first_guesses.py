"""What somebody gets who guesses the body of a prediction."""

import pytest

CARD = "/users/predict"
ONE = "/tasks/ranking/predict"

GUESSES = [
    (ONE, {"history": [1], "top_k": 3}, "`top_k` belongs in an entry of `instances` or in"),
    (ONE, {"history": [1], "exclude": [2]}, "`exclude` belongs in an entry of `instances`"),
    (ONE, {"history": [1], "version": 1}, "`version` belongs in `parameters`"),
    (ONE, {"history": [1], "tasks": "all"}, "belongs to POST /users/predict"),
    (ONE, {"items": [1]}, "Is `history` meant instead of `items`?"),
    (ONE, {"histroy": [1]}, "Is `history` meant instead of `histroy`?"),
    (ONE, {"history": [1], "user": "u"}, "Is `user_id` meant instead of `user`?"),
    (ONE, {"history": [1], "userId": "u"}, "Is `user_id` meant instead of `userId`?"),
    (ONE, {"history": [1], "k": 3}, "Is `top_k` in"),
    (ONE, {"users": [{"history": [1]}]}, "Is `instances` meant instead of `users`?"),
    (ONE, {"history": [1], "colour": "red"}, "The top level of the body has the fields `history`,"),
    (ONE, {"history": "item-3"}, "`history` is a list"),
    (ONE, {"history": [[1, 2], [3]]}, '{"instances": [{"history": […]}, …]}'),
    (ONE, {"history": [{"id": 1}]}, "Send the id alone."),
    (ONE, {"history": [1.0]}, 'Send an id as it is written in the training data: 12 or "12"'),
    (ONE, {"history": None}, "An empty list is a cold start."),
    (ONE, {"instances": [[1, 2]]}, "An entry of `instances` is an object of `history`,"),
    (ONE, {"instances": [{"items": [1]}]}, "Is `history` meant instead of `items`?"),
    (ONE, {"instances": [{"history": [1], "unknown_items": "map"}]}, "belongs in `parameters`"),
    (ONE, {"history": [1], "parameters": {"top_k": "3"}}, "Send it without quotes."),
    (ONE, {"history": [1], "parameters": {"top_k": 0}}, "a whole number from 1 to 1000"),
    (ONE, {"history": [1], "parameters": {"unknown_items": "keep"}}, '"drop" or "error" or "map"'),
    (ONE, {"instances": [{"history": []}], "user_id": 1}, "belongs in each entry of `instances`"),
    (ONE, {}, "Send one user's history:"),
    (ONE, [1, 2], 'The body is an object: {"history": ["1193", 661]}'),
    (CARD, {"history": [1], "task": "ranking"}, "Is `tasks` meant?"),
    (CARD, {"history": [1], "tasks": "ranking"}, "A single one is put in brackets: […]."),
    (CARD, {"history": [1], "tasks": [{"name": "ranking"}]}, "Is `task` meant instead of `name`?"),
    (CARD, {"history": [1], "tasks": {"task": "ranking"}}, '`tasks` is "all" or a list'),
    (CARD, {"history": [1], "tasks": "all", "exclude": [1]}, "belongs in an entry of `tasks`"),
    (CARD, {"history": [1], "tasks": "all", "top_k": 3}, "belongs in an entry of `tasks` or in"),
    (CARD, {"history": [1]}, "The top level of the body needs `tasks`"),
    (CARD, {"tasks": "all"}, "The top level of the body needs `history`"),
    (CARD, {"instances": [{"history": [1]}], "tasks": "all"}, "POST /tasks/{task}/predict"),
]


@pytest.mark.parametrize(("path", "body", "hint"), GUESSES)
def test_a_guess_gets_a_hint_that_names_the_place(api, path, body, hint):
    answer = api.post(path, json=body)
    assert answer.status_code == 400
    assert hint in answer.json()["hint"]
    assert "b'" not in answer.text


RAW = [
    (b"", "The body is empty"),
    (b"history=1&top_k=3", "not a form"),
    (b"{'history': [1]}", "double quotes"),
    (b'\xef\xbb\xbf{"history": [1]}', "byte-order mark"),
    ('{"history": [1]}'.encode("utf-16"), "byte-order mark"),
    (b"\x1f\x8b\x08\x00", "compressed"),
    (b'{"history": [1],}', "The body is JSON in UTF-8"),
    (b'{"history": ["\xe9"]}', "The body is JSON in UTF-8"),
]


@pytest.mark.parametrize(("content", "hint"), RAW)
@pytest.mark.parametrize("path", [ONE, CARD])
def test_bytes_that_are_no_json_get_a_hint(api, path, content, hint):
    answer = api.post(path, content=content)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert hint in answer.json()["hint"]
    assert "b'" not in answer.text


@pytest.mark.parametrize("value", ["soon", "0", "-5", "\xff\xfe", "99999999999"])
def test_a_header_that_is_no_number_is_shown_as_text(api, value):
    headers = {"X-Request-Timeout-Ms": value.encode("latin-1")}
    answer = api.post(ONE, json={"history": []}, headers=headers)
    assert answer.status_code == 400
    assert "b'" not in answer.json()["detail"]


def test_a_user_id_means_the_same_in_both_calls(api):
    body = {"history": ["item-3"], "user_id": "ada"}
    (alone,) = api.post(ONE, json=body).json()["predictions"]
    card = api.post(CARD, json={**body, "tasks": ["ranking"]}).json()["results"]["ranking"]
    assert (alone["user_id"], card["user_id"]) == ("ada", "ada")
    assert alone["items"] == card["items"]


def test_a_card_takes_exclude_and_candidates_for_each_task(api):
    task = {"task": "ranking", "candidates": ["film-0", "film-2", "x"], "exclude": ["film-0"]}
    body = {"history": ["item-3"], "tasks": [task, "value"]}
    found = api.post(CARD, json=body).json()["results"]["ranking"]
    assert [item["id"] for item in found["items"]] == ["film-2"]
    assert (found["filtered"], found["unknown_candidates"]) == (1, ["x"])
    instance = {key: each for key, each in task.items() if key != "task"}
    alone = api.post(ONE, json={"instances": [{"history": ["item-3"], **instance}]}).json()
    assert alone["predictions"][0]["items"] == found["items"]


def test_a_task_of_a_card_that_does_not_rank_refuses_exclude_alone(api):
    body = {"history": [1], "tasks": [{"task": "value", "exclude": [1]}, "tags"]}
    card = api.post(CARD, json=body).json()
    assert [*card["results"]] == ["tags"]
    assert card["errors"]["value"]["code"] == "not_a_ranking_task"


def test_unknown_items_and_candidates_are_named_once(api):
    instance = {"history": ["nope", 5000, "5000", "nope"], "candidates": ["x", 7, "7", "x", "y"]}
    (found,) = api.post(ONE, json={"instances": [instance]}).json()["predictions"]
    assert found["unknown_candidates"] == ["x", 7, "y"]
    assert (found["unknown_items"], found["unknown"]) == (4, ["nope", 5000])


@pytest.mark.parametrize("version", ["99", "0", "9" * 40, "sha256:" + "0" * 64])
def test_a_version_that_does_not_exist_is_not_found_by_its_owner_either(api, version):
    read = api.get(f"/tasks/value/versions/{version}")
    assert (read.status_code, read.json()["code"]) == (404, "version_not_found")
    deleted = api.delete(f"/tasks/value/versions/{version}")
    assert deleted.status_code == 404


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        (f"{ONE}?version=1", "`version` belongs in `parameters`"),
        (f"{ONE}?top_k=3", "`top_k` belongs in an entry of `instances` or in `parameters`"),
        (f"{CARD}?tasks=all", "`tasks` belongs in the top level of the body"),
        (f"{CARD}?debug", "Send everything in the body"),
    ],
)
def test_a_parameter_in_the_url_of_a_prediction_is_refused_rather_than_ignored(api, path, hint):
    answer = api.post(path, json={"history": [1], "tasks": "all"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert hint in answer.json()["hint"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("validate-only", "Is 'validate_only' meant?"),
        ("validateOnly", "Is 'validate_only' meant?"),
        ("allow_new_output", "Is 'allow_new_outputs' meant?"),
        ("dry_run", "There are alias, allow_new_outputs, origin, validate_only."),
    ],
)
def test_a_misspelt_parameter_of_a_push_registers_nothing(api, workshop, name, hint):
    bundle = workshop.bundle("value", 77)
    answer = api.post("/tasks/misspelt/versions", content=bundle, params={name: "true"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert hint in answer.json()["hint"]
    assert api.get("/tasks/misspelt").status_code == 404


def test_probes_of_health_may_have_any_parameter(api):
    assert api.get("/readyz?verbose=1").status_code == 200


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/task/value/predict", "Is POST /tasks/{task}/predict meant?"),
        ("/tasks/value/predict/", "Is POST /tasks/{task}/predict meant?"),
        ("/tasks/value/predicts", "Is POST /tasks/{task}/predict meant?"),
        ("/user/predict", "Is POST /users/predict meant?"),
        ("/tasks/value/alias/prod", "/tasks/{task}/aliases/{alias}"),
        ("/nothing-like-it", "/docs lists the routes."),
    ],
)
def test_a_path_that_nearly_exists_gets_a_hint(api, path, hint):
    answer = api.post(path, json={"history": []})
    assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found")
    assert hint in answer.json()["hint"]


@pytest.mark.parametrize(
    ("method", "path", "body", "hint"),
    [
        ("PUT", "/tasks/value", {"descripton": "x"}, "Is `description` meant"),
        ("PUT", "/tasks/value/aliases/prod", {"versoin": 1}, "Is `version` meant"),
        ("PUT", "/tasks/value/traffic", {"canaries": []}, "Is `canary` meant"),
        ("PUT", "/tasks/value/traffic", {"guard": {"max_p99": 1}}, "Is `max_p99_ms` meant"),
        ("POST", "/keys", {"name": "x", "scope": ["predict"]}, "Is `scopes` meant"),
    ],
)
def test_a_field_that_an_administrator_misspells_gets_a_hint(api, method, path, body, hint):
    answer = api.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert hint in answer.json()["hint"]


def test_a_bundle_in_a_form_is_told_how_to_come(api, workshop):
    answer = api.post("/tasks/form/versions", files={"file": workshop.bundle("value", 1)})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert "--data-binary" in answer.json()["hint"]


def test_a_task_that_is_named_twice_is_named(api):
    answer = api.post(CARD, json={"history": [], "tasks": ["value", "tags", {"task": "value"}]})
    assert "task 'value' is named 2 times" in answer.json()["detail"]
