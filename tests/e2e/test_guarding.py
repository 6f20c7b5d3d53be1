"""A guard ends traffic that is worse than it may be: here at once, everywhere soon, told why."""

import signal
from contextlib import ExitStack
from functools import partial
from uuid import uuid4

import pytest

from tests.e2e.conftest import push
from tests.e2e.rollouts import (
    UNPROBED_OUTPUTS,
    ask,
    broken_bundle,
    opposite_bundle,
    put_traffic,
    with_two_versions,
)
from tests.e2e.running import running_server
from tests.waiting import eventually

USERS = range(120)


@pytest.fixture
def task() -> str:
    return f"guarded-{uuid4().hex[:8]}"


def traffic_of(api, task):
    return api.get(f"/tasks/{task}").json()["traffic"]


def predict_status(api, task):
    return api.post(f"/tasks/{task}/predict", json={"history": []}).status_code


def trips(api, task):
    found = api.get("/registry/audit", params={"task": task}).json()["events"]
    return [event for event in found if event["action"] == "trip_guard"]


def serves_only(api, task, digest):
    return {ask(api, task, user)["digest"] for user in USERS} == {digest}


def ask_until_it_trips(api, task, prod):
    """Every answer is good; when the guard has tripped, they are all prod's."""

    def has_tripped() -> bool:
        for user in USERS:
            ask(api, task, user)
        return traffic_of(api, task) is None

    eventually(has_tripped, 30)
    assert serves_only(api, task, prod)


def test_a_canary_that_fails_is_ended_and_no_request_fails(server, api, task, workshop):
    sound = workshop.bundle("classification", seed=31, outputs=UNPROBED_OUTPUTS)
    prod, canary = with_two_versions(api, task, sound, broken_bundle(workshop, seed=32))
    guard = {"max_error_share": 0.1, "min_requests": 10}
    put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 1}], guard=guard)
    assert serves_only(api, task, prod)
    ask_until_it_trips(api, task, prod)
    (trip,) = trips(api, task)
    assert (trip["actor"], trip["reason"]) == ("system", "error_share")
    assert trip["observed"]["digest"] == canary
    assert trip["observed"]["errors"] == trip["observed"]["requests"] >= 10
    assert trip["previous_traffic"]["canary"] == [{"digest": canary, "weight": 1}]
    series = f'peterrec_guard_trips_total{{reason="error_share",task="{task}"}}'
    eventually(lambda: server.metrics().get(series) == 1)


def test_a_canary_that_answers_otherwise_is_ended(api, task, workshop):
    bundle = workshop.bundle("classification", seed=33)
    prod, canary = with_two_versions(api, task, bundle, opposite_bundle(bundle))
    guard = {"max_divergence": 0.5, "min_requests": 20}
    put_traffic(api, task, prod_weight=3, canary=[{"version": 2, "weight": 1}], guard=guard)
    ask_until_it_trips(api, task, prod)
    (trip,) = trips(api, task)
    assert (trip["reason"], trip["observed"]["digest"]) == ("divergence", canary)
    assert trip["observed"]["divergence"] == 1


def test_a_canary_that_is_too_slow_is_ended(api, task, workshop):
    bundles = [workshop.bundle("classification", seed) for seed in (34, 35)]
    prod, canary = with_two_versions(api, task, *bundles)
    guard = {"max_p99_ms": 0.01, "min_requests": 20}
    put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 1}], guard=guard)
    ask_until_it_trips(api, task, prod)
    (trip,) = trips(api, task)
    assert (trip["reason"], trip["observed"]["digest"]) == ("p99_ms", canary)
    assert trip["observed"]["p99_ms"] > 0.01


def test_a_shadow_is_judged_as_well_and_its_failures_are_seen_by_nobody(api, task, workshop):
    sound = workshop.bundle("classification", seed=36, outputs=UNPROBED_OUTPUTS)
    prod, shadow = with_two_versions(api, task, sound, broken_bundle(workshop, seed=37))
    put_traffic(
        api, task, prod_weight=1, shadow=[2], guard={"max_error_share": 0, "min_requests": 50}
    )
    ask_until_it_trips(api, task, prod)
    assert [trip["observed"]["digest"] for trip in trips(api, task)] == [shadow]


def test_a_good_canary_is_left_alone(server, api, task, workshop):
    bundles = [workshop.bundle("classification", seed) for seed in (38, 39)]
    digests = with_two_versions(api, task, *bundles)
    guard = {"max_error_share": 0, "max_p99_ms": 60_000, "max_divergence": 1, "min_requests": 1}
    put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 1}], guard=guard)
    assert {ask(api, task, user)["digest"] for user in USERS} == set(digests)
    rows = f'peterrec_traffic_rows_total{{role="canary",task="{task}"}}'
    eventually(lambda: server.metrics().get(rows, 0) > 20)
    assert traffic_of(api, task) is not None


def test_what_a_guard_ended_no_rollback_brings_back(api, task, workshop):
    bundle = workshop.bundle("classification", seed=40)
    prod, _ = with_two_versions(api, task, bundle, opposite_bundle(bundle))
    push(api, task, workshop.bundle("classification", seed=41))
    api.put(f"/tasks/{task}/aliases/prod", json={"version": 1})
    guard = {"max_divergence": 0, "min_requests": 5}
    put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 1}], guard=guard)
    ask_until_it_trips(api, task, prod)
    back = api.post(f"/tasks/{task}:rollback").json()
    assert (back["version"], back["traffic"]) == (3, None)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_guard_acts_while_redis_is_away_and_tells_it_later(workshop, tmp_path, task):
    bundle = workshop.bundle("classification", seed=42)
    with (
        running_server(workshop.folder, tmp_path, workers=2) as server,
        server.client() as api,
    ):
        prod, _ = with_two_versions(api, task, bundle, opposite_bundle(bundle))
        guard = {"max_divergence": 0.5, "min_requests": 20}
        put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 1}], guard=guard)
        redis = server.child("redis-server")
        redis.send_signal(signal.SIGSTOP)
        try:
            eventually(lambda: {ask(api, task, user)["digest"] for user in USERS} == {prod}, 20)
        finally:
            redis.send_signal(signal.SIGCONT)
        eventually(lambda: traffic_of(api, task) is None, 30)
        assert [trip["reason"] for trip in trips(api, task)] == ["divergence"]
        assert serves_only(api, task, prod)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_users_keep_their_version_when_the_device_process_dies(workshop, tmp_path, task):
    bundles = [workshop.bundle("classification", seed) for seed in (44, 45)]
    with (
        running_server(workshop.folder, tmp_path, workers=1) as server,
        server.client() as api,
    ):
        digests = with_two_versions(api, task, *bundles)
        put_traffic(api, task, prod_weight=1, canary=[{"version": 2, "weight": 1}], shadow=[2])
        before = [ask(api, task, user)["digest"] for user in USERS]
        server.child("device").kill()
        eventually(lambda: server.is_ready() and "child_died" in server.log, 30)
        eventually(lambda: predict_status(api, task) == 200, 30)
        assert [ask(api, task, user)["digest"] for user in USERS] == before
        assert set(before) == set(digests)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_replicas_that_judge_the_same_traffic_end_it_once(
    workshop, tmp_path, redis_url, redis_prefix, task
):
    settings = {"workers": 1, "redis_url": redis_url, "redis_prefix": redis_prefix, "auth": "off"}
    bundle = workshop.bundle("classification", seed=43)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running_server(workshop.folder, tmp_path / name, **settings))
            for name in ("one", "two")
        ]
        one, two = (stack.enter_context(server.client()) for server in servers)
        prod, _ = with_two_versions(one, task, bundle, opposite_bundle(bundle))
        guard = {"max_divergence": 0.5, "min_requests": 20}
        put_traffic(one, task, prod_weight=1, canary=[{"version": 2, "weight": 1}], guard=guard)
        eventually(lambda: predict_status(two, task) == 200)
        eventually(lambda: {ask(two, task, user)["digest"] for user in range(9)} > {prod})
        for user in USERS:
            ask(one, task, user)
            ask(two, task, user)
        eventually(lambda: traffic_of(one, task) is None)
        for api in (one, two):
            eventually(partial(serves_only, api, task, prod))
        assert len(trips(one, task)) == 1
