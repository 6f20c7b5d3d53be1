"""Quotas that hold for requests, over real HTTP and two workers."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from tests.e2e.neighbours import Tenant, as_caller, make_tenant, push_films
from tests.waiting import eventually

ROW = {"history": [1]}


@pytest.fixture
def tenant(server, api, workshop) -> Iterator[Tenant]:
    """A tenant with the task ``films`` and without quotas."""
    made = make_tenant(api, f"tenant-{uuid4().hex[:8]}")
    push_films(server, made, workshop.bundle("value", seed=61))
    yield made
    api.delete(f"/tenants/{made.name}")


def bound(api: httpx.Client, tenant: Tenant, **quotas: int) -> None:
    answer = api.put(f"/tenants/{tenant.name}", json={"quotas": quotas})
    assert answer.status_code == 200, answer.text


def predict(client: httpx.Client, rows: int = 1) -> httpx.Response:
    body = ROW if rows == 1 else {"instances": [ROW] * rows}
    return client.post("/tasks/films/predict", json=body)


def rates_of(answer: httpx.Response) -> str:
    return f"{answer.headers.get('ratelimit-policy')} | {answer.headers.get('ratelimit')}"


def test_a_tenant_gets_its_requests_per_second_from_all_workers_together(server, api, tenant):
    bound(api, tenant, requests_per_s=5)
    found: Counter[int] = Counter()
    began = time.monotonic()
    for _ in range(30):  # each over a connection of its own, so through both workers
        with as_caller(server, tenant, "predict") as client:
            answer = predict(client)
            found[answer.status_code] += 1
    seconds = time.monotonic() - began
    assert set(found) <= {200, 429}
    assert 5 <= found[200] <= 5 + 5 * seconds + 1
    if answer.status_code == 429:
        assert answer.json()["code"] == "rate_exceeded"
        assert answer.json()["retryable"] is True
        assert answer.headers.get_list("retry-after") == ["1"]
        assert rates_of(answer) == '"requests";q=5;w=1 | "requests";r=0;t=1'


def test_a_refusal_says_when_and_is_right_to_the_second(server, api, tenant):
    bound(api, tenant, rows_per_s=10)
    with as_caller(server, tenant, "predict") as client:
        first = predict(client, 48)  # 38 rows more than there are: 3.9 s until there is one
        began = time.monotonic()
        assert first.status_code == 200
        assert rates_of(first) == '"rows";q=10;qu="rows";w=1 | "rows";r=0;t=4'
        refused = predict(client)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "4")
        time.sleep(max(0.0, began + 3 - time.monotonic()))
        early = predict(client)
        late_by = time.monotonic() - began - 3
        assert late_by > 0.8 or early.status_code == 429
        time.sleep(max(0.0, began + 4 - time.monotonic()))
        assert predict(client, 48).status_code == 200


def test_a_refused_call_is_not_read(server, api, tenant):
    bound(api, tenant, rows_per_s=1)
    with as_caller(server, tenant, "predict") as client:
        assert predict(client, 200).status_code == 200
        for path in ("/tasks/films/predict", "/users/predict"):
            answer = client.post(path, content=b"{not json")
            assert (answer.status_code, answer.json()["code"]) == (429, "rate_exceeded")


def test_many_tasks_of_one_user_are_as_many_rows(server, api, tenant):
    bound(api, tenant, rows_per_s=1)
    with as_caller(server, tenant, "predict") as client:
        asked = ["films", "nothing", "neither"]
        answer = client.post("/users/predict", json={"history": [1], "tasks": asked})
        assert answer.status_code == 200
        assert answer.headers["ratelimit"] == '"rows";r=0;t=3'  # two lack, and one must be there


def test_the_rows_of_an_explanation_are_rows(server, api, tenant):
    bound(api, tenant, rows_per_s=1000)
    body = {"history": [1, 2, 3], "parameters": {"explain": 3}}
    with as_caller(server, tenant, "predict") as client:
        answer = client.post("/tasks/films/predict", json=body).json()
    rows = answer["predictions"][0]["explanation"]["rows"]
    assert rows > 1
    name = f'peterrec_tenant_admitted_total{{resource="rows",tenant="{tenant.name}"}}'
    eventually(lambda: server.metrics().get(name) == 1 + rows)


def test_only_tenants_with_quotas_for_requests_get_the_fields(server, api, tenant):
    bound(api, tenant, tasks=5)
    with as_caller(server, tenant, "predict") as client:
        for answer in (predict(client), client.get("/tasks"), predict(client, 300)):
            assert "ratelimit" not in answer.headers
            assert "ratelimit-policy" not in answer.headers
    bound(api, tenant, requests_per_s=1000)
    with as_caller(server, tenant, "predict") as client:
        for answer in (predict(client), client.get("/tasks"), predict(client, 300)):
            assert answer.headers.get_list("ratelimit-policy") != []
    bound(api, tenant)
    with as_caller(server, tenant, "predict") as client:
        assert "ratelimit" not in predict(client).headers


def test_a_flood_of_predictions_does_not_keep_an_admin_from_ending_it(server, api, tenant):
    bound(api, tenant, requests_per_s=1, rows_per_s=1)
    with as_caller(server, tenant, "predict") as client:
        while predict(client, 100).status_code != 429:
            pass
    key_id = tenant.keys["predict"]["key_id"]
    with as_caller(server, tenant, "admin") as client:
        gone = client.delete(f"/keys/{key_id}")
        assert gone.status_code == 200
        assert rates_of(gone) == '"administration";q=1;w=1 | "administration";r=0;t=1'
        refused = client.get("/keys")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_exceeded")


def test_rows_that_could_never_wait_are_refused_for_good(server, api, tenant):
    bound(api, tenant, waiting_rows=16)
    with as_caller(server, tenant, "predict") as client:
        answer = predict(client, 17)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_many_rows")
        for _ in range(3):
            answer = predict(client, 16)
            assert (answer.status_code, answer.headers["ratelimit"]) == (200, '"waiting_rows";r=0')
        assert predict(client).status_code == 200


def test_a_stream_beyond_the_quota_is_refused_until_another_one_ends(server, api, tenant):
    bound(api, tenant, streams=1)
    with as_caller(server, tenant, "admin") as one, as_caller(server, tenant, "admin") as other:
        with one.stream("GET", "/registry/events") as stream:
            assert stream.status_code == 200
            refused = other.get("/registry/audit?format=ndjson")
            assert (refused.status_code, refused.json()["code"]) == (429, "at_once_exceeded")
            assert refused.headers["ratelimit"] == '"streams";r=0'
            with other.stream("GET", "/registry/events") as another:
                assert another.status_code == 429
            assert other.get("/registry/audit").status_code == 200  # no stream
        eventually(lambda: other.get("/registry/audit?format=ndjson").status_code == 200)
        # and ends by itself
        eventually(lambda: other.get("/registry/audit?format=ndjson").status_code == 200)


def test_a_stream_of_a_killed_worker_counts_no_more(server, api, tenant):
    bound(api, tenant, streams=1)
    with as_caller(server, tenant, "admin") as client:
        follow_until_workers_are_killed(server, client)
    eventually(lambda: is_streaming_again(server, tenant), 20)


def follow_until_workers_are_killed(server, client: httpx.Client) -> None:
    with contextlib.suppress(httpx.TransportError), client.stream("GET", "/registry/events") as it:
        assert it.status_code == 200
        for child in server.children():
            if "worker" in " ".join(child.cmdline()):
                child.kill()
        for _ in it.iter_bytes():
            pass


def is_streaming_again(server, tenant: Tenant) -> bool:
    try:
        with as_caller(server, tenant, "admin") as client:
            return client.get("/registry/audit?format=ndjson").status_code == 200
    except httpx.TransportError:
        return False


def test_what_is_used_is_seen_by_the_own_admin_and_operators_only(server, api, tenant):
    bound(api, tenant, requests_per_s=1000, rows_per_s=5000, waiting_rows=100, streams=3)
    other = make_tenant(api, f"other-{uuid4().hex[:8]}")
    path = f"/tenants/{tenant.name}/usage"

    def used(client: httpx.Client, what: str) -> float:
        with as_caller(server, tenant, "predict") as asking:
            for _ in range(10):
                predict(asking, 10)
        found = client.get(path).json()[what]["used"]
        return float(found)

    with as_caller(server, tenant, "admin") as client, client.stream("GET", "/registry/events"):
        eventually(lambda: used(client, "requests_per_s") > 0)
        usage = client.get(path).json()

        def has_ten_rows_a_request() -> bool:
            """Between two exchanges, a call may be counted whose rows are not."""
            found = client.get(path).json()
            requests = found["requests_per_s"]["used"]
            return bool(found["rows_per_s"]["used"] == pytest.approx(10 * requests, rel=0.05))

        eventually(has_ten_rows_a_request)
        assert usage["administration_per_s"]["limit"] == 1000
        eventually(lambda: used(client, "streams") == 1)
        assert client.get(path).json()["streams"] == {"used": 1, "limit": 3}
    eventually(lambda: api.get(path).json()["waiting_rows"] == {"used": 0, "limit": 100})
    for caller in ("admin", "predict"):
        with as_caller(server, other, caller) as client:
            assert client.get(path).status_code in {403, 404}
    assert api.get(f"/tenants/{other.name}/usage").json()["rows_per_s"]["used"] is None
    api.delete(f"/tenants/{other.name}")


def test_what_is_given_and_refused_is_in_the_metrics_until_the_tenant_is_deleted(
    server, api, tenant
):
    bound(api, tenant, requests_per_s=1)
    with as_caller(server, tenant, "predict") as client:
        while predict(client).status_code != 429:
            pass

    def series(name: str, resource: str) -> str:
        return f'peterrec_tenant_{name}{{resource="{resource}",tenant="{tenant.name}"}}'

    eventually(lambda: server.metrics().get(series("refused_total", "requests")) == 1)
    found = server.metrics()
    assert found[series("admitted_total", "requests")] >= 1
    assert found[series("admitted_total", "rows")] >= 1
    assert found['peterrec_requests_total{outcome="over_quota",task="__unknown__"}'] >= 1
    eventually(lambda: server.metrics().get(series("share", "requests")) == 1, 25)
    assert server.metrics()[series("quota", "requests_per_s")] == 1
    api.delete(f"/tenants/{tenant.name}")
    eventually(lambda: not [name for name in server.metrics() if tenant.name in name], 25)


def test_a_rate_of_zero_is_no_quota(api, tenant):
    for name in ("requests_per_s", "rows_per_s"):
        answer = api.put(f"/tenants/{tenant.name}", json={"quotas": {name: 0}})
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    bound(api, tenant, streams=0, waiting_rows=0)


def test_after_a_restart_of_the_device_process_what_was_taken_is_still_taken(server, api, tenant):
    bound(api, tenant, rows_per_s=1)
    with as_caller(server, tenant, "predict") as client:
        assert predict(client, 200).status_code == 200  # nearly 200 s of rows
        device = server.child("device")
        device.kill()
        eventually(lambda: not server.is_ready(), 30)
        eventually(server.is_ready, 60)
        assert int(predict(client).headers["retry-after"]) > 100
