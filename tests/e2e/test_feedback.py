"""Callers tell what came of predictions; the metrics and the guard of a canary hear of it."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from peterrec.service.predict.feedback import MARK_BYTES
from peterrec_client import ClassificationPrediction, Client
from tests.e2e.conftest import push
from tests.e2e.neighbours import as_caller, make_tenant, push_films
from tests.e2e.rollouts import HISTORIES, ask, put_traffic, with_two_versions
from tests.e2e.running import running_server
from tests.waiting import eventually

IDS = {"prediction_ids": True}


@pytest.fixture
def task() -> str:
    return f"outcome-{uuid4().hex[:8]}"


def prediction(client, task, **body):
    answer = client.post(f"/tasks/{task}/predict", json={"history": ["item-1"], **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0]


def tell(client, task, *told, by="prediction_id"):
    feedback = [{by: each, "outcome": outcome} for each, outcome in told]
    return client.post(f"/tasks/{task}/feedback", json={"feedback": feedback})


def counted(server, name, task) -> float:
    return server.metrics().get(f'peterrec_feedback_{name}{{task="{task}",version="1"}}', 0.0)


def test_an_outcome_is_counted_for_the_version_that_answered(server, api, task, workshop):
    push(api, task, workshop.bundle("classification", seed=1))
    one, other = (prediction(api, task, parameters=IDS) for _ in range(2))
    right, wrong = (one["prediction_id"], one["label"]), (other["prediction_id"], "other")
    answer = tell(api, task, right, wrong)
    assert answer.status_code == 200, answer.text
    counts = {"counted": 2, "repeated": 0, "unknown": 0}
    assert answer.json() == {"task": task, **counts, "hit_rate": {"1": 0.5}}
    eventually(lambda: counted(server, "outcomes_total", task) == 2)
    assert counted(server, "hits_total", task) == 1


def test_an_outcome_that_is_told_again_changes_nothing(server, api, task, workshop):
    push(api, task, workshop.bundle("classification", seed=1))
    found = prediction(api, task, parameters=IDS)
    told = (found["prediction_id"], found["label"])
    assert tell(api, task, told, told).json()["counted"] == 1
    for outcome in (found["label"], "other"):
        answer = tell(api, task, (found["prediction_id"], outcome))
        assert answer.json() | {"task": ""} == {
            "task": "",
            "counted": 0,
            "repeated": 1,
            "unknown": 0,
            "hit_rate": {},
        }
    assert tell(api, task, (prediction(api, task, parameters=IDS)["prediction_id"], "x")).is_success
    eventually(lambda: counted(server, "outcomes_total", task) == 2)
    assert counted(server, "hits_total", task) == 1


def test_a_made_up_id_changes_nothing(server, api, task, workshop):
    """It says all that a true one says, and only the signature is the caller's own."""
    push(api, task, workshop.bundle("classification", seed=1))
    found = prediction(api, task, parameters=IDS)
    text = found["prediction_id"]
    content = urlsafe_b64decode(text + "=" * (-len(text) % 4))[MARK_BYTES:]
    for mark in (bytes(MARK_BYTES), blake2b(content, digest_size=MARK_BYTES).digest()):
        made_up = urlsafe_b64encode(mark + content).decode()
        answer = tell(api, task, (made_up, found["label"]))
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert tell(api, task, (text, found["label"])).json()["counted"] == 1
    eventually(lambda: counted(server, "outcomes_total", task) == 1)


def test_an_outcome_is_told_by_user_once(server, api, task, workshop):
    push(api, task, workshop.bundle("classification", seed=1))
    found = prediction(api, task, user_id="u1", parameters={"remember": True})
    assert "prediction_id" not in found
    told = [("u1", found["label"]), ("never seen", "F")]

    def tells() -> dict[str, Any]:
        answer = tell(api, task, *told, by="user_id")
        assert answer.status_code == 200, answer.text
        return {name: answer.json()[name] for name in ("counted", "repeated", "unknown")}

    eventually(lambda: tells() == {"counted": 1, "repeated": 0, "unknown": 1})
    assert tells() == {"counted": 0, "repeated": 1, "unknown": 1}
    eventually(lambda: counted(server, "outcomes_total", task) == 1)
    assert counted(server, "hits_total", task) == 1


def test_only_what_is_asked_for_is_remembered(api, task, workshop):
    push(api, task, workshop.bundle("classification", seed=1))
    prediction(api, task, user_id="quiet", parameters=IDS)
    body = {"history": [1], "user_id": 7, "tasks": [task], "parameters": {"remember": True}}
    assert api.post("/users/predict", json=body).status_code == 200
    eventually(lambda: tell(api, task, (7, "x"), by="user_id").json()["counted"] == 1)
    assert tell(api, task, ("quiet", "x"), by="user_id").json()["unknown"] == 1


def test_without_a_user_id_nothing_can_be_remembered(api):
    for path, more in (("/tasks/value/predict", {}), ("/users/predict", {"tasks": ["value"]})):
        body = {"history": [1], "parameters": {"remember": True}, **more}
        answer = api.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
        assert "user_id" in answer.json()["detail"]


@pytest.mark.parametrize("named", [{}, {"prediction_id": "x", "user_id": "u1"}])
def test_an_outcome_is_of_a_prediction_or_of_a_user(api, named):
    answer = api.post("/tasks/value/feedback", json={"feedback": [{"outcome": 1.0, **named}]})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


def test_a_task_that_is_made_anew_gets_no_outcomes_of_the_old_one(api, task, workshop):
    push(api, task, workshop.bundle("classification", seed=1))
    found = prediction(api, task, user_id="u1", parameters=IDS | {"remember": True})
    told = [{"user_id": "u1", "outcome": "x"}]
    assert api.delete(f"/tasks/{task}").status_code == 200
    push(api, task, workshop.bundle("classification", seed=2))
    assert tell(api, task, (found["prediction_id"], "x")).status_code == 400
    answer = api.post(f"/tasks/{task}/feedback", json={"feedback": told})
    assert answer.json()["unknown"] == 1


def test_an_outcome_is_still_understood_when_another_version_answers(server, api, task, workshop):
    push(api, task, workshop.bundle("classification", seed=1))
    found = prediction(api, task, parameters=IDS)
    push(api, task, workshop.bundle("classification", seed=2))
    answer = tell(api, task, (found["prediction_id"], found["label"]))
    assert answer.json()["hit_rate"] == {"1": 1.0}


@pytest.mark.parametrize(
    ("kind", "outcome", "hit_rate"),
    [
        ("ranking", lambda found: [found["items"][0]["id"], "another"], 1.0),
        ("ranking", lambda found: "another", 0.0),
        ("tags", lambda found: [tag["label"] for tag in found["tags"]], 1.0),
        ("value", lambda found: found["value"] + 2, None),
    ],
)
def test_each_kind_has_its_outcomes(api, kind, outcome, hit_rate):
    found = prediction(api, kind, parameters=IDS)
    answer = tell(api, kind, (found["prediction_id"], outcome(found)))
    assert [*answer.json()["hit_rate"].values()] == [hit_rate]


def test_ids_are_there_only_if_asked_for(api):
    assert "prediction_id" not in prediction(api, "value")
    body = {"history": [1], "tasks": ["value", "ranking"], "parameters": IDS}
    results = api.post("/users/predict", json=body).json()["results"]
    assert all(each["prediction_id"] for each in results.values())
    packed = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    asked = msgspec.msgpack.encode({"history": [1], "parameters": IDS})
    answer = msgspec.msgpack.decode(
        api.post("/tasks/value/predict", content=asked, headers=packed).content
    )
    assert answer["predictions"][0]["prediction_id"]


def test_the_python_client_asks_for_ids_and_tells_outcomes(server, api, task, workshop):
    push(api, task, workshop.bundle("classification", seed=1))
    with Client(server.url, api_key=server.key) as client:
        answer = client.predict(task, ["item-1"], prediction_ids=True)
        assert isinstance(answer, ClassificationPrediction)
        assert answer.prediction_id is not None
        told = client.feedback(task, {answer.prediction_id: answer.label})
        assert (told.counted, told.hit_rate) == (1, {"1": 1.0})
        assert client.feedback(task, {answer.prediction_id: answer.label}).repeated == 1
        client.predict(task, ["item-1"], user_id=7, remember=True)
        eventually(lambda: client.feedback_of_users(task, {7: answer.label}).counted == 1)
        assert client.predict(task, ["item-1"]).prediction_id is None


def test_one_bad_outcome_refuses_the_call_and_nothing_is_counted(server, api, task, workshop):
    push(api, task, workshop.bundle("classification", seed=1))
    good = prediction(api, task, parameters=IDS)
    foreign = prediction(api, "value", parameters=IDS)
    for bad in (("nonsense", "F"), (foreign["prediction_id"], 1.0), (good["prediction_id"], 0.5)):
        answer = tell(api, task, (good["prediction_id"], good["label"]), bad)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
        assert "feedback[1]" in answer.json()["detail"]
    assert tell(api, task, (good["prediction_id"], good["label"])).json()["counted"] == 1
    eventually(lambda: counted(server, "outcomes_total", task) == 1)


def test_a_tenant_cannot_tell_outcomes_of_anothers_task(server, api, workshop):
    one, other = (make_tenant(api, f"tenant-{uuid4().hex[:8]}") for _ in range(2))
    for each in (one, other):
        push_films(server, each, workshop.bundle("value", seed=1))
    with as_caller(server, one, "predict") as client:
        found = prediction(client, "films", user_id="u1", parameters=IDS | {"remember": True})
        eventually(lambda: tell(client, "films", ("u1", 1.0), by="user_id").json()["counted"] == 1)
    with as_caller(server, other, "predict") as client:
        answer = tell(client, "films", (found["prediction_id"], 1.0))
        assert answer.status_code == 400
        assert tell(client, "films", ("u1", 1.0), by="user_id").json()["unknown"] == 1
    with as_caller(server, one, "predict some") as client:
        assert tell(client, "films", (found["prediction_id"], 1.0)).status_code == 403
    for each in (one, other):
        api.delete(f"/tenants/{each.name}")


def test_outcomes_of_a_sensitive_task_are_refused(server, api, task, workshop):
    push(api, task, workshop.bundle("classification", seed=1))
    assert api.put(f"/tasks/{task}", json={"is_sensitive": True}).status_code == 200
    found = prediction(api, task, parameters=IDS)
    answer = tell(api, task, (found["prediction_id"], found["label"]))
    assert (answer.status_code, answer.json()["code"]) == (409, "feedback_refused")
    prediction(api, task, user_id="u1", parameters={"remember": True})
    assert tell(api, task, ("u1", "x"), by="user_id").status_code == 409
    for name in server.metrics():
        assert not name.startswith("peterrec_quality") or task not in name


def test_a_canary_that_is_less_often_right_is_ended_by_its_guard(server, api, task, workshop):
    first, second = (workshop.bundle("classification", seed=seed) for seed in (1, 2))
    prod, canary = with_two_versions(api, task, first, second)
    guard = {"max_hit_drop": 0.2, "min_requests": 20}
    weights = [{"version": canary, "weight": 50}]
    put_traffic(api, task, prod_weight=50, canary=weights, guard=guard)
    for user in range(120):
        answer: dict[str, Any] = ask(api, task, user, **IDS)
        (found,) = answer["predictions"]
        outcome = found["label"] if answer["digest"] == prod else "other"
        assert tell(api, task, (found["prediction_id"], outcome)).status_code == 200
    eventually(lambda: api.get(f"/tasks/{task}").json()["traffic"] is None, 30)
    found = api.get("/registry/audit", params={"task": task}).json()["events"]
    (trip,) = [event for event in found if event["action"] == "trip_guard"]
    assert "hit_drop" in str(trip)


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "is_seen"), [("all", True), ("off", False)])
def test_the_settings_say_what_is_looked_at(workshop, tmp_path, setting, is_seen):
    with (
        running_server(workshop.folder, tmp_path, workers=1, sample_answers=setting) as server,
        server.client() as api,
    ):
        push(api, "health", workshop.bundle("classification", seed=1))
        api.put("/tasks/health", json={"is_sensitive": True})
        for user in range(20):
            body = {"history": HISTORIES[user], "parameters": IDS}
            found = api.post("/tasks/health/predict", json=body).json()["predictions"][0]
        status = tell(api, "health", (found["prediction_id"], found["label"])).status_code
        assert status == (200 if is_seen else 409)
        if is_seen:
            name = 'peterrec_quality_answers_total{task="health"}'
            eventually(lambda: server.metrics().get(name, 0) == 20, 20)
