"""Keys: minted, listed, revoked; their secrets are never stored."""

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from peterrec.patches.errors import (
    InvalidExpiry,
    InvalidScope,
    KeyNotFound,
    KeyRotating,
    LastSecret,
    OperatorScopeRefused,
    SecretNotFound,
)
from peterrec.patches.identity import DEFAULT_TENANT, TenantId
from peterrec.patches.registry.api_keys import Scope, parse_scope
from peterrec.patches.registry.registry import Registry
from tests.patches.redis_servers import connect

PREDICT, ADMIN = Scope("predict"), Scope("admin")


async def test_a_key_is_stored_with_the_digest_of_its_plain_text(registry: Registry) -> None:
    plain_text, record, _ = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
    assert plain_text.startswith(f"prk_{record.key_id}_")
    keys = (await registry.feed.snapshot()).keys
    assert keys == {record.key_id: record}
    assert record.secret_digest == hashlib.sha256(plain_text.encode()).hexdigest()
    assert (record.tenant, record.name, record.scopes) == (DEFAULT_TENANT, "shop", (PREDICT,))


async def test_no_secret_is_stored_or_shown(
    registry: Registry, redis_url: str, redis_prefix: str
) -> None:
    plain_text, record, _ = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
    secret = plain_text.rpartition("_")[2].encode()
    redis = connect(redis_url)
    stored = [await redis.dump(key) async for key in redis.scan_iter(f"*{redis_prefix}*", 1000)]
    await redis.aclose()
    assert len(stored) >= 3
    assert not any(secret in (value or b"") for value in stored)
    assert record.secret_digest not in repr(record)


async def test_a_revoked_key_is_found_no_more(registry: Registry) -> None:
    _, record, _ = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
    revision = await registry.keys.revoke(DEFAULT_TENANT, record.key_id)
    snapshot = await registry.feed.snapshot()
    assert snapshot.revision == revision == 2
    assert snapshot.keys == {}
    with pytest.raises(KeyNotFound):
        await registry.keys.revoke(DEFAULT_TENANT, record.key_id)


async def test_a_tenant_neither_lists_nor_revokes_the_keys_of_another(registry: Registry) -> None:
    _, record, _ = await registry.keys.create(DEFAULT_TENANT, [ADMIN], "ops")
    assert await registry.keys.of_tenant(TenantId("other")) == ()
    with pytest.raises(KeyNotFound):
        await registry.keys.revoke(TenantId("other"), record.key_id)
    assert await registry.keys.of_tenant(DEFAULT_TENANT) == (record,)


async def test_of_many_first_starts_one_makes_the_first_key(registry: Registry) -> None:
    made = await asyncio.gather(
        *(registry.keys.ensure_first(DEFAULT_TENANT, "first") for _ in range(20))
    )
    (created,) = filter(None, made)
    assert created.record.scopes == (PREDICT, Scope("vectors"), ADMIN, Scope("operator"))
    assert await registry.keys.of_tenant(DEFAULT_TENANT) == (created.record,)


async def test_key_changes_are_in_the_audit_trail_without_the_secret(registry: Registry) -> None:
    plain_text, record, _ = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop", "ann")
    await registry.keys.revoke(DEFAULT_TENANT, record.key_id, "bob")
    events = await registry.feed.events()
    assert [(e.action, e.actor, e.key_id) for e in events] == [
        ("create_key", "ann", record.key_id),
        ("revoke_key", "bob", record.key_id),
    ]
    assert plain_text.rpartition("_")[2] not in repr(events)


async def test_a_key_without_scopes_is_refused(registry: Registry) -> None:
    with pytest.raises(InvalidScope):
        await registry.keys.create(DEFAULT_TENANT, [], "useless")


def test_scopes_are_written_as_they_are_read() -> None:
    texts = ["predict", "admin", "predict:coldrec-*", "admin:t?", "operator"]
    assert [str(parse_scope(text)) for text in texts] == texts
    assert parse_scope("predict:*") == PREDICT


@pytest.mark.parametrize(
    "text",
    ["", "root", "predict:", "predict:a/b", "predict:[a]", "PREDICT", "operator:x", "operators"],
)
def test_an_unknown_scope_is_refused(text: str) -> None:
    with pytest.raises(InvalidScope, match="is not a key scope"):
        parse_scope(text)


async def test_a_rotated_key_has_two_secrets_for_a_while(registry: Registry) -> None:
    old, record, _ = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
    new, rotated, revision = await registry.keys.rotate(DEFAULT_TENANT, record.key_id, 60, "ann")
    assert old != new
    assert new.startswith(f"prk_{record.key_id}_")
    newest, previous = rotated.secrets()
    assert (newest.number, previous.number) == (2, 1)
    assert newest.secret_digest == hashlib.sha256(new.encode()).hexdigest()
    assert previous.secret_digest == record.secret_digest
    assert newest.expires_at is None
    assert previous.expires_at is not None
    assert (await registry.feed.snapshot()).keys == {record.key_id: rotated}
    last = (await registry.feed.events())[-1]
    assert (last.revision, last.action, last.note) == (revision, "rotate_key", "secret 2")


async def test_a_key_never_has_three_valid_secrets(registry: Registry) -> None:
    _, record, _ = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
    await registry.keys.rotate(DEFAULT_TENANT, record.key_id, 60)
    with pytest.raises(KeyRotating, match="the older one has number 1"):
        await registry.keys.rotate(DEFAULT_TENANT, record.key_id, 60)


async def test_either_secret_of_a_rotated_key_can_be_revoked(registry: Registry) -> None:
    for revoked, kept in ((1, 2), (2, 1)):
        _, record, _ = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
        key_id = record.key_id
        rotated = (await registry.keys.rotate(DEFAULT_TENANT, key_id, 60)).record
        digests = {secret.number: secret.secret_digest for secret in rotated.secrets()}
        await registry.keys.revoke_secret(DEFAULT_TENANT, key_id, revoked)
        (left,) = (await registry.feed.snapshot()).keys[key_id].secrets()
        assert (left.number, left.secret_digest, left.expires_at) == (kept, digests[kept], None)
        with pytest.raises(SecretNotFound):
            await registry.keys.revoke_secret(DEFAULT_TENANT, key_id, revoked)
        with pytest.raises(LastSecret):
            await registry.keys.revoke_secret(DEFAULT_TENANT, key_id, kept)
        again = (await registry.keys.rotate(DEFAULT_TENANT, key_id, 0)).record
        assert [secret.number for secret in again.secrets()] == [3]


async def test_a_tenant_does_not_rotate_the_keys_of_another(registry: Registry) -> None:
    _, record, _ = await registry.keys.create(DEFAULT_TENANT, [ADMIN], "ops")
    with pytest.raises(KeyNotFound):
        await registry.keys.rotate(TenantId("other"), record.key_id, 60)
    with pytest.raises(KeyNotFound):
        await registry.keys.revoke_secret(TenantId("other"), record.key_id, 1)
    assert await registry.keys.get(TenantId("other"), record.key_id) is None


async def test_a_key_expires_and_so_do_all_of_its_secrets(registry: Registry) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=30)
    _, record, _ = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "x", expires_at=end)
    assert record.expires_at == end
    rotated = (await registry.keys.rotate(DEFAULT_TENANT, record.key_id, 3600)).record
    assert [secret.expires_at for secret in rotated.secrets()] == [end, end]


@pytest.mark.parametrize("days", [-1, 0, 366 * 101, 366 * 5000])
async def test_an_end_in_the_past_or_too_far_away_is_refused(registry: Registry, days: int) -> None:
    end = datetime.now(UTC) + timedelta(days=days)
    with pytest.raises(InvalidExpiry):
        await registry.keys.create(DEFAULT_TENANT, [PREDICT], "x", expires_at=end)


async def test_the_last_use_of_each_secret_is_kept_until_the_key_is_revoked(
    registry: Registry,
) -> None:
    _, record, _ = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
    key_id, early, late = record.key_id, at(1000), at(2000)
    await registry.keys.note_uses({key_id: {1: late}, "nobody": {1: late}})
    await registry.keys.note_uses({key_id: {1: early, 2: early}})  # another worker, which was slow
    assert await registry.keys.last_uses([key_id, "nobody"]) == {key_id: {1: late, 2: early}}
    assert await registry.feed.revision() == 1
    await registry.keys.revoke(DEFAULT_TENANT, key_id)
    assert await registry.keys.last_uses([key_id]) == {}


async def test_only_the_operators_own_tenant_has_operators(registry: Registry) -> None:
    operator = Scope("operator")
    await registry.keys.create(DEFAULT_TENANT, [operator], "ops")
    with pytest.raises(OperatorScopeRefused):
        await registry.keys.create(TenantId("acme"), [PREDICT, operator], "boss")


async def test_a_key_from_before_rotation_and_expiry_is_read_and_rotated(
    registry: Registry, redis_url: str
) -> None:
    old = {
        "tenant": "default",
        "name": "old",
        "scopes": [{"action": "admin", "tasks": "*"}],
        "secret_digest": "0" * 64,
        "created_ms": 1_700_000_000_000,
    }
    redis = connect(redis_url)
    await redis.hset(registry.store.key("keys"), "0123456789ab", msgspec.json.encode(old))
    await redis.aclose()
    (record,) = await registry.keys.of_tenant(DEFAULT_TENANT)
    assert [secret.number for secret in record.secrets()] == [1]
    rotated = (await registry.keys.rotate(DEFAULT_TENANT, "0123456789ab", 60)).record
    assert [secret.number for secret in rotated.secrets()] == [2, 1]


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(1_700_000_000 + seconds, UTC)
