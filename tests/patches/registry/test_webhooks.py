"""Webhooks in the registry: put, deleted, disabled, and told by one replica at a time."""

import pytest

from peterrec.patches.errors import (
    InvalidName,
    InvalidWebhook,
    TenantNotFound,
    TooManyWebhooks,
    WebhookNotFound,
)
from peterrec.patches.identity import DEFAULT_TENANT, TenantId
from peterrec.patches.registry.records import EventAction, TenantOptions
from peterrec.patches.registry.registry import Registry
from peterrec.patches.registry.webhooks import MOST_WEBHOOKS, DeliveryState, Webhook

URL = "https://ci.example/hook"


async def put(registry: Registry, name: str = "ci", url: str = URL) -> Webhook:
    hook, _ = await registry.webhooks.put(DEFAULT_TENANT, name, url, None, "me")
    return hook


async def test_a_webhook_begins_with_the_changes_after_it(registry: Registry) -> None:
    hook, was_created = await registry.webhooks.put(DEFAULT_TENANT, "ci", URL, None, "me")
    assert was_created
    assert hook.revision == await registry.feed.revision()
    assert await registry.webhooks.state(hook) == DeliveryState(hook.revision)
    (event,) = await registry.feed.events(hook.revision - 1)
    assert (event.action, event.actor, event.note) == (EventAction.PUT_WEBHOOK, "me", "ci")
    assert URL not in repr(event)  # the URL may be a secret
    assert hook.secret not in repr(event)


async def test_one_that_is_put_again_keeps_its_secret_and_goes_on_where_it_is(
    registry: Registry,
) -> None:
    hook = await put(registry)
    assert await registry.webhooks.lease("a", 10)
    assert await registry.webhooks.note(hook, DeliveryState(7, delivered=3), "a")
    again = await put(registry, url="https://other.example/")
    assert (again.secret, again.url) == (hook.secret, "https://other.example/")
    assert (await registry.webhooks.state(again)).cursor == 7
    assert not await registry.webhooks.note(hook, DeliveryState(8), "a")  # of the old URL


async def test_only_the_replica_with_the_lease_notes_what_was_told(registry: Registry) -> None:
    hook = await put(registry)
    assert not await registry.webhooks.note(hook, DeliveryState(5), "a")
    assert await registry.webhooks.lease("a", 10)
    assert not await registry.webhooks.lease("b", 10)
    assert not await registry.webhooks.note(hook, DeliveryState(5), "b")
    assert not await registry.webhooks.lease("b", 0)  # it is not its own to give back
    assert await registry.webhooks.lease("a", 0)
    assert await registry.webhooks.lease("b", 10)
    assert await registry.webhooks.note(hook, DeliveryState(6), "b")


async def test_a_disabled_one_is_not_told_until_it_is_put_again(registry: Registry) -> None:
    hook = await put(registry)
    assert await registry.webhooks.disable(hook, "it failed")
    assert not await registry.webhooks.disable(hook, "it failed")
    found = await registry.webhooks.get(DEFAULT_TENANT, "ci")
    assert (found.disabled_at is not None, found.disabled_since) == (True, "it failed")
    events = await registry.feed.events(hook.revision)
    assert [(event.action, event.note) for event in events] == [
        (EventAction.DISABLE_WEBHOOK, "ci: it failed")
    ]
    again = await put(registry)
    assert again.disabled_at is None
    assert (await registry.webhooks.state(again)).cursor == again.revision


async def test_a_tenants_webhooks_go_with_it(registry: Registry) -> None:
    acme = TenantId("acme")
    await registry.tenants.put(acme, TenantOptions(), "me")
    await registry.webhooks.put(acme, "ci", URL, None, "me")
    await put(registry)
    await registry.tenants.delete(acme, "me")
    assert [hook.tenant for hook in await registry.webhooks.all()] == [DEFAULT_TENANT]
    with pytest.raises(TenantNotFound):
        await registry.webhooks.put(acme, "ci", URL, None, "me")


async def test_what_cannot_be_a_webhook_is_refused(registry: Registry) -> None:
    with pytest.raises(InvalidName):
        await put(registry, name="a/b")
    with pytest.raises(InvalidWebhook):
        await registry.webhooks.put(DEFAULT_TENANT, "ci", URL, "whsec_c2hvcnQ=", "me")
    with pytest.raises(WebhookNotFound):
        await registry.webhooks.delete(DEFAULT_TENANT, "ci", "me")
    for number in range(MOST_WEBHOOKS):
        await put(registry, name=f"hook{number}")
    with pytest.raises(TooManyWebhooks):
        await put(registry, name="one-more")
    await registry.webhooks.delete(DEFAULT_TENANT, "hook0", "me")
    await put(registry, name="one-more")
