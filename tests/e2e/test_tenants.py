"""Tenants over REST: made, bounded, attacked by their neighbour, and erased."""

import json
import random
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest

from tests.e2e.conftest import push
from tests.e2e.neighbours import (
    CALLERS,
    KEY_OPERATIONS,
    OPERATIONS,
    TASK_OPERATIONS,
    Target,
    Tenant,
    as_caller,
    make_key,
    make_tenant,
    push_films,
)
from tests.waiting import eventually

NOWHERE = Target("nothing", f"sha256:{'0' * 64}", "nobody", "000000000000")


@pytest.fixture(scope="module")
def victim(server, workshop) -> Tenant:
    """A tenant with a task of two versions, which nobody else may see or change."""
    with server.client() as operator:
        tenant = make_tenant(operator, f"victim-{uuid4().hex[:8]}", description="the victim")
    push_films(server, tenant, workshop.bundle("value", seed=31))
    push_films(server, tenant, workshop.bundle("value", seed=32))
    with as_caller(server, tenant, "admin") as client:
        push(client, "secret", workshop.bundle("ranking", seed=34))
    return tenant


@pytest.fixture(scope="module")
def attacker(server, workshop) -> Tenant:
    """A tenant that has a task of the same name."""
    with server.client() as operator:
        tenant = make_tenant(operator, f"attacker-{uuid4().hex[:8]}")
    push_films(server, tenant, workshop.bundle("value", seed=33))
    return tenant


@pytest.fixture
def fresh(api) -> str:
    return f"tenant-{uuid4().hex[:8]}"


def state_of(server, tenant: Tenant) -> dict[str, object]:
    """What a tenant has, as its admin reads it."""
    with as_caller(server, tenant, "admin") as client:
        keys = client.get("/keys").json()
        for key in keys:
            for part in (key, *key["secrets"]):
                del part["last_used_at"]
        usage, tasks = client.get(f"/tenants/{tenant.name}/usage"), client.get("/tasks")
        found = client.get(f"/tenants/{tenant.name}")
        return {
            "keys": keys,
            "usage": usage.json(),
            "tasks": tasks.json(),
            "films": client.get("/tasks/films").json(),
            "secret": client.get("/tasks/secret").json(),
            "tenant": found.json(),
            "answer": predict(client, "films").json()["digest"],
        }


def predict(client: httpx.Client, task: str) -> httpx.Response:
    return client.post(f"/tasks/{task}/predict", json={"history": [1]})


def without_names(answer: httpx.Response, *names: str) -> tuple[int, str]:
    """What an answer says, apart from the names that the caller gave and what counts calls."""
    text = answer.text.replace(answer.headers.get("x-request-id", "-"), "ID")
    text = re.sub(r'"(registry_)?revision":\d+', '"revision":N', text)
    text = re.sub(r'"(created|updated)_at":"[^"]*"', '"at":"T"', text)
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, "NAME")
    return answer.status_code, text


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("caller", CALLERS)
def test_a_neighbour_changes_nothing_and_cannot_tell_what_there_is(
    server, victim, attacker, operation, caller
):
    """The heart of the matter: each operation, by each kind of the neighbour's keys.

    The target exists for the victim only; the answer must be the one for what exists nowhere.
    """
    there = Target("secret", victim.digest, victim.name, victim.keys["admin"]["key_id"])
    before = state_of(server, victim)
    mine = attacker.keys[caller]["key_id"]
    with as_caller(server, attacker, caller) as client:
        if operation in KEY_OPERATIONS and "{key_id}" not in operation.path:
            answer = operation.send(client, there)
            assert victim.name not in answer.text
            assert victim.keys["admin"]["key_id"] not in answer.text
        else:
            with_theirs, without = operation.send(client, there), operation.send(client, NOWHERE)
            names = (*vars_of(there), *vars_of(NOWHERE), mine)
            assert without_names(with_theirs, *names) == without_names(without, *names)
    assert state_of(server, victim) == before


def vars_of(target: Target) -> tuple[str, ...]:
    return target.task, target.digest, target.tenant, target.key_id


def test_a_neighbours_task_of_the_same_name_is_another_one(server, victim, attacker):
    with as_caller(server, attacker, "admin") as client:
        assert predict(client, "films").json()["digest"] == attacker.digest
        pinned = {"history": [1], "parameters": {"version": victim.digest}}
        answer = client.post("/tasks/films/predict", json=pinned)
        assert answer.json()["code"] == "version_not_found"
        moved = client.put("/tasks/films/aliases/prod", json={"digest": victim.digest})
        assert moved.json()["code"] == "version_not_found"
        traffic = {"prod_weight": 1, "shadow": [victim.digest]}
        shadow = client.put("/tasks/films/traffic", json=traffic)
        assert shadow.json()["code"] == "version_not_found"


def test_the_trail_and_the_lists_show_nothing_of_a_neighbour(server, victim, attacker):
    for caller in CALLERS:
        with as_caller(server, attacker, caller) as client:
            seen = [
                client.get(path).text
                for path in (
                    "/registry/audit",
                    "/registry/audit?format=ndjson",
                    "/tasks",
                    "/keys",
                    "/tenants",
                )
            ]
            everything = client.post("/users/predict", json={"history": [1], "tasks": "all"})
        secrets = [victim.name, victim.digest, *(key["key_id"] for key in victim.keys.values())]
        for text in (*seen, everything.text):
            assert not [secret for secret in secrets if secret in text]


@pytest.mark.parametrize("operation", TASK_OPERATIONS, ids=str)
@pytest.mark.parametrize("caller", ["admin of some", "predict some"])
def test_a_key_that_may_not_use_a_task_cannot_tell_whether_it_exists(
    server, victim, operation, caller
):
    """Within a tenant: ``films`` exists, ``nothing`` does not, and the key is for neither."""
    there = Target("films", victim.digest, victim.name, "000000000000")
    missing = Target("nothing", victim.digest, victim.name, "000000000000")
    with as_caller(server, victim, caller) as client:
        answers = [operation.send(client, target) for target in (there, missing)]
    assert without_names(answers[0], "films") == without_names(answers[1], "nothing")


def test_refusing_a_task_takes_as_long_whether_it_exists_or_not(server, victim):
    """The quickest of many calls, in a random order; a catalog that is read would show."""
    times: dict[str, list[float]] = {"secret": [], "nothing": []}
    with as_caller(server, victim, "predict some") as client:
        for task in random.Random(1).sample([*times] * 200, 400):
            started = time.perf_counter()
            answer = predict(client, task)
            times[task].append(time.perf_counter() - started)
            assert answer.json()["code"] == "forbidden"
    one, other = map(min, times.values())
    assert one < 1.5 * other
    assert other < 1.5 * one


def test_a_call_for_many_tasks_refuses_those_of_others_without_looking(server, victim):
    asked = ["films", "nothing", "other-one"]
    with as_caller(server, victim, "predict some") as client:
        answer = client.post("/users/predict", json={"history": [1], "tasks": asked}).json()
    codes = {task: error["code"] for task, error in answer["errors"].items()}
    assert codes == {"films": "forbidden", "nothing": "forbidden", "other-one": "task_not_found"}


def test_the_key_is_looked_at_before_the_body(server, victim):
    for secret, status in (("prk_000000000000_no", 401), (victim.secret("predict some"), 403)):
        with server.client(secret) as client:
            answer = client.post("/tasks/films/predict", content=b'{"history": [')
            assert answer.status_code == status


def test_a_tenant_is_made_bounded_used_and_erased_by_rest_alone(server, api, fresh, workshop):
    quotas = {"tasks": 1, "versions": 2, "keys": 7, "bundle_bytes": None}
    assert api.get(f"/tenants/{fresh}").json()["code"] == "tenant_not_found"
    assert api.post(f"/tenants/{fresh}/keys", json=KEY).json()["code"] == "tenant_not_found"
    tenant = make_tenant(api, fresh, description="d", quotas=quotas)
    push_films(server, tenant, workshop.bundle("value", seed=41))
    with as_caller(server, tenant, "admin") as client:
        assert predict(client, "films").status_code == 200
        full = client.post("/tasks/books/versions", content=workshop.bundle("value", seed=42))
        assert (full.status_code, full.json()["code"]) == (507, "quota_exceeded")
        assert "may have 1 tasks and has 1" in full.json()["detail"]
        push(client, "films", workshop.bundle("value", seed=43))
        full = client.post("/tasks/films/versions", content=workshop.bundle("value", seed=44))
        assert (full.status_code, full.json()["code"]) == (507, "quota_exceeded")
        again = push(client, "films", workshop.bundle("value", seed=43))  # registered already
        assert again.status_code == 200
        assert client.post("/keys", json=KEY).status_code == 201
        assert client.post("/keys", json=KEY).json()["code"] == "quota_exceeded"
        usage = client.get(f"/tenants/{fresh}/usage").json()
    size = len(workshop.bundle("value", seed=41)) + len(workshop.bundle("value", seed=43))
    assert usage["tenant"] == fresh
    assert usage["tasks"] == {"used": 1, "limit": 1}
    assert usage["versions"] == {"used": 2, "limit": 2}
    assert usage["bundle_bytes"] == {"used": size, "limit": None}
    assert usage["keys"] == {"used": 7, "limit": 7}
    assert usage["head_bytes"]["used"] > 0
    deleted = api.delete(f"/tenants/{fresh}").json()
    assert deleted["erased"] == {"tasks": 1, "versions": 2, "keys": 7, "bundles": 2}
    for caller in CALLERS:
        with as_caller(server, tenant, caller) as client:
            assert predict(client, "films").status_code == 401
    events = api.get("/registry/audit?format=ndjson").text.splitlines()
    last = [event for event in map(json.loads, events) if event.get("tenant") == fresh][-1]
    assert last["action"] == "delete_tenant"
    assert last["note"] == "1 tasks, 2 versions, 7 keys, 2 bundles erased"
    assert api.get(f"/tenants/{fresh}/usage").json()["code"] == "tenant_not_found"
    assert api.put(f"/tenants/{fresh}", json={}).status_code == 201
    assert api.get(f"/tenants/{fresh}/usage").json()["tasks"] == {"used": 0, "limit": None}
    api.delete(f"/tenants/{fresh}")


KEY = {"name": "k", "scopes": ["predict"]}


def test_local_copies_of_a_deleted_tenant_are_removed(server, api, fresh, workshop):
    cache = server.folder / "data" / "cache"
    tenant = make_tenant(api, fresh)
    with as_caller(server, tenant, "admin") as client:
        old = push(client, "films", workshop.bundle("ranking", seed=51)).json()["digest"]
        new = push(client, "films", workshop.bundle("ranking", seed=52)).json()["digest"]
        hidden = push(client, "films", workshop.bundle("value", seed=53), alias="").json()
        shared = push(client, "films", workshop.bundle("value", seed=1), alias="v")
    files = [cache / f"{d[7:]}.bundle" for d in (old, new, hidden["digest"])]
    assert [file.exists() for file in files] == [True, True, True]
    api.delete(f"/tenants/{fresh}")
    eventually(lambda: not [file for file in files if file.exists()], 20)
    eventually(lambda: new[7:] not in (cache / "snapshot.json").read_text(), 20)
    assert fresh not in (cache / "snapshot.json").read_text() or '"is_deleted":true' in (
        (cache / "snapshot.json").read_text()
    )
    assert (cache / f"{shared.json()['digest'][7:]}.bundle").exists()
    assert predict(api, "value").json()["digest"] == shared.json()["digest"]


def test_a_tenant_can_be_changed_only_by_who_has_seen_it(api, fresh):
    created = api.put(f"/tenants/{fresh}", json={}, headers={"If-None-Match": "*"})
    assert created.status_code == 201
    again = api.put(f"/tenants/{fresh}", json={}, headers={"If-None-Match": "*"})
    assert (again.status_code, again.json()["code"]) == (412, "revision_mismatch")
    etag = api.get(f"/tenants/{fresh}").headers["etag"]
    assert etag == created.headers["etag"]
    body = {"quotas": {"tasks": 3}}
    assert api.put(f"/tenants/{fresh}", json=body, headers={"If-Match": etag}).status_code == 200
    late = api.put(f"/tenants/{fresh}", json={}, headers={"If-Match": etag})
    assert late.json()["code"] == "revision_mismatch"
    assert api.get(f"/tenants/{fresh}").json()["quotas"]["tasks"] == 3
    assert fresh in [tenant["tenant"] for tenant in api.get("/tenants").json()]
    api.delete(f"/tenants/{fresh}")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("DELETE", "/tenants/default", None, 409, "tenant_protected"),
        ("DELETE", "/tenants/nobody", None, 404, "tenant_not_found"),
        ("GET", "/tenants/nobody/keys", None, 404, "tenant_not_found"),
        ("PUT", "/tenants/.hidden", {}, 400, "invalid_name"),
        ("PUT", "/tenants/x", {"quotas": {"tasks": -1}}, 400, "malformed_request"),
        ("PUT", "/tenants/x", {"quotas": {"tasks": 10**14}}, 400, "malformed_request"),
        ("PUT", "/tenants/x", {"quotas": {"users": 1}}, 400, "malformed_request"),
        ("POST", "/keys/nope:rotate", {}, 404, "key_not_found"),
        ("DELETE", "/keys/nope/secrets/1", None, 404, "key_not_found"),
        ("POST", "/keys/nope:rotate", {"overlap_s": -1}, 400, "malformed_request"),
        ("POST", "/keys", {**KEY, "expires_at": "2001-01-01T00:00:00Z"}, 400, "invalid_expiry"),
        ("POST", "/keys", {**KEY, "expires_at": "2999-01-01T00:00:00"}, 400, "malformed_request"),
    ],
)
def test_refusals_about_tenants_and_keys_have_a_code(api, method, path, body, status, code):
    answer = api.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


@pytest.fixture
def admin_of_default(server, api) -> Iterator[httpx.Client]:
    """An admin of the operators' tenant who is no operator."""
    key = api.post("/keys", json={"name": "a", "scopes": ["admin", "predict"]}).json()
    with server.client(key["api_key"]) as client:
        yield client
    api.delete(f"/keys/{key['key_id']}")


def test_nobody_becomes_an_operator_but_by_one(server, api, admin_of_default, victim):
    wanted = {"name": "x", "scopes": ["operator"]}
    by_admin = admin_of_default.post("/keys", json=wanted)
    assert (by_admin.status_code, by_admin.json()["code"]) == (403, "operator_scope_refused")
    operators = next(key for key in api.get("/keys").json() if "operator" in key["scopes"])
    for method, path in [
        ("POST", f"/keys/{operators['key_id']}:rotate"),
        ("DELETE", f"/keys/{operators['key_id']}"),
        ("DELETE", f"/keys/{operators['key_id']}/secrets/1"),
    ]:
        assert admin_of_default.request(method, path).json()["code"] == "forbidden"
    elsewhere = api.post(f"/tenants/{victim.name}/keys", json=wanted)
    assert elsewhere.json()["code"] == "operator_scope_refused"
    with as_caller(server, victim, "admin") as client:
        assert client.post("/keys", json=wanted).json()["code"] == "operator_scope_refused"
    made = api.post("/keys", json=wanted)
    assert made.status_code == 201
    with server.client(made.json()["api_key"]) as client:
        assert client.get(f"/tenants/{victim.name}").status_code == 200
        assert client.get("/tasks").json() == []  # above tenants, but in none of them
        assert client.get("/tasks/films").json()["code"] == "forbidden"
        seen = client.get("/registry/audit?format=ndjson").text
        assert victim.name in seen
        assert victim.digest not in seen
    api.delete(f"/keys/{made.json()['key_id']}")


def test_a_key_that_expires_is_refused_from_then_on(server, api, victim):
    end = datetime.now(UTC) + timedelta(seconds=1.5)
    key = make_key(api, victim.name, "predict", expires_at=end.isoformat())
    assert datetime.fromisoformat(key["expires_at"]) - end < timedelta(milliseconds=1)
    with server.client(key["api_key"]) as client:
        assert predict(client, "films").status_code == 200
        eventually(lambda: predict(client, "films").status_code == 401)
        assert datetime.now(UTC) >= end
        refused = predict(client, "films")
    assert (refused.json()["code"], refused.headers["www-authenticate"]) == (
        "key_expired",
        "Bearer",
    )
    api.delete(f"/tenants/{victim.name}/keys/{key['key_id']}")


def test_a_key_is_rotated_without_a_refused_request(server, api, victim):
    path = f"/tenants/{victim.name}/keys"
    old = make_key(api, victim.name, "predict")
    key_id = old["key_id"]
    new = api.post(f"{path}/{key_id}:rotate", json={"overlap_s": 60}).json()
    assert [secret["number"] for secret in new["secrets"]] == [2, 1]
    for _ in range(8):
        for secret in (old["api_key"], new["api_key"]):
            with server.client(secret) as client:
                assert predict(client, "films").status_code == 200
    assert api.post(f"{path}/{key_id}:rotate", json={}).json()["code"] == "key_rotating"
    assert api.delete(f"{path}/{key_id}/secrets/1").status_code == 200
    with server.client(old["api_key"]) as client:
        assert predict(client, "films").status_code == 401
    with server.client(new["api_key"]) as client:
        assert predict(client, "films").status_code == 200
    assert api.delete(f"{path}/{key_id}/secrets/2").json()["code"] == "last_secret"
    at_once = api.post(f"{path}/{key_id}:rotate", json={"overlap_s": 0}).json()
    assert [secret["number"] for secret in at_once["secrets"]] == [3]
    api.delete(f"{path}/{key_id}")


def test_a_secret_of_a_rotation_expires_by_itself(server, api, victim):
    old = make_key(api, victim.name, "predict")
    path = f"/tenants/{victim.name}/keys/{old['key_id']}"
    api.post(f"{path}:rotate", json={"overlap_s": 1})
    with server.client(old["api_key"]) as client:
        eventually(lambda: predict(client, "films").json().get("code") == "key_expired")
    assert api.post(f"{path}:rotate", json={}).status_code == 200
    api.delete(path)


def test_a_key_tells_when_each_of_its_secrets_was_used(server, api, victim):
    path = f"/tenants/{victim.name}/keys"
    key = make_key(api, victim.name, "predict")
    assert key["last_used_at"] is None
    began = datetime.now(UTC)
    with server.client(key["api_key"]) as client:
        predict(client, "films")

    def listed() -> dict:
        return next(k for k in api.get(path).json() if k["key_id"] == key["key_id"])

    eventually(lambda: listed()["last_used_at"] is not None, 25)
    used = datetime.fromisoformat(listed()["last_used_at"])
    assert began - timedelta(seconds=1) <= used <= datetime.now(UTC)
    assert listed()["secrets"][0]["last_used_at"] == listed()["last_used_at"]
    api.delete(f"{path}/{key['key_id']}")


def test_what_a_tenant_uses_is_in_the_metrics_until_it_is_deleted(server, api, fresh):
    api.put(f"/tenants/{fresh}", json={"quotas": {"keys": 2}})
    make_key(api, fresh, "predict")
    used = f'peterrec_tenant_usage{{resource="keys",tenant="{fresh}"}}'
    quota = f'peterrec_tenant_quota{{resource="keys",tenant="{fresh}"}}'
    eventually(lambda: server.metrics().get(used) == 1, 25)
    assert server.metrics()[quota] == 2
    api.delete(f"/tenants/{fresh}")
    eventually(lambda: used not in server.metrics(), 25)


def test_two_headers_with_different_keys_are_refused(server, victim, attacker):
    with as_caller(server, victim, "admin") as client:
        other = {"X-API-Key": attacker.secret("admin")}
        answer = client.get("/tasks", headers=other)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        same = {"X-API-Key": victim.secret("admin")}
        assert client.get("/tasks", headers=same).status_code == 200


def test_an_operation_is_in_the_matrix_if_it_is_in_the_document(server):
    """A route that is added later has to be tried by the neighbour, too."""
    tried = {(operation.method.lower(), operation.path) for operation in OPERATIONS}
    for method, path in list(tried):
        tried.add((method, path.replace("/versions/1", "/versions/{version}")))
        tried.add((method, path.replace("/versions/{digest}", "/versions/{version}")))
        tried.add((method, path.replace("/aliases/prod", "/aliases/{alias}")))
        tried.add((method, path.replace("/secrets/1", "/secrets/{number}")))
        tried.add((method, path.replace("/webhooks/x", "/webhooks/{name}")))
    with server.client(key="") as client:
        paths = client.get("/openapi.json").json()["paths"]
    operations = {(method, path) for path, item in paths.items() for method in item}
    health = {("get", "/v2/health/live"), ("get", "/v2/health/ready")}
    open_to_all = {("get", "/livez"), ("get", "/readyz"), ("get", "/backbone"), ("get", "/v2")}
    of_the_caller = {
        ("get", "/tasks"),
        ("get", "/tenants"),
        ("get", "/registry/events"),
        ("get", "/registry/replicas"),
        ("get", "/activity"),
        ("get", "/caller"),
        ("post", "/v2/repository/index"),
    }
    assert operations - tried == open_to_all | health | of_the_caller
