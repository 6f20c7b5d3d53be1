"""Webhooks: URLs that are told of the changes of a tenant's tasks and keys."""

from datetime import UTC, datetime

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from peterrec.patches.identity import TenantId
from peterrec.patches.registry.webhooks import DeliveryState, Webhook
from peterrec.service.http.context import AdminContext, Caller, ClosedModel, Context
from peterrec.service.http.routes.keys import NamedTenant, OwnTenant
from peterrec.service.system.reachable import LONGEST_URL

router = APIRouter(tags=["webhooks"])


class WebhookRequest(ClosedModel):
    """Where to, and by which secret deliveries are signed."""

    url: str = Field(
        min_length=1,
        max_length=LONGEST_URL,
        description="An https URL with a public address, unless an operator allows others.",
        examples=["https://ci.example/hooks/peterrec"],
    )
    secret: str | None = Field(
        None,
        max_length=128,
        description="`whsec_` and the base64 of 24 to 64 bytes; null: the one until now, or a new "
        "one for a new webhook.",
    )


class WebhookView(BaseModel):
    """A webhook without its secret, and how far it was told.

    `cursor` is the revision of the last change that it was told of, or that does not concern it.
    `failures` counts the attempts since the last delivery.
    """

    name: str
    tenant: str
    url: str
    revision: int
    created_at: datetime
    updated_at: datetime
    is_enabled: bool
    disabled_at: datetime | None
    disabled_since: str | None
    cursor: int
    delivered: int
    failures: int
    failing_since: datetime | None
    last_error: str | None


class WebhookPut(WebhookView):
    """A webhook that was put. `secret` is shown only if it is new."""

    secret: str | None


class WebhookDeleted(BaseModel):
    """A webhook that is told nothing any more."""

    name: str
    registry_revision: int


@router.get("/webhooks")
async def list_webhooks(context: Context, tenant: OwnTenant) -> list[WebhookView]:
    """List the tenant's webhooks by name."""
    return await _list(context, tenant)


@router.get("/webhooks/{name}")
async def get_webhook(context: Context, tenant: OwnTenant, name: str) -> WebhookView:
    """Read a webhook and how far it was told."""
    return await _view(context, await context.registry.webhooks.get(tenant, name))


@router.put("/webhooks/{name}", responses={201: {"model": WebhookPut, "description": "Created."}})
async def put_webhook(
    caller: Caller,
    context: Context,
    tenant: OwnTenant,
    response: Response,
    name: str,
    body: WebhookRequest,
) -> WebhookPut:
    """Have a URL told of every change from now on, or move a webhook to another URL.

    A disabled webhook is enabled again, and begins with the changes from now on.
    """
    context.reachable.check(body.url)
    hooks = context.registry.webhooks
    hook, was_created = await hooks.put(tenant, name, body.url, body.secret, caller.key_id)
    response.status_code = 201 if was_created else 200
    is_shown = was_created or body.secret is not None
    view = await _view(context, hook)
    return WebhookPut(**view.model_dump(), secret=hook.secret if is_shown else None)


@router.delete("/webhooks/{name}")
async def delete_webhook(
    caller: Caller, context: Context, tenant: OwnTenant, name: str
) -> WebhookDeleted:
    """Remove a webhook. A delivery that is under way may still arrive."""
    revision = await context.registry.webhooks.delete(tenant, name, caller.key_id)
    return WebhookDeleted(name=name, registry_revision=revision)


@router.get("/tenants/{tenant}/webhooks")
async def list_tenant_webhooks(context: Context, of: NamedTenant) -> list[WebhookView]:
    """List a tenant's webhooks by name, for operators."""
    await context.registry.tenants.get(of)
    return await _list(context, of)


async def _list(context: AdminContext, tenant: TenantId) -> list[WebhookView]:
    return [
        await _view(context, hook) for hook in await context.registry.webhooks.of_tenant(tenant)
    ]


async def _view(context: AdminContext, hook: Webhook) -> WebhookView:
    state: DeliveryState = await context.registry.webhooks.state(hook)
    since = state.failing_since_ms
    return WebhookView(
        name=hook.name,
        tenant=hook.tenant,
        url=hook.url,
        revision=hook.revision,
        created_at=hook.created_at,
        updated_at=hook.updated_at,
        is_enabled=hook.disabled_at is None,
        disabled_at=hook.disabled_at,
        disabled_since=hook.disabled_since or None,
        cursor=state.cursor,
        delivered=state.delivered,
        failures=state.failures,
        failing_since=datetime.fromtimestamp(since / 1000, UTC) if since else None,
        last_error=state.last_error or None,
    )
