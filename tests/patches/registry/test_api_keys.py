"""Keys: minted, found, limited by scope, revoked, never stored."""

import asyncio

import pytest

from peterrec.patches.errors import InvalidScope, KeyNotFound
from peterrec.patches.identity import DEFAULT_TENANT, TaskId, TenantId
from peterrec.patches.registry.api_keys import Scope, find_key, parse_scope
from peterrec.patches.registry.registry import Registry
from tests.patches.redis_servers import connect

PREDICT, ADMIN = Scope("predict"), Scope("admin")
COLD = TaskId("coldrec-books")
GENDER = TaskId("gender")


async def test_a_key_is_found_by_its_plain_text(registry: Registry) -> None:
    plain_text, record = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
    assert plain_text.startswith(f"prk_{record.key_id}_")
    keys = (await registry.feed.snapshot()).keys
    assert find_key(keys, plain_text) == record
    assert (record.tenant, record.name, record.scopes) == (DEFAULT_TENANT, "shop", (PREDICT,))


async def test_a_wrong_secret_or_another_form_finds_no_key(registry: Registry) -> None:
    plain_text, record = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
    keys = (await registry.feed.snapshot()).keys
    wrong = [
        "",
        "prk",
        plain_text[:-1],
        plain_text + "0",
        plain_text.upper(),
        f"prk_{record.key_id}_",
        f"prk_{record.key_id}",
        f"prk_nobody_{plain_text.rpartition('_')[2]}",
        plain_text.replace("prk", "sk"),
        "é" * 60,
    ]
    assert [find_key(keys, text) for text in wrong] == [None] * len(wrong)


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
    plain_text, record = await registry.keys.create(DEFAULT_TENANT, [PREDICT], "shop")
    revision = await registry.keys.revoke(DEFAULT_TENANT, record.key_id)
    snapshot = await registry.feed.snapshot()
    assert snapshot.revision == revision == 2
    assert find_key(snapshot.keys, plain_text) is None
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


async def test_scopes_limit_the_action_and_the_tasks(registry: Registry) -> None:
    scopes = [parse_scope("predict:coldrec-*"), parse_scope("admin:gender")]
    _, record = await registry.keys.create(DEFAULT_TENANT, scopes, "shop")
    assert record.allows("predict", COLD)
    assert not record.allows("predict", GENDER)
    assert record.allows("admin", GENDER)
    assert not record.allows("admin", COLD)


async def test_only_a_scope_on_all_tasks_covers_the_tenant_itself(registry: Registry) -> None:
    _, narrow = await registry.keys.create(DEFAULT_TENANT, [parse_scope("admin:gender")], "narrow")
    _, broad = await registry.keys.create(DEFAULT_TENANT, [ADMIN], "broad")
    assert not narrow.allows("admin")
    assert broad.allows("admin")
    assert not broad.allows("predict")


def test_scopes_are_written_as_they_are_read() -> None:
    texts = ["predict", "admin", "predict:coldrec-*", "admin:t?"]
    assert [str(parse_scope(text)) for text in texts] == texts
    assert parse_scope("predict:*") == PREDICT


@pytest.mark.parametrize("text", ["", "root", "predict:", "predict:a/b", "predict:[a]", "PREDICT"])
def test_an_unknown_scope_is_refused(text: str) -> None:
    with pytest.raises(InvalidScope, match="is not a key scope"):
        parse_scope(text)
