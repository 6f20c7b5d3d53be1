"""The calls that were added for the console, by any client."""

import socket

from tests.e2e.conftest import push
from tests.waiting import eventually


def test_a_caller_is_told_who_it_is(server, api):
    assert api.get("/caller").json()["scopes"] == ["predict", "vectors", "admin", "operator"]
    made = api.post("/keys", json={"name": "x", "scopes": ["predict:a*"]}).json()
    with server.client(made["api_key"]) as client:
        assert client.get("/caller").json() == {
            "key_id": made["key_id"],
            "tenant": "default",
            "scopes": ["predict:a*"],
            "expires_at": None,
        }
    with server.client("") as nobody:
        assert nobody.get("/caller").status_code == 401


def test_calls_are_counted_for_those_who_may_use_the_task(server, api):
    api.post("/tasks/tags/predict", json={"history": ["item-1"]}).raise_for_status()

    def counted() -> bool:
        found = api.get("/activity").json()["tasks"].get("tags")
        return found is not None and found["answered"] >= 1 and found["seconds"] > 0

    eventually(counted, 15)
    made = api.post("/keys", json={"name": "x", "scopes": ["predict:value"]}).json()
    with server.client(made["api_key"]) as client:
        assert "tags" not in client.get("/activity").json()["tasks"]


def test_calls_are_remembered_before_anybody_looks(api):
    api.post("/tasks/value/predict", json={"history": ["item-1"]}).raise_for_status()

    def is_counted() -> bool:
        found = api.get("/activity").json()
        value = found["tasks"].get("value", {"recent": []})
        return found["every_s"] == 3 and sum(value["recent"]) >= 1

    eventually(is_counted, 15)


def test_a_replica_says_its_revision_and_its_host_to_operators_only(server, api):
    revision = api.put("/tasks/seen", json={}).json()["registry_revision"]

    def is_told() -> bool:
        (replica,) = api.get("/registry/replicas").json()["replicas"]
        return replica["revision"] >= revision and replica["host"] == socket.gethostname()

    eventually(is_told)
    made = api.post("/keys", json={"name": "x", "scopes": ["admin"]}).json()
    with server.client(made["api_key"]) as client:
        (replica,) = client.get("/registry/replicas").json()["replicas"]
        assert replica["host"] is None
    made = api.post("/keys", json={"name": "x", "scopes": ["predict"]}).json()
    with server.client(made["api_key"]) as client:
        assert client.get("/registry/replicas").status_code == 403


def test_a_registered_bundle_is_verified_and_probed_again(api, workshop):
    bundle = workshop.bundle("ranking", seed=31)
    pushed = push(api, "probed", bundle).json()
    before = api.get("/tasks/probed").json()["revision"]
    for version in ("1", pushed["digest"]):
        found = api.post(f"/tasks/probed/versions/{version}:probe")
        assert found.status_code == 200, found.text
        report = found.json()
        assert (report["version"], report["digest"]) == (1, pushed["digest"])
        assert report["probes"]["count"] == 4
        assert 0 < report["probes"]["largest_error"] < report["probes"]["tolerance"]
    assert api.get("/tasks/probed").json()["revision"] == before
    assert api.post("/tasks/probed/versions/7:probe").json()["code"] == "version_not_found"


def test_a_push_says_how_its_probes_went(api, workshop):
    report = push(api, "proved", workshop.bundle("tags", seed=32), validate_only="true").json()
    assert report["probes"]["count"] == 4
