"""Keys: minted, listed, revoked; their secrets are never stored."""

import asyncio
import hashlib

import pytest

from peterrec.patches.errors import InvalidScope, KeyNotFound
from peterrec.patches.identity import DEFAULT_TENANT, TenantId
from peterrec.patches.registry.api_keys import Scope, parse_scope
from peterrec.patches.registry.registry import Registry
from tests.patches.redis_servers import connect

PREDICT, ADMIN = Scope("predict"), Scope("admin")


async def test_a_key_is_stored_with_the_digest_of_its_plain_text(registry: Registry) -> None:
    plain_text, record = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
    assert plain_text.startswith(f"prk_{record.key_id}_")
    keys = (await registry.feed.snapshot()).keys
    assert keys == {record.key_id: record}
    assert record.secret_digest == hashlib.sha256(plain_text.encode()).hexdigest()
    assert (record.tenant, record.name, record.scopes) == (DEFAULT_TENANT, "shop", (PREDICT,))


async def test_no_secret_is_stored_or_shown(
    registry: Registry, redis_url: str, redis_prefix: str
) -> None:
    plain_text, record = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
    secret = plain_text.rpartition("_")[2].encode()
    redis = connect(redis_url)
    stored = [await redis.dump(key) async for key in redis.scan_iter(f"*{redis_prefix}*", 1000)]
    await redis.aclose()
    assert len(stored) >= 3
    assert not any(secret in (value or b"") for value in stored)
    assert record.secret_digest not in repr(record)


async def test_a_revoked_key_is_found_no_more(registry: Registry) -> None:
    _, record = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
    revision = await registry.keys.revoke(DEFAULT_TENANT, record.key_id)
    snapshot = await registry.feed.snapshot()
    assert snapshot.revision == revision == 2
    assert snapshot.keys == {}
    with pytest.raises(KeyNotFound):
        await registry.keys.revoke(DEFAULT_TENANT, record.key_id)


async def test_a_tenant_neither_lists_nor_revokes_the_keys_of_another(registry: Registry) -> None:
    _, record = await registry.keys.create(DEFAULT_TENANT, [ADMIN], "ops")
    assert await registry.keys.of_tenant(TenantId("other")) == ()
    with pytest.raises(KeyNotFound):
        await registry.keys.revoke(TenantId("other"), record.key_id)
    assert await registry.keys.of_tenant(DEFAULT_TENANT) == (record,)


async def test_of_many_first_starts_one_makes_the_first_key(registry: Registry) -> None:
    made = await asyncio.gather(
        *(registry.keys.ensure_first(DEFAULT_TENANT, "first") for _ in range(20))
    )
    (created,) = filter(None, made)
    assert created[1].scopes == (PREDICT, ADMIN)
    assert await registry.keys.of_tenant(DEFAULT_TENANT) == (created[1],)


async def test_key_changes_are_in_the_audit_trail_without_the_secret(registry: Registry) -> None:
    plain_text, record = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop", "ann")
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
    texts = ["predict", "admin", "predict:coldrec-*", "admin:t?"]
    assert [str(parse_scope(text)) for text in texts] == texts
    assert parse_scope("predict:*") == PREDICT


@pytest.mark.parametrize("text", ["", "root", "predict:", "predict:a/b", "predict:[a]", "PREDICT"])
def test_an_unknown_scope_is_refused(text: str) -> None:
    with pytest.raises(InvalidScope, match="is not a key scope"):
        parse_scope(text)
