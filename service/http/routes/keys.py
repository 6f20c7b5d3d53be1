"""API keys of the caller's tenant: create, list, revoke. Only hashes of keys are stored."""

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, Field

from peterrec.patches.registry.api_keys import KeyRecord, parse_scope
from peterrec.service.http.context import Caller, ClosedModel, Context

router = APIRouter(prefix="/keys", tags=["keys"])


class KeyRequest(ClosedModel):
    """The key to create."""

    name: str = Field(
        min_length=1, max_length=128, description="A name for people, such as the key's owner."
    )
    scopes: list[str] = Field(
        min_length=1,
        max_length=64,
        description="predict, admin, or either with a task glob.",
        examples=[["predict:coldrec-*"]],
    )


class KeyView(BaseModel):
    """A key without its secret."""

    key_id: str
    name: str
    tenant: str
    scopes: list[str]
    created_at: datetime


class NewKey(KeyView):
    """A new key with its secret, which is shown only in this answer."""

    api_key: str


class KeyRevoked(BaseModel):
    """A key that no worker of this replica accepts any more."""

    key_id: str
    registry_revision: int


@router.get("")
async def list_keys(caller: Caller, context: Context) -> list[KeyView]:
    """List the tenant's keys, oldest first."""
    caller.require_everywhere("admin")
    return [_view(record) for record in await context.registry.keys.of_tenant(caller.tenant)]


@router.post("", status_code=201)
async def create_key(caller: Caller, context: Context, body: KeyRequest) -> NewKey:
    """Create a key. When the answer arrives, every worker of this replica accepts the key."""
    caller.require_everywhere("admin")
    registry = context.registry
    scopes = [parse_scope(text) for text in body.scopes]
    text, record = await registry.keys.create(caller.tenant, scopes, body.name, caller.key_id)
    await context.wait_until_served(await registry.feed.revision())
    return NewKey(**_view(record).model_dump(), api_key=text)


@router.delete("/{key_id}")
async def revoke_key(caller: Caller, context: Context, key_id: str) -> KeyRevoked:
    """Revoke a key: requests with it are refused from now on."""
    caller.require_everywhere("admin")
    revision = await context.registry.keys.revoke(caller.tenant, key_id, caller.key_id)
    await context.wait_until_served(revision)
    return KeyRevoked(key_id=key_id, registry_revision=revision)


def _view(record: KeyRecord) -> KeyView:
    return KeyView(
        key_id=record.key_id,
        name=record.name,
        tenant=record.tenant,
        scopes=[str(scope) for scope in record.scopes],
        created_at=record.created_at,
    )
