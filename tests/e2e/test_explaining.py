"""Explanations over HTTP equal what a caller finds who removes the items one by one."""

import math
import threading
from uuid import uuid4

import httpx
import pytest

from peterrec.model.spec import PatchGeometry, TableSpec
from tests.e2e.conftest import KINDS, push
from tests.e2e.rollouts import broken_bundle, put_traffic, with_two_versions
from tests.e2e.running import running_server
from tests.service.random_bundles import ITEMS
from tests.waiting import eventually

TOLERANCE = 2e-5
HISTORY: list[str | int] = ["item-3", 7, "42", "nope", "item-99", 0, "item-3", *ITEMS[50:70]]


def predict(api: httpx.Client, task: str, **body: object) -> list[dict]:
    answer = api.post(f"/tasks/{task}/predict", json=body)
    assert answer.status_code == 200, answer.text
    found: list[dict] = answer.json()["predictions"]
    return found


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))


def scores_of(prediction: dict) -> dict[str, float]:
    """The scores of an answer in the unit of its explanation, by output."""
    if prediction["kind"] == "ranking":
        return {item["id"]: item["score"] for item in prediction["items"]}
    if prediction["kind"] == "value":
        return {"value": prediction["value"]}
    return {label: log_odds(p) for label, p in prediction["scores"].items()}


def removed_one_by_one(
    api: httpx.Client, task: str, history: list[str | int], **parameters: object
) -> dict[str, dict[str, float]]:
    """What each output loses with each item, by a call of its own for each."""
    (whole,) = predict(api, task, history=history, parameters=parameters)
    found: dict[str, dict[str, float]] = {output: {} for output in scores_of(whole)}
    for item in dict.fromkeys(map(str, history)):
        rest = [each for each in history if str(each) != item]
        (without,) = predict(api, task, history=rest, parameters=parameters)
        left = scores_of(without)
        for output, score in scores_of(whole).items():
            found[output][item] = score - left[output]
    return found


def assert_explained(prediction: dict, expected: dict[str, dict[str, float]], count: int) -> None:
    """The prediction's explanation names the most of the expected contributions."""
    for output in prediction["explanation"]["outputs"]:
        moved = expected[output["output"]]
        found = [item["contribution"] for item in output["items"]]
        assert len(found) == min(count, prediction["explanation"]["items_looked_at"])
        most = sorted((abs(each) for each in moved.values()), reverse=True)[: len(found)]
        assert [abs(each) for each in found] == pytest.approx(most, abs=TOLERANCE)
        for item in output["items"]:
            assert item["contribution"] == pytest.approx(moved[str(item["id"])], abs=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_are_those_of_removing_the_items_one_by_one_over_http(api, kind):
    parameters = {"exclude_seen": False}
    expected = removed_one_by_one(api, kind, HISTORY, **parameters)
    explain = {"items": 5, "outputs": "all"}
    (found,) = predict(api, kind, history=HISTORY, parameters={**parameters, "explain": explain})
    assert len(found["explanation"]["outputs"]) == len(expected)
    assert_explained(found, expected, 5)


def test_an_explanation_says_how_it_was_made_and_what_it_looked_at(api):
    (found,) = predict(api, "value", history=HISTORY, parameters={"explain": 5})
    assert {name: found["explanation"][name] for name in list(found["explanation"])[:-1]} == {
        "method": "leave_one_out",
        "unit": "value",
        "items_looked_at": 20,
        "items_without_effect": 6,
        "items_left_out": 0,
        "rows": 21,
    }
    (output,) = found["explanation"]["outputs"]
    assert output["output"] == "value"
    assert output["score"] == pytest.approx(found["value"], abs=TOLERANCE)
    assert len(output["items"]) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_explained_unless_it_is_asked_for(api, kind):
    (plain,) = predict(api, kind, history=HISTORY)
    (off,) = predict(api, kind, history=HISTORY, parameters={"explain": 0})
    assert "explanation" not in plain
    assert plain == off
    (explained,) = predict(api, kind, history=HISTORY, parameters={"explain": 1})
    assert explained.pop("explanation")
    assert explained == plain


def test_explanations_and_the_rows_that_they_add_are_counted(server, api):
    names = ("explanation_rows_total", 'explanations_total{outcome="ok"}')
    before = [server.metrics().get(f"peterrec_{name}", 0.0) for name in names]
    for _ in range(5):
        predict(api, "value", history=HISTORY, parameters={"explain": 1})
    eventually(lambda: server.metrics().get(f"peterrec_{names[0]}", 0.0) >= before[0] + 5 * 21)
    eventually(lambda: server.metrics().get(f"peterrec_{names[1]}", 0.0) >= before[1] + 5)


def test_a_card_of_many_tasks_is_explained_task_by_task(api):
    tasks = ["classification", {"task": "value", "explain": 0}, "tags", "ranking", "none"]
    body = {"history": HISTORY[:5], "tasks": tasks, "parameters": {"explain": 2}}
    card = api.post("/users/predict", json=body).json()
    assert [*card["errors"]] == ["none"]
    assert {name for name, each in card["results"].items() if "explanation" in each} == {
        "classification",
        "tags",
        "ranking",
    }
    for task in ("classification", "tags"):
        expected = removed_one_by_one(api, task, HISTORY[:5])
        assert_explained(card["results"][task], expected, 2)


def test_many_instances_are_explained_each_by_its_own_history(api):
    histories = [HISTORY[at : at + 2] for at in range(20)]
    instances: list[dict] = [{"history": history, "user_id": str(history)} for history in histories]
    instances.insert(3, {"history": [None]})
    found = predict(api, "value", instances=instances, parameters={"explain": 5})
    bad = found.pop(3)
    assert bad["error"]["code"] == "malformed_request"
    for history, each in zip(histories, found, strict=True):
        (alone,) = predict(api, "value", history=history, parameters={"explain": 5})
        assert each["user_id"] == str(history)
        assert each["explanation"] == alone["explanation"]


def test_a_call_that_would_add_too_many_rows_is_refused_with_what_would_fit(api):
    instances = [{"history": HISTORY}] * 25
    body = {"instances": instances, "parameters": {"explain": 3}}
    refused = api.post("/tasks/value/predict", json=body)
    assert (refused.status_code, refused.json()["code"]) == (413, "explanation_too_large")
    assert '"newest": 18}' in refused.json()["hint"]
    assert refused.json()["retryable"] is False
    body["parameters"] = {"explain": {"items": 3, "newest": 18}}
    answered = api.post("/tasks/value/predict", json=body)
    assert answered.status_code == 200
    found = [each["explanation"] for each in answered.json()["predictions"]]
    assert {(each["items_looked_at"], each["items_left_out"]) for each in found} == {(18, 2)}


def test_256_instances_can_be_explained_if_their_histories_are_short(api):
    instances = [{"history": [ITEMS[n % 200]]} for n in range(256)]
    found = predict(api, "classification", instances=instances, parameters={"explain": 1})
    assert {each["explanation"]["rows"] for each in found} == {2}
    assert found[3]["explanation"] == found[203]["explanation"]


@pytest.mark.parametrize(
    ("explain", "place"),
    [
        (-1, "explain"),
        (101, "explain"),
        (1.5, "explain"),
        ("5", "explain"),
        (True, "explain"),
        ({}, "explain"),
        ({"items": 0}, "explain.items"),
        ({"items": 3, "newest": 0}, "explain.newest"),
        ({"items": 3, "output": "all"}, "explain"),
        ({"items": 3, "outputs": "F"}, "explain.outputs"),
    ],
)
def test_a_misspelt_option_is_refused_at_its_place(api, explain, place):
    body = {"history": [1], "parameters": {"explain": explain}}
    refused = api.post("/tasks/value/predict", json=body)
    assert (refused.status_code, refused.json()["code"]) == (400, "malformed_request")
    assert f"$.parameters.{place}" in refused.json()["detail"]
    assert refused.json()["hint"]


def test_explain_in_the_wrong_place_is_refused_with_the_right_one(api):
    refused = api.post("/tasks/value/predict", json={"history": [1], "explain": 5})
    assert refused.status_code == 400
    hint = refused.json()["hint"]
    assert "`explain` belongs in an entry of `instances` or in `parameters`" in hint


@pytest.fixture
def task() -> str:
    return f"explained-{uuid4().hex[:8]}"


def test_the_version_that_answers_is_the_one_that_is_explained(api, task, workshop):
    bundles = [workshop.bundle("classification", seed) for seed in (31, 32)]
    digests = with_two_versions(api, task, *bundles)
    put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 1}])
    instances = [{"history": HISTORY[:4], "user_id": user} for user in range(12)]
    found = predict(api, task, instances=instances, parameters={"explain": 5})
    assert {each["digest"] for each in found} == {*digests}
    for each in found:
        expected = removed_one_by_one(api, task, HISTORY[:4], version=each["version"])
        assert_explained(each, expected, 5)


def test_a_shadow_is_not_explained(server, api, task, workshop):
    bundles = [workshop.bundle("value", seed) for seed in (31, 32)]
    with_two_versions(api, task, *bundles)
    put_traffic(api, task, prod_weight=1, shadow=[2])
    rows = f'traffic_rows_total{{role="shadow",task="{task}"}}'
    (found,) = predict(api, task, history=HISTORY[:4], parameters={"explain": 5})
    assert found["explanation"]["rows"] == 4
    eventually(lambda: server.metrics().get(f"peterrec_{rows}") == 1.0)


def test_an_answer_of_prod_instead_of_a_broken_canary_is_explained(api, task, workshop):
    good = workshop.bundle("classification", seed=33, outputs=130)
    with_two_versions(api, task, good, broken_bundle(workshop, seed=34))
    put_traffic(api, task, prod_weight=0, canary=[{"version": 2, "weight": 1}])
    (found,) = predict(api, task, history=HISTORY[:3], parameters={"explain": 5})
    assert (found["role"], found["explanation"]["rows"]) == ("prod", 4)
    expected = removed_one_by_one(api, task, HISTORY[:3], version=1)
    assert_explained(found, expected, 5)


@pytest.mark.parametrize("kind", ["classification", "tags", "value"])
def test_a_table_and_a_network_are_explained_over_the_whole_history(api, task, workshop, kind):
    push(api, task, workshop.bundle(kind, seed=36, table=TableSpec(1)))
    history: list[str | int] = [*ITEMS[100:145], *HISTORY]
    expected = removed_one_by_one(api, task, history)
    explain = {"items": 100, "outputs": "all"}
    (found,) = predict(api, task, history=history, parameters={"explain": explain})
    explanation = found["explanation"]
    assert explanation["method"] == "leave_one_out_and_table"
    different = len({*map(str, history)})
    assert (explanation["items_looked_at"], explanation["items_without_effect"]) == (
        different - 1,
        1,
    )
    assert explanation["rows"] == 2 + 20
    assert_explained(found, expected, 100)


def test_a_table_alone_is_explained_with_two_rows_whatever_the_length(api, task, workshop):
    bundle = workshop.bundle("classification", 37, table=TableSpec(1), reads_network=False)
    push(api, task, bundle)
    history: list[str | int] = [*ITEMS[:100], *HISTORY]
    expected = removed_one_by_one(api, task, history)
    (found,) = predict(api, task, history=history, parameters={"explain": 100})
    assert (found["explanation"]["method"], found["explanation"]["rows"]) == ("table", 2)
    assert_explained(found, expected, 100)


def test_items_that_only_a_reader_reaches_are_explained(api, task, workshop):
    geometry = PatchGeometry("serial2", 4, (), queries=2)
    push(api, task, workshop.bundle("tags", seed=35, geometry=geometry))
    expected = removed_one_by_one(api, task, HISTORY)
    explain = {"items": 30, "outputs": "all"}
    (found,) = predict(api, task, history=HISTORY, parameters={"explain": explain})
    assert found["explanation"]["items_looked_at"] == 20
    assert_explained(found, expected, 20)


@pytest.mark.slow
def test_a_server_may_give_no_explanations(workshop, tmp_path):
    with (
        running_server(workshop.folder, tmp_path, workers=1, max_explain_rows=0) as server,
        server.client() as client,
    ):
        push(client, "value", workshop.bundle("value", seed=1))
        assert predict(client, "value", history=[1])[0]["kind"] == "value"
        body = {"history": [1], "parameters": {"explain": 1}}
        refused = client.post("/tasks/value/predict", json=body)
    assert (refused.status_code, refused.json()["code"]) == (413, "explanation_too_large")
    assert "gives no explanations" in refused.json()["detail"]


def test_an_explanation_that_comes_too_late_leaves_the_answer(api, server):
    """Explanations that nobody could wait for run beside it, so its turn can't come in time."""
    stop = threading.Event()

    def ask_again_and_again() -> None:
        with server.client() as client:
            body = {"instances": [{"history": HISTORY}] * 24, "parameters": {"explain": 1}}
            while not stop.is_set():
                client.post("/tasks/ranking/predict", json=body)

    others = [threading.Thread(target=ask_again_and_again) for _ in range(12)]
    for each in others:
        each.start()
    try:
        body = {"history": HISTORY, "parameters": {"explain": 1}}
        late: list[dict] = []
        for attempt in range(400):  # how long an answer takes depends on the machine
            limit_ms = str(15 + 5 * (attempt % 40))
            # As batch, it is not refused because interactive calls have waited for longer.
            headers = {"X-Request-Timeout-Ms": limit_ms, "X-Priority": "batch"}
            answer = api.post("/tasks/value/predict", json=body, headers=headers)
            if answer.status_code == 200:
                (found,) = answer.json()["predictions"]
                late += [found] if "error" in found["explanation"] else []
            if late:
                break
    finally:
        stop.set()
        for each in others:
            each.join()
    assert late
    assert isinstance(late[0]["value"], float)
    assert late[0]["explanation"]["outputs"] == []
    assert late[0]["explanation"]["error"]["code"] == "deadline_exceeded"
    assert late[0]["explanation"]["error"]["retryable"] is True
