"""API keys: create, list, rotate, revoke. Only hashes of keys are stored.

A tenant's admin manages the keys of the own tenant under ``/keys``, and an operator those of any
tenant under ``/tenants/{tenant}/keys``.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel, Field

from peterrec.patches.errors import KeyNotFound, OperatorScopeRefused
from peterrec.patches.identity import TenantId, parse_tenant
from peterrec.patches.registry.api_keys import KeyRecord, parse_scope
from peterrec.patches.registry.key_store import NewSecret
from peterrec.service.http.auth import Principal
from peterrec.service.http.context import AdminContext, Caller, ClosedModel, Context

DAY_S = 86_400.0
LONGEST_OVERLAP_S = 90 * DAY_S
"""Seconds that two secrets of a key may be valid together."""


class KeyRequest(ClosedModel):
    """The key to create."""

    name: str = Field(
        min_length=1, max_length=128, description="A name for people, such as the key's owner."
    )
    scopes: list[str] = Field(
        min_length=1,
        max_length=64,
        description="predict, vectors or admin, each for all tasks or with a task glob; or "
        "operator, which only an operator can give, to a key of the tenant default.",
        examples=[["predict:coldrec-*"]],
    )
    expires_at: AwareDatetime | None = Field(
        None, description="The key is refused from then on; null: it does not expire."
    )


class RotationRequest(ClosedModel):
    """How a key changes over to a new secret."""

    overlap_s: float = Field(
        DAY_S,
        ge=0,
        le=LONGEST_OVERLAP_S,
        description="Seconds for which the secret until now stays valid beside the new one.",
    )


class SecretView(BaseModel):
    """A secret of a key, without the secret itself.

    ``last_used_at`` lags by up to ten seconds; null if the secret was not used yet.
    """

    number: int
    expires_at: datetime | None
    last_used_at: datetime | None


class KeyView(BaseModel):
    """A key without its secrets; the newest one comes first."""

    key_id: str
    name: str
    tenant: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    secrets: list[SecretView]


class NewKey(KeyView):
    """A key with its newest secret, which is shown only in this answer."""

    api_key: str


class KeyRevoked(BaseModel):
    """A key, or one of its secrets, that no worker of this replica accepts any more."""

    key_id: str
    registry_revision: int


def own_tenant(caller: Caller) -> TenantId:
    """Return the caller's tenant, whose keys it may manage; Forbidden."""
    caller.require_everywhere("admin")
    return caller.tenant


def named_tenant(caller: Caller, tenant: str) -> TenantId:
    """Return the tenant that the path names, whose keys an operator may manage; Forbidden."""
    caller.require_operator()
    return parse_tenant(tenant)


OwnTenant = Annotated[TenantId, Depends(own_tenant)]
NamedTenant = Annotated[TenantId, Depends(named_tenant)]

router = APIRouter(tags=["keys"])


@router.get("/keys")
async def list_keys(context: Context, tenant: OwnTenant) -> list[KeyView]:
    """List the tenant's keys, oldest first."""
    return await _list(context, tenant)


@router.post("/keys", status_code=201)
async def create_key(
    caller: Caller, context: Context, tenant: OwnTenant, body: KeyRequest
) -> NewKey:
    """Create a key. When the answer arrives, every worker of this replica accepts the key."""
    return await _create(context, caller, tenant, body)


@router.post("/keys/{key_id}:rotate")
async def rotate_key(
    caller: Caller,
    context: Context,
    tenant: OwnTenant,
    key_id: str,
    body: RotationRequest = RotationRequest(),
) -> NewKey:
    """Give a key a new secret, beside which the one until now stays valid for a while.

    A key that has two valid secrets is refused (409 key_rotating): revoke one of them first.
    """
    return await _rotate(context, caller, tenant, key_id, body)


@router.delete("/keys/{key_id}")
async def revoke_key(
    caller: Caller, context: Context, tenant: OwnTenant, key_id: str
) -> KeyRevoked:
    """Revoke a key: requests with it are refused from now on."""
    return await _revoke(context, caller, tenant, key_id)


@router.delete("/keys/{key_id}/secrets/{number}")
async def revoke_secret(
    caller: Caller, context: Context, tenant: OwnTenant, key_id: str, number: int
) -> KeyRevoked:
    """Revoke one of a key's two secrets: the other one stays valid."""
    return await _revoke_secret(context, caller, tenant, key_id, number)


@router.get("/tenants/{tenant}/keys")
async def list_tenant_keys(context: Context, of: NamedTenant) -> list[KeyView]:
    """List a tenant's keys, oldest first."""
    await context.registry.tenants.get(of)
    return await _list(context, of)


@router.post("/tenants/{tenant}/keys", status_code=201)
async def create_tenant_key(
    caller: Caller, context: Context, of: NamedTenant, body: KeyRequest
) -> NewKey:
    """Create a key of a tenant, such as its first one."""
    return await _create(context, caller, of, body)


@router.post("/tenants/{tenant}/keys/{key_id}:rotate")
async def rotate_tenant_key(
    caller: Caller,
    context: Context,
    of: NamedTenant,
    key_id: str,
    body: RotationRequest = RotationRequest(),
) -> NewKey:
    """Give a tenant's key a new secret, beside which the one until now stays valid for a while."""
    return await _rotate(context, caller, of, key_id, body)


@router.delete("/tenants/{tenant}/keys/{key_id}")
async def revoke_tenant_key(
    caller: Caller, context: Context, of: NamedTenant, key_id: str
) -> KeyRevoked:
    """Revoke a tenant's key: requests with it are refused from now on."""
    return await _revoke(context, caller, of, key_id)


@router.delete("/tenants/{tenant}/keys/{key_id}/secrets/{number}")
async def revoke_tenant_secret(
    caller: Caller, context: Context, of: NamedTenant, key_id: str, number: int
) -> KeyRevoked:
    """Revoke one of the two secrets of a tenant's key."""
    return await _revoke_secret(context, caller, of, key_id, number)


async def _list(context: AdminContext, tenant: TenantId) -> list[KeyView]:
    keys = context.registry.keys
    records = await keys.of_tenant(tenant)
    uses = await keys.last_uses([record.key_id for record in records])
    return [KeyView(**_fields(record, uses.get(record.key_id, {}))) for record in records]


async def _create(
    context: AdminContext, caller: Principal, tenant: TenantId, body: KeyRequest
) -> NewKey:
    scopes = [parse_scope(text) for text in body.scopes]
    if not caller.is_operator and any(scope.action == "operator" for scope in scopes):
        raise OperatorScopeRefused(tenant)
    created = await context.registry.keys.create(
        tenant, scopes, body.name, caller.key_id, expires_at=body.expires_at, must_exist=True
    )
    return await _shown(context, created)


async def _rotate(
    context: AdminContext,
    caller: Principal,
    tenant: TenantId,
    key_id: str,
    body: RotationRequest,
) -> NewKey:
    await _require_over(context, caller, tenant, key_id)
    keys = context.registry.keys
    return await _shown(context, await keys.rotate(tenant, key_id, body.overlap_s, caller.key_id))


async def _revoke(
    context: AdminContext, caller: Principal, tenant: TenantId, key_id: str
) -> KeyRevoked:
    await _require_over(context, caller, tenant, key_id)
    revision = await context.registry.keys.revoke(tenant, key_id, caller.key_id)
    await context.wait_until_served(revision)
    return KeyRevoked(key_id=key_id, registry_revision=revision)


async def _revoke_secret(
    context: AdminContext, caller: Principal, tenant: TenantId, key_id: str, number: int
) -> KeyRevoked:
    await _require_over(context, caller, tenant, key_id)
    keys = context.registry.keys
    revision = await keys.revoke_secret(tenant, key_id, number, caller.key_id)
    await context.wait_until_served(revision)
    return KeyRevoked(key_id=key_id, registry_revision=revision)


async def _require_over(
    context: AdminContext, caller: Principal, tenant: TenantId, key_id: str
) -> None:
    """Raise Forbidden if the key is an operator's and the caller is not; KeyNotFound."""
    record = await context.registry.keys.get(tenant, key_id)
    if record is None:
        raise KeyNotFound(key_id)
    if any(scope.action == "operator" for scope in record.scopes):
        caller.require_operator()


async def _shown(context: AdminContext, secret: NewSecret) -> NewKey:
    """Show a new secret as soon as every worker of this replica accepts it."""
    await context.wait_until_served(secret.revision)
    return NewKey(**_fields(secret.record, {}), api_key=secret.plain_text)


def _fields(record: KeyRecord, uses: Mapping[int, datetime]) -> dict[str, object]:
    secrets = [
        SecretView(
            number=secret.number,
            expires_at=secret.expires_at,
            last_used_at=uses.get(secret.number),
        )
        for secret in record.secrets()
    ]
    return {
        "key_id": record.key_id,
        "name": record.name,
        "tenant": record.tenant,
        "scopes": [str(scope) for scope in record.scopes],
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "last_used_at": max(uses.values(), default=None),
        "secrets": secrets,
    }
