"""``peterrec tenants`` and ``peterrec keys`` against a running server."""

import json
from uuid import uuid4

import pytest

from tests.e2e.test_observing import run
from tests.waiting import eventually


@pytest.fixture
def tenant(server, api):
    name = f"tenant-{uuid4().hex[:8]}"
    yield name
    api.delete(f"/tenants/{name}")


def ok(server, *arguments: str, key: str | None = None) -> str:
    done = run(server, *arguments, key=key)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_tenant_is_made_bounded_shown_and_deleted(server, tenant):
    assert "is created" in ok(server, "tenants", "put", tenant, "--tasks", "2", "--keys", "3")
    assert "is changed" in ok(server, "tenants", "put", tenant, "--description", "our shop")
    found = next(
        each
        for each in json.loads(ok(server, "tenants", "list", "--json"))
        if each["tenant"] == tenant
    )
    assert (found["description"], found["quotas"]["tasks"]) == ("our shop", 2)
    rates = ("--requests-per-s", "50", "--rows-per-s", "500", "--waiting-rows", "64")
    ok(server, "tenants", "put", tenant, *rates, "--streams", "2", "--no-quota", "tasks")
    usage = json.loads(ok(server, "tenants", "show", tenant, "--json"))
    assert (usage["tasks"]["limit"], usage["keys"]["limit"]) == (None, 3)
    assert (usage["rows_per_s"]["limit"], usage["streams"]["limit"]) == (500, 2)
    assert "administration per s" in ok(server, "tenants", "show", tenant)
    assert "keys" in ok(server, "tenants", "show", tenant)
    assert "our shop" in ok(server, "tenants", "list")
    asked = run(server, "tenants", "delete", tenant)
    assert asked.returncode != 0  # nobody has said yes
    assert "is deleted: 0 tasks" in ok(server, "tenants", "delete", tenant, "--yes")
    gone = run(server, "tenants", "show", tenant)
    assert gone.returncode == 3
    assert "tenant_not_found" in gone.stderr


def test_an_operator_makes_the_first_key_of_a_tenant_and_rotates_it(server, tenant):
    ok(server, "tenants", "put", tenant)
    arguments = ("--name", "ci", "--scope", "admin", "--tenant", tenant, "--expires-in-days", "30")
    old = ok(server, "keys", "create", *arguments).strip()
    (key,) = json.loads(ok(server, "keys", "list", "--json", key=old))
    assert key["tenant"] == tenant
    assert key["expires_at"] is not None
    new = ok(server, "keys", "rotate", key["key_id"], "--overlap-hours", "1", key=old).strip()
    (key,) = json.loads(ok(server, "keys", "list", "--tenant", tenant, "--json"))
    assert [secret["number"] for secret in key["secrets"]] == [2, 1]
    assert "not used; 1 until" in ok(server, "keys", "list", "--tenant", tenant)
    ok(server, "keys", "revoke", key["key_id"], "--secret", "1", key=new)
    assert run(server, "keys", "list", key=old).returncode == 1
    ok(server, "keys", "revoke", key["key_id"], "--tenant", tenant)
    assert run(server, "keys", "list", key=new).returncode == 1


def test_an_embedded_registry_gets_an_operator_from_its_data_directory(server):
    folder = str(server.folder / "data")
    arguments = ("--name", "ops", "--scope", "operator", "--data-dir", folder)
    key = ok(server, "keys", "create", *arguments, key="").strip()
    eventually(lambda: run(server, "tenants", "list", key=key).returncode == 0)


def test_a_quota_that_there_is_not_is_refused_before_a_call(server, tenant):
    done = run(server, "tenants", "put", tenant, "--no-quota", "users")
    assert done.returncode == 2
    assert "users" in done.stderr
