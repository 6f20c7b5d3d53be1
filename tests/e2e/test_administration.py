"""Keys, scopes, tasks, versions and aliases over REST."""

from uuid import uuid4

import httpx
import pytest

from tests.e2e.conftest import push


@pytest.fixture
def task() -> str:
    return f"task-{uuid4().hex[:8]}"


def make_key(api: httpx.Client, *scopes: str) -> dict[str, str]:
    answer = api.post("/keys", json={"name": "test", "scopes": [*scopes]})
    assert answer.status_code == 201, answer.text
    return answer.json()


def predict(client: httpx.Client, task: str) -> httpx.Response:
    return client.post(f"/tasks/{task}/predict", json={"history": [1]})


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/docs", "/redoc", "/openapi.json"])
def test_health_and_documentation_need_no_key(server, path):
    with server.client(key="") as client:
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/tasks/tags/predict"),
        ("POST", "/users/predict"),
        ("POST", "/tasks/tags/predict:batch"),
        ("POST", "/users/predict:batch"),
        ("GET", "/tasks"),
        ("GET", "/tasks/tags"),
        ("PUT", "/tasks/tags"),
        ("DELETE", "/tasks/tags"),
        ("GET", "/tasks/tags/versions"),
        ("POST", "/tasks/tags/versions"),
        ("GET", "/tasks/tags/versions/1"),
        ("DELETE", "/tasks/tags/versions/1"),
        ("GET", "/tasks/tags/aliases"),
        ("GET", "/tasks/tags/aliases/prod"),
        ("PUT", "/tasks/tags/aliases/prod"),
        ("DELETE", "/tasks/tags/aliases/prod"),
        ("GET", "/tasks/tags/traffic"),
        ("PUT", "/tasks/tags/traffic"),
        ("DELETE", "/tasks/tags/traffic"),
        ("POST", "/tasks/tags:rollback"),
        ("GET", "/registry/events"),
        ("GET", "/registry/audit"),
        ("GET", "/backbone"),
        ("GET", "/keys"),
        ("POST", "/keys"),
        ("DELETE", "/keys/x"),
        ("POST", "/keys/x:rotate"),
        ("DELETE", "/keys/x/secrets/1"),
        ("GET", "/tenants"),
        ("GET", "/tenants/x"),
        ("PUT", "/tenants/x"),
        ("DELETE", "/tenants/x"),
        ("GET", "/tenants/x/usage"),
        ("GET", "/tenants/x/keys"),
        ("POST", "/tenants/x/keys"),
        ("DELETE", "/tenants/x/keys/x"),
        ("POST", "/tenants/x/keys/x:rotate"),
        ("DELETE", "/tenants/x/keys/x/secrets/1"),
        ("GET", "/webhooks"),
        ("GET", "/webhooks/x"),
        ("PUT", "/webhooks/x"),
        ("DELETE", "/webhooks/x"),
        ("GET", "/tenants/x/webhooks"),
    ],
)
@pytest.mark.parametrize("key", ["", "prk_000000000000_wrong"])
def test_everything_else_needs_a_valid_key(server, method, path, key):
    with server.client(key=key) as client:
        answer = client.request(method, path, json={})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_openapi_document_has_every_route(server):
    with server.client(key="") as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/tasks/{task}/predict",
        "/users/predict",
        "/tasks/{task}/predict:batch",
        "/users/predict:batch",
        "/users/vectors",
        "/v2/models/{task}/infer",
        "/v2/models/{task}/versions/{version}/infer",
        "/livez",
        "/readyz",
        "/v2/health/live",
        "/v2/health/ready",
        "/tasks",
        "/tasks/{task}",
        "/tasks/{task}/versions",
        "/tasks/{task}/versions/{version}",
        "/tasks/{task}/versions/{version}/bundle",
        "/tasks/{task}/aliases",
        "/tasks/{task}/aliases/{alias}",
        "/tasks/{task}:rollback",
        "/tasks/{task}/traffic",
        "/tasks/{task}/availability",
        "/registry/events",
        "/registry/audit",
        "/registry:accept",
        "/keys",
        "/keys/{key_id}:rotate",
        "/keys/{key_id}",
        "/keys/{key_id}/secrets/{number}",
        "/tenants/{tenant}/keys",
        "/tenants/{tenant}/keys/{key_id}:rotate",
        "/tenants/{tenant}/keys/{key_id}",
        "/tenants/{tenant}/keys/{key_id}/secrets/{number}",
        "/webhooks",
        "/webhooks/{name}",
        "/tenants/{tenant}/webhooks",
        "/tenants",
        "/tenants/{tenant}",
        "/tenants/{tenant}/usage",
        "/backbone",
        "/caller",
        "/activity",
        "/registry/replicas",
        "/debug/profile",
        "/tasks/{task}/feedback",
        "/tasks/{task}/versions/{version}:probe",
        "/v2",
        "/v2/models/{task}/ready",
        "/v2/models/{task}/versions/{version}/ready",
        "/v2/models/{task}",
        "/v2/models/{task}/versions/{version}",
        "/v2/models/{task}/config",
        "/v2/models/{task}/versions/{version}/config",
        "/v2/repository/index",
        "/v2/repository/models/{task}/load",
        "/v2/repository/models/{task}/unload",
    }


def test_a_key_may_do_what_its_scopes_say_and_no_more(server, api):
    key = make_key(api, "predict:t*")["api_key"]
    with server.client(key) as client:
        assert predict(client, "tags").status_code == 200
        assert predict(client, "value").json()["code"] == "forbidden"
        assert client.get("/tasks/tags").status_code == 403
        assert client.get("/keys").status_code == 403
        assert [t["task"] for t in client.get("/tasks").json() if t["task"] == "value"] == []
        card = client.post("/users/predict", json={"history": [], "tasks": ["tags", "value"]})
        assert set(card.json()["results"]) == {"tags"}
        assert card.json()["errors"]["value"]["code"] == "forbidden"
        everything = client.post("/users/predict", json={"history": [], "tasks": "all"})
        assert set(everything.json()["results"]) == {"tags"}


def test_a_key_works_when_it_is_created_and_no_longer_when_it_is_revoked(server, api):
    key = make_key(api, "predict")
    with server.client(key["api_key"]) as client:
        assert [predict(client, "tags").status_code for _ in range(4)] == [200] * 4
        assert api.delete(f"/keys/{key['key_id']}").status_code == 200
    for _ in range(4):
        with server.client(key["api_key"]) as client:
            assert predict(client, "tags").status_code == 401


def test_the_other_header_carries_a_key_too(server):
    with server.client(key="") as client:
        answer = client.get("/backbone", headers={"X-API-Key": server.key})
    assert answer.status_code == 200


def test_keys_are_listed_without_their_secrets(api):
    made = make_key(api, "predict:films", "admin")
    listed = api.get("/keys")
    assert made["api_key"] not in listed.text
    (mine,) = [key for key in listed.json() if key["key_id"] == made["key_id"]]
    assert mine["scopes"] == ["predict:films", "admin"]


@pytest.mark.parametrize(
    "body", [{"name": "x", "scopes": ["root"]}, {"name": "x", "scopes": []}, {"name": "x", "k": 1}]
)
def test_a_bad_key_request_is_malformed(api, body):
    answer = api.post("/keys", json=body)
    assert answer.status_code == 400, answer.text


def test_the_backbone_tells_its_identity(api, workshop):
    body = api.get("/backbone").json()
    assert body["fingerprint"] == workshop.loaded.fingerprint
    assert (body["max_len"], body["item_count"], body["is_causal"]) == (20, 200, True)
    assert body["special_tokens"] == {"PAD": 0, "UNK": 1, "CLS": 2, "MASK": 3}


def test_a_task_lives_from_put_to_delete(api, task):
    created = api.put(f"/tasks/{task}", json={"description": "d", "is_sensitive": True})
    assert created.status_code == 201
    assert api.put(f"/tasks/{task}", json={"description": "e"}).status_code == 200
    found = api.get(f"/tasks/{task}")
    assert found.json()["description"] == "e"
    assert found.json()["versions"] == []
    assert task in [t["task"] for t in api.get("/tasks").json()]
    assert api.delete(f"/tasks/{task}").status_code == 200
    assert api.get(f"/tasks/{task}").json()["code"] == "task_not_found"


def test_a_change_can_insist_on_what_it_saw(api, task, workshop):
    bundle = workshop.bundle("value", seed=2)
    created = api.put(f"/tasks/{task}", json={}, headers={"If-None-Match": "*"})
    etag = created.headers["etag"]
    again = api.put(f"/tasks/{task}", json={}, headers={"If-None-Match": "*"})
    assert (again.status_code, again.json()["code"]) == (412, "revision_mismatch")
    pushed = api.post(f"/tasks/{task}/versions", content=bundle, headers={"If-Match": etag})
    assert pushed.status_code == 201
    assert pushed.headers["etag"] == api.get(f"/tasks/{task}").headers["etag"] != etag
    late = api.delete(f"/tasks/{task}", headers={"If-Match": etag})
    assert (late.status_code, late.json()["code"]) == (412, "revision_mismatch")
    odd = api.delete(f"/tasks/{task}", headers={"If-Match": "yesterday"})
    assert (odd.status_code, odd.json()["code"]) == (400, "malformed_request")


def test_aliases_move_and_roll_back_and_every_step_is_served_at_once(api, task, workshop):
    first = push(api, task, workshop.bundle("value", seed=3)).json()
    second = push(api, task, workshop.bundle("value", seed=4)).json()
    assert (first["version"], second["version"]) == (1, 2)
    assert predict(api, task).json()["digest"] == second["digest"]
    rolled = api.post(f"/tasks/{task}:rollback").json()
    assert (rolled["version"], rolled["previous"]) == (1, second["digest"])
    assert predict(api, task).json()["digest"] == first["digest"]
    assert api.put(f"/tasks/{task}/aliases/prod", json={"version": 2}).status_code == 200
    assert predict(api, task).json()["version"] == 2
    moved = api.put(f"/tasks/{task}/aliases/prod", json={"digest": first["digest"]})
    assert moved.json()["version"] == 1
    assert predict(api, task).json()["version"] == 1


def test_a_version_can_be_registered_without_serving_it(api, task, workshop):
    first = push(api, task, workshop.bundle("value", seed=3)).json()
    push(api, task, workshop.bundle("value", seed=4), alias="")
    assert predict(api, task).json()["digest"] == first["digest"]
    listed = api.get(f"/tasks/{task}/versions").json()
    assert [version["version"] for version in listed] == [1, 2]
    assert api.get(f"/tasks/{task}/versions/2").json() == listed[1]
    assert api.get(f"/tasks/{task}/versions/{first['digest']}").json() == listed[0]


def test_a_version_that_serves_can_not_be_deleted(api, task, workshop):
    push(api, task, workshop.bundle("value", seed=3))
    push(api, task, workshop.bundle("value", seed=4))
    refused = api.delete(f"/tasks/{task}/versions/2")
    assert (refused.status_code, refused.json()["code"]) == (409, "version_in_use")
    assert api.delete(f"/tasks/{task}/versions/1").status_code == 200
    assert api.get(f"/tasks/{task}/versions/1").json()["code"] == "version_not_found"
    nothing = api.post(f"/tasks/{task}:rollback")
    assert (nothing.status_code, nothing.json()["code"]) == (409, "nothing_to_roll_back")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PUT", "/tasks/.hidden", {}, 400, "invalid_name"),
        ("PUT", "/tasks/x", {"unknown": 1}, 400, "malformed_request"),
        ("GET", "/tasks/nope/versions", None, 404, "task_not_found"),
        ("GET", "/tasks/tags/versions/99", None, 404, "version_not_found"),
        ("GET", "/tasks/tags/versions/zz", None, 400, "invalid_digest"),
        ("PUT", "/tasks/tags/aliases/prod", {"version": 99}, 404, "version_not_found"),
        ("PUT", "/tasks/tags/aliases/prod", {}, 400, "malformed_request"),
        ("POST", "/tasks/nope:rollback", None, 404, "task_not_found"),
        ("DELETE", "/keys/nope", None, 404, "key_not_found"),
    ],
)
def test_admin_refusals_are_problems_with_a_code(api, method, path, body, status, code):
    answer = api.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
