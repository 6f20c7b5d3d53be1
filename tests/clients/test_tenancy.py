"""Tenants and their keys on a real server, by both clients."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from peterrec_client import Conflict, Forbidden, NotFound, OverQuota, QuotaExceeded, StaleRevision


@pytest.fixture
def tenant(client):
    name = f"tenant-{uuid4().hex[:8]}"
    client.put_tenant(name, description="d", quotas={"tasks": 1, "keys": 3})
    yield name
    client.delete_tenant(name)


def test_a_tenant_is_made_used_within_its_quotas_and_erased(make, server, client, save):
    name = f"tenant-{uuid4().hex[:8]}"
    client.put_tenant(name, quotas={"tasks": 1})
    key = client.create_key("ci", ["admin", "predict"], tenant=name)
    own = make(server.url, key.api_key)
    own.push("films", save("value", 5))
    assert own.predict("films", [1]).digest
    with pytest.raises(QuotaExceeded) as full:
        own.push("books", save("value", 6))
    assert (full.value.status, full.value.code) == (507, "quota_exceeded")
    usage = own.usage(name)
    assert (usage.tasks.used, usage.tasks.limit, usage.keys.limit) == (1, 1, None)
    assert [tenant.tenant for tenant in own.tenants()] == [name]
    with pytest.raises(Forbidden):
        own.put_tenant(name, quotas={})
    with pytest.raises(NotFound):
        own.tenant("default")
    deleted = client.delete_tenant(name)
    assert (deleted.erased.tasks, deleted.erased.keys, deleted.erased.bundles) == (1, 1, 1)
    with pytest.raises(NotFound):
        client.usage(name)


def test_a_tenant_over_its_quota_for_requests_is_told_and_sees_what_it_uses(
    make, server, client, tenant
):
    client.put_tenant(tenant, quotas={"rows_per_s": 1, "streams": 5})
    key = client.create_key("ci", ["admin", "predict"], tenant=tenant)
    own = make(server.url, key.api_key)
    with pytest.raises(NotFound):  # of a task that does not exist, yet three rows
        own.predict_user([1], ["a", "b", "c"])
    with pytest.raises(OverQuota) as refused:
        own.predict("a", [1], timeout_s=0.5)
    assert (refused.value.status, refused.value.code) == (429, "rate_exceeded")
    assert refused.value.retryable
    usage = own.usage(tenant)
    assert (usage.rows_per_s.limit, usage.streams.limit, usage.tasks.limit) == (1, 5, None)
    assert usage.streams.used == 0


def test_a_tenant_is_changed_only_by_who_has_seen_it(client, tenant):
    revision = client.tenant(tenant).revision
    client.put_tenant(tenant, quotas={"tasks": 5}, if_revision=revision)
    with pytest.raises(StaleRevision):
        client.put_tenant(tenant, quotas={"tasks": 6}, if_revision=revision)
    assert client.tenant(tenant).quotas["tasks"] == 5


def test_a_key_is_rotated_and_its_old_secret_revoked(make, server, client, tenant):
    end = datetime.now(UTC) + timedelta(days=1)
    old = client.create_key("ci", ["admin"], expires_at=end, tenant=tenant)
    new = client.rotate_key(old.key_id, overlap_s=60, tenant=tenant)
    assert [secret.number for secret in new.secrets] == [2, 1]
    assert new.expires_at == old.expires_at
    with pytest.raises(Conflict):
        client.rotate_key(old.key_id, tenant=tenant)
    client.revoke_key(old.key_id, secret=1, tenant=tenant)
    assert len(make(server.url, new.api_key).keys()) == 1
    assert [key.key_id for key in client.keys(tenant=tenant)] == [old.key_id]
    client.revoke_key(old.key_id, tenant=tenant)
    assert client.keys(tenant=tenant) == []


def test_a_new_key_is_printed_without_its_secret(client, tenant):
    key = client.create_key("ci", ["predict"], tenant=tenant)
    assert key.api_key not in repr(key)
    assert key.key_id in repr(key)
