"""Predictions in MessagePack, by content negotiation."""

import msgspec
import pytest

from tests.waiting import eventually

PACKED = "application/msgpack"
pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode


def ask(api, path: str, body: object, **headers: str):
    return api.post(path, content=pack(body), headers={"Content-Type": PACKED, **headers})


@pytest.mark.parametrize("kind", ["classification", "tags", "ranking", "value"])
def test_a_packed_answer_says_the_same_as_one_in_json(api, kind):
    body = {"instances": [{"history": [1, 2]}, {"history": [3], "user_id": "u"}, {"history": 5}]}
    plain = api.post(f"/tasks/{kind}/predict", json=body).json()
    packed = ask(api, f"/tasks/{kind}/predict", body)
    assert (packed.status_code, packed.headers["content-type"]) == (200, PACKED)
    found = unpack(packed.content)
    assert found["predictions"] == plain["predictions"]
    assert found.keys() == plain.keys()
    assert packed.headers["x-bundle-digest"] == plain["digest"]


def test_a_call_for_many_tasks_may_be_packed(api):
    body = {"history": [1, 2], "tasks": ["value", "ranking", "nothing"]}
    plain = api.post("/users/predict", json=body).json()
    found = unpack(ask(api, "/users/predict", body).content)
    assert (found["results"], found["errors"]) == (plain["results"], plain["errors"])


@pytest.mark.parametrize(
    ("body_type", "accept", "answer_type"),
    [
        ("application/json", "", "application/json"),
        ("application/json", "*/*", "application/json"),
        ("application/json", PACKED, PACKED),
        ("application/json", f"{PACKED};q=0.5, application/json", "application/json"),
        ("application/json", f"{PACKED}, application/json;q=0.5", PACKED),
        ("application/json", f"{PACKED};q=0", "application/json"),
        ("application/json", "text/html", "application/json"),
        ("application/x-www-form-urlencoded", "*/*", "application/json"),
        (PACKED, "", PACKED),
        (PACKED, "*/*", PACKED),
        (PACKED, "application/json", "application/json"),
        ("application/x-msgpack", "*/*", PACKED),
        ("Application/Vnd.Msgpack; charset=x", "*/*", PACKED),
    ],
)
def test_headers_choose_the_format_of_body_and_answer(api, body_type, accept, answer_type):
    body = {"history": [1]}
    is_packed = "msgpack" in body_type.lower()
    answer = api.post(
        "/tasks/value/predict",
        content=pack(body) if is_packed else msgspec.json.encode(body),
        headers={"Content-Type": body_type, "Accept": accept},
    )
    assert (answer.status_code, answer.headers["content-type"]) == (200, answer_type)
    read = unpack if answer_type == PACKED else msgspec.json.decode
    assert read(answer.content)["task"] == "value"


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/tasks/nothing/predict", {"history": [1]}, 404, "task_not_found"),
        ("/tasks/value/predict", {"history": [b"1"]}, 400, "malformed_request"),
        ("/tasks/value/predict", {"history": [1.5]}, 400, "malformed_request"),
        ("/users/predict", {"history": [1]}, 400, "malformed_request"),
    ],
)
def test_a_refusal_has_the_format_of_the_answer(api, path, body, status, code):
    answer = ask(api, path, body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PACKED)
    problem = unpack(answer.content)
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == answer.headers["x-request-id"]
    plain = ask(api, path, body, Accept="application/json")
    assert plain.headers["content-type"] == "application/problem+json"
    assert plain.json()["detail"] == problem["detail"]


def test_json_that_is_called_packed_is_refused(api):
    answer = api.post(
        "/tasks/value/predict", content=b'{"history": [1]}', headers={"Content-Type": PACKED}
    )
    assert (answer.status_code, unpack(answer.content)["code"]) == (400, "malformed_request")


def test_packed_calls_are_counted_by_their_protocol(server, api):
    name = 'peterrec_protocol_requests_total{outcome="ok",protocol="msgpack"}'
    before = server.metrics()[name]
    assert ask(api, "/tasks/value/predict", {"history": [1]}).status_code == 200
    eventually(lambda: server.metrics()[name] > before)
