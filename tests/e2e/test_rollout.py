"""Canaries, shadows, pinned versions and the way back, over HTTP."""

from collections import Counter
from uuid import uuid4

import pytest

from tests.e2e.conftest import push
from tests.e2e.rollouts import HISTORIES, ask, put_traffic, with_two_versions
from tests.waiting import eventually

USERS = 600


@pytest.fixture
def task() -> str:
    return f"rollout-{uuid4().hex[:8]}"


@pytest.fixture
def digests(api, task, workshop) -> list[str]:
    """Version 1 is prod, version 2 has no alias."""
    bundles = [workshop.bundle("classification", seed) for seed in (21, 22)]
    return with_two_versions(api, task, *bundles)


@pytest.mark.slow
def test_a_canary_answers_its_share_of_the_users_and_each_user_always(server, api, task, digests):
    put_traffic(api, task, prod_weight=70, canary=[{"version": 2, "weight": 30}])
    first = [ask(api, task, user) for user in range(USERS)]
    with server.client() as other:
        again = [ask(other, task, user)["digest"] for user in range(USERS)]
    assert [answer["digest"] for answer in first] == again
    shares = Counter((answer["role"], answer["digest"]) for answer in first)
    assert set(shares) == {("prod", digests[0]), ("canary", digests[1])}
    deviation = (USERS * 0.3 * 0.7) ** 0.5
    assert abs(shares["canary", digests[1]] - 0.3 * USERS) < 4 * deviation


def test_a_user_has_the_same_version_in_every_call(api, task, digests):
    put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 1}])
    alone = [ask(api, task, user)["digest"] for user in range(20)]
    instances = [{"history": [], "user_id": user} for user in range(20)]
    together = api.post(f"/tasks/{task}/predict", json={"instances": instances}).json()
    assert [each["digest"] for each in together["predictions"]] == alone
    assert together["digest"] == digests[0]
    cards = [
        api.post("/users/predict", json={"history": [], "tasks": [task], "user_id": user})
        for user in range(20)
    ]
    assert [card.json()["results"][task]["digest"] for card in cards] == alone
    assert len(set(alone)) == 2


def test_without_a_user_id_a_history_stays_with_its_version(api, task, digests):
    put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 1}])
    body = {"instances": [{"history": history} for history in HISTORIES]}
    first, again = (api.post(f"/tasks/{task}/predict", json=body).json() for _ in range(2))
    found = [each["digest"] for each in first["predictions"]]
    assert found == [each["digest"] for each in again["predictions"]]
    assert set(found) == set(digests)


@pytest.mark.parametrize("pinned", [1, 2, "2", "prod", "next"])
def test_a_request_is_answered_by_the_version_that_it_asks_for(api, task, digests, pinned):
    api.put(f"/tasks/{task}/aliases/next", json={"version": 2})
    put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 1}])
    expected = digests[0] if pinned in {1, "prod"} else digests[1]
    answers = [ask(api, task, user, version=pinned) for user in range(5)]
    assert {(answer["digest"], answer["role"]) for answer in answers} == {(expected, "pinned")}
    by_digest = ask(api, task, 1, version=expected)
    assert (by_digest["digest"], by_digest["alias"]) == (expected, None)
    card = {"history": [], "tasks": [{"task": task, "version": pinned}]}
    result = api.post("/users/predict", json=card).json()["results"][task]
    assert (result["digest"], result["role"]) == (expected, "pinned")


@pytest.mark.parametrize(
    ("pinned", "status", "code"),
    [
        (2, 409, "version_not_served"),
        (99, 404, "version_not_found"),
        (10**30, 404, "version_not_found"),
        ("sha256:" + "0" * 64, 404, "version_not_found"),
        ("nope", 404, "alias_not_found"),
    ],
)
def test_a_version_that_nothing_names_is_refused_and_those_that_are_served_listed(
    api, task, digests, pinned, status, code
):
    body = {"history": [], "parameters": {"version": pinned}}
    answer = api.post(f"/tasks/{task}/predict", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert code == "alias_not_found" or "1 (prod)" in answer.json()["detail"]


def test_a_shadow_runs_in_the_same_batch_and_never_answers(server, api, task, digests):
    put_traffic(api, task, prod_weight=1, shadow=[2])
    eventually(lambda: server.metrics()["peterrec_queue_depth"] == 0)
    before = server.metrics()
    answers = [ask(api, task, user) for user in range(50)]
    assert {answer["digest"] for answer in answers} == {digests[0]}
    shadows = f'peterrec_traffic_rows_total{{role="shadow",task="{task}"}}'
    eventually(lambda: server.metrics().get(shadows) == 50)
    after = server.metrics()
    grown = {
        name: after[name] - before[name]
        for name in ("peterrec_batch_rows_count", "peterrec_batch_rows_sum")
    }
    assert grown == {"peterrec_batch_rows_count": 50, "peterrec_batch_rows_sum": 100}
    divergence = f'peterrec_traffic_divergence{{role="shadow",task="{task}"}}'
    eventually(lambda: 0 < server.metrics().get(divergence, 0) <= 1)


def test_the_series_of_traffic_go_with_it_and_with_the_task(server, api, task, digests):
    put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 1}], shadow=[2])
    for user in range(10):
        ask(api, task, user)

    def series() -> set[str]:
        return {n.split("{")[0] for n in server.metrics() if "traffic" in n and task in n}

    eventually(lambda: "peterrec_traffic_p99_seconds" in series())
    assert "peterrec_traffic_rows_total" in series()
    api.delete(f"/tasks/{task}/traffic")
    eventually(lambda: "peterrec_traffic_p99_seconds" not in series())
    api.delete(f"/tasks/{task}")
    eventually(lambda: series() == set())


def test_a_rollback_restores_aliases_and_traffic_in_one_step(api, task, digests):
    api.put(f"/tasks/{task}/aliases/next", json={"version": 2})
    put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 3}])
    before = api.get(f"/tasks/{task}").json()
    api.delete(f"/tasks/{task}/traffic")
    assert api.get(f"/tasks/{task}").json()["traffic"] is None
    back = api.post(f"/tasks/{task}:rollback").json()
    after = api.get(f"/tasks/{task}").json()
    assert (after["aliases"], after["traffic"]) == (before["aliases"], before["traffic"])
    assert (back["aliases"], back["traffic"]) == (before["aliases"], before["traffic"])
    assert {ask(api, task, user)["digest"] for user in range(30)} == set(digests)


def test_traffic_is_told_by_the_task_and_can_be_put_again_without_effect(api, task, digests):
    wanted = {
        "prod_weight": 9,
        "canary": [{"version": digests[1], "weight": 1}],
        "guard": {"max_error_share": 0.5},
    }
    first = put_traffic(api, task, **wanted)
    again = put_traffic(api, task, **wanted)
    assert first.headers["etag"] == again.headers["etag"]
    shown = api.get(f"/tasks/{task}/traffic")
    assert shown.headers["etag"] == first.headers["etag"]
    assert shown.json()["prod"] == {"version": 1, "digest": digests[0]}
    canary = {"version": 2, "digest": digests[1], "weight": 1}
    assert shown.json()["traffic"]["canary"] == [canary]
    assert shown.json()["traffic"]["guard"]["max_error_share"] == 0.5
    assert api.get(f"/tasks/{task}").json()["traffic"] == shown.json()["traffic"]
    cleared = api.delete(f"/tasks/{task}/traffic").json()
    assert (cleared["traffic"], cleared["previous"]["canary"]) == (None, [canary])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"prod_weight": 1}, 400, "invalid_traffic"),
        ({"canary": [{"version": 2, "weight": 0}]}, 400, "invalid_traffic"),
        ({"canary": [{"version": 9, "weight": 1}]}, 404, "version_not_found"),
        ({"canary": [{"version": "nope", "weight": 1}]}, 404, "alias_not_found"),
        ({"prod_weight": 1, "shadow": [2], "guard": {}}, 400, "invalid_traffic"),
        ({"prod_weight": 1, "shadow": [2], "x": 1}, 400, "malformed_request"),
        ({"prod_weight": 1, "shadow": [3]}, 409, "outputs_differ"),
    ],
)
def test_traffic_that_makes_no_sense_is_refused(api, task, digests, workshop, body, status, code):
    push(api, task, workshop.bundle("value", seed=3), alias="")
    answer = api.put(f"/tasks/{task}/traffic", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_prod_and_canaries_can_not_be_taken_away_under_traffic(api, task, digests):
    put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 1}])
    alias = api.delete(f"/tasks/{task}/aliases/prod")
    assert (alias.status_code, alias.json()["code"]) == (409, "alias_in_use")
    version = api.delete(f"/tasks/{task}/versions/2")
    assert (version.status_code, version.json()["code"]) == (409, "version_in_use")


def test_aliases_come_and_go(api, task, digests):
    api.put(f"/tasks/{task}/aliases/next", json={"version": 2})
    assert api.get(f"/tasks/{task}/aliases/next").json() == {"version": 2, "digest": digests[1]}
    assert set(api.get(f"/tasks/{task}/aliases").json()) == {"prod", "next"}
    assert api.delete(f"/tasks/{task}/aliases/next").status_code == 200
    gone = api.get(f"/tasks/{task}/aliases/next")
    assert (gone.status_code, gone.json()["code"]) == (404, "alias_not_found")


@pytest.fixture
def evicted(api, task, workshop) -> str:
    """Version 1 of the task, which the device has long forgotten."""
    first = push(api, task, workshop.bundle("value", seed=500)).json()
    for seed in range(501, 520):
        push(api, task, workshop.bundle("value", seed=seed))
    digest: str = first["digest"]
    return digest


def test_a_version_that_was_forgotten_by_the_device_is_served_when_its_alias_is_set(
    server, api, task, evicted
):
    api.put(f"/tasks/{task}/aliases/old", json={"version": 1})
    body = {"history": [], "parameters": {"version": "old"}}
    for _ in range(4):
        with server.client() as client:
            answer = client.post(f"/tasks/{task}/predict", json=body)
        assert answer.json()["digest"] == evicted


def test_a_canary_that_was_forgotten_by_the_device_answers_when_its_traffic_is_put(
    server, api, task, evicted
):
    put_traffic(api, task, canary=[{"version": 1, "weight": 1}])
    for user in range(4):
        with server.client() as client:
            assert ask(client, task, user)["digest"] == evicted
