"""Each task and each instance of a call has its own outcome, in the answer and in the metrics."""

from collections import Counter
from uuid import uuid4

import pytest

from peterrec.patches.bundle.verify import verify_bundle as verified
from peterrec.patches.identity import DEFAULT_TENANT, Blob, TaskId
from peterrec.patches.registry.records import VersionSummary
from peterrec.patches.registry.registry import Registry, open_redis
from tests.e2e.conftest import push
from tests.e2e.running import running_server
from tests.patches.bundles import LIMITS, TINY, make_bundle
from tests.waiting import eventually


@pytest.fixture
def task(api, workshop):
    name = f"task-{uuid4().hex[:8]}"
    push(api, name, workshop.bundle("ranking", 1))
    return name


def counted(server, what: str, task: str) -> Counter[str]:
    """The outcomes of a task's requests or instances, as the metrics count them."""
    found = {
        outcome: server.metrics().get(
            f'peterrec_{what}_total{{outcome="{outcome}",task="{task}"}}', 0
        )
        for outcome in ("ok", "client_error", "rejected", "deadline", "error")
    }
    return Counter({outcome: int(count) for outcome, count in found.items() if count})


def test_instances_count_by_their_own_outcome(server, api, task):
    body = {"instances": [{"history": [1]}, {"history": [None]}, {"history": [2]}]}
    assert api.post(f"/tasks/{task}/predict", json=body).status_code == 200
    eventually(lambda: counted(server, "instances", task) == {"ok": 2, "client_error": 1})
    assert counted(server, "requests", task) == {"ok": 1}


def test_a_call_whose_every_instance_failed_has_their_status(server, api, task):
    body = {"instances": [{"history": [None]}, {"history": "item-3"}, {"history": [1.5]}]}
    answer = api.post(f"/tasks/{task}/predict", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (400, "malformed_request")
    assert [*problem["errors"]] == ["0", "1", "2"]
    assert "$.instances[2].history[0]" in problem["errors"]["2"]["message"]
    eventually(lambda: counted(server, "requests", task) == {"client_error": 1})
    assert counted(server, "instances", task) == {"client_error": 3}


def test_a_call_whose_instances_failed_for_several_reasons_has_the_first_of_the_gravest(
    server, api, task
):
    long = ["item-3"] * 10_001
    body = {"instances": [{"history": long}, {"history": [None]}]}
    answer = api.post(f"/tasks/{task}/predict", json=body)
    assert (answer.status_code, answer.json()["code"]) == (413, "history_too_long")
    codes = {at: each["code"] for at, each in answer.json()["errors"].items()}
    assert codes == {"0": "history_too_long", "1": "malformed_request"}


def test_the_only_instance_is_refused_without_a_list(api, task):
    answer = api.post(f"/tasks/{task}/predict", json={"instances": [{"history": [None]}]})
    assert answer.status_code == 400
    assert "errors" not in answer.json()


def test_a_task_that_fails_within_a_card_is_a_failure_of_that_task(server, api, task):
    choice = {"task": task, "version": 99}
    card = api.post("/users/predict", json={"history": [1], "tasks": ["value", choice]})
    assert card.status_code == 200
    assert card.json()["errors"][task]["code"] == "version_not_found"
    eventually(lambda: counted(server, "requests", task) == {"client_error": 1})
    assert counted(server, "instances", task) == {"client_error": 1}


def test_a_card_without_any_answer_counts_each_task_by_its_own_error(server, api, task):
    other = f"task-{uuid4().hex[:8]}"
    assert api.put(f"/tasks/{other}", json={}).status_code == 201
    body = {"history": [1], "tasks": [other, {"task": task, "version": 99}]}
    answer = api.post("/users/predict", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "task_not_active")
    eventually(lambda: counted(server, "requests", other) == {"client_error": 1})
    eventually(lambda: counted(server, "requests", task) == {"client_error": 1})


def test_all_are_all_registered_tasks_whether_they_can_be_answered_or_not(api, workshop, task):
    empty, held = (f"task-{uuid4().hex[:8]}" for _ in range(2))
    api.put(f"/tasks/{empty}", json={})
    push(api, held, workshop.bundle("value", 1), alias="next")
    card = api.post("/users/predict", json={"history": [1], "tasks": "all"}).json()
    listed = {each["task"] for each in api.get("/tasks").json()}
    assert card["results"].keys() | card["errors"].keys() == listed
    assert {card["errors"][name]["code"] for name in (empty, held)} == {"task_not_active"}


def test_all_are_the_tasks_that_the_key_may_ask(server, api, workshop):
    mine = f"mine-{uuid4().hex[:8]}"
    api.put(f"/tasks/{mine}", json={})
    key = api.post("/keys", json={"name": "one", "scopes": ["predict:mine-*"]}).json()["api_key"]
    with server.client(key) as client:
        answer = client.post("/users/predict", json={"history": [1], "tasks": "all"})
    assert mine in answer.json()["errors"]
    assert "value" not in answer.json()["errors"]


async def test_a_bundle_that_can_not_be_loaded_is_an_error_that_says_whether_a_retry_may_help(
    workshop, tmp_path, redis_url, redis_prefix
):
    foreign = verified(make_bundle("value"), backbone=TINY, limits=LIMITS)
    registry = Registry(open_redis(redis_url), redis_prefix)
    await registry.blobs.put(Blob(make_bundle("value")))
    summary = VersionSummary.of(foreign)
    await registry.add_version(DEFAULT_TENANT, TaskId("old"), foreign.digest, summary, "ann")
    fits = verified(workshop.bundle("value", 1), backbone=workshop.identity, limits=LIMITS)
    await registry.blobs.put(fits.blob)  # a server that refuses all bundles is not ready
    summary = VersionSummary.of(fits)
    await registry.add_version(DEFAULT_TENANT, TaskId("new"), fits.digest, summary, "ann")
    lost = verified(workshop.bundle("tags", 1), backbone=workshop.identity, limits=LIMITS)
    await registry.blobs.put(lost.blob)
    summary = VersionSummary.of(lost)
    await registry.add_version(DEFAULT_TENANT, TaskId("lost"), lost.digest, summary, "ann")
    await registry.store.redis.hdel(registry.store.key("blobs"), lost.digest)
    await registry.close()
    settings = {"workers": 1, "redis_url": redis_url, "redis_prefix": redis_prefix, "auth": "off"}
    with (
        running_server(workshop.folder, tmp_path, **settings) as server,
        server.client() as client,
    ):
        alone = client.post("/tasks/old/predict", json={"history": [1]})
        problem = alone.json()
        assert (alone.status_code, problem["code"]) == (409, "bundle_refused")
        assert (problem["retryable"], "retry-after" in alone.headers) == (False, False)
        assert "backbone_mismatch" in problem["detail"]
        card = client.post("/users/predict", json={"history": [1], "tasks": "all"}).json()
        assert [*card["results"]] == ["new"]
        assert card["errors"]["old"]["code"] == "bundle_refused"
        assert card["errors"]["old"]["retryable"] is False
        assert card["errors"]["lost"]["code"] == "bundle_not_ready"
        assert card["errors"]["lost"]["retryable"] is True
        eventually(lambda: counted(server, "requests", "old") == {"error": 2})
        detail = client.get("/tasks/old").json()
        assert (detail["aliases"]["prod"]["version"], detail["served"]) == (1, {})
        moved = client.put("/tasks/old/aliases/next", json={"version": 1}).json()
        assert (moved["version"], moved["is_served"]) == (1, False)
