"""API keys of the caller's tenant: created, listed, revoked. Only their hashes are stored."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from peterrec.patches.registry.api_keys import KeyRecord, parse_scope
from peterrec.service.http.auth import Principal
from peterrec.service.http.routes.context import AdminContext, ClosedModel, find_caller


class KeyRequest(ClosedModel):
    """The key to create."""

    name: str = Field(min_length=1, max_length=128, description="For people: who holds it.")
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
    """A key just created; its text is shown this once."""

    api_key: str


class KeyRevoked(BaseModel):
    """No worker of this replica accepts the key any more."""

    key_id: str
    registry_revision: int


def keys_router(context: AdminContext) -> APIRouter:
    """``/keys``; needs the scope admin without a glob."""
    router = APIRouter(prefix="/keys", tags=["keys"])
    Caller = Annotated[Principal, Depends(find_caller(context.authenticator))]
    registry = context.registry

    @router.get("")
    async def list_keys(caller: Caller) -> list[KeyView]:
        """The tenant's keys, oldest first."""
        caller.require_everywhere("admin")
        return [_view(record) for record in await registry.keys.of_tenant(caller.tenant)]

    @router.post("", status_code=201)
    async def create_key(caller: Caller, body: KeyRequest) -> NewKey:
        """A new key, valid on this replica when the answer arrives."""
        caller.require_everywhere("admin")
        scopes = [parse_scope(text) for text in body.scopes]
        text, record = await registry.keys.create(caller.tenant, scopes, body.name, caller.key_id)
        await context.served(await registry.feed.revision())
        return NewKey(**_view(record).model_dump(), api_key=text)

    @router.delete("/{key_id}")
    async def revoke_key(caller: Caller, key_id: str) -> KeyRevoked:
        """Refuse the key from now on."""
        caller.require_everywhere("admin")
        revision = await registry.keys.revoke(caller.tenant, key_id, caller.key_id)
        await context.served(revision)
        return KeyRevoked(key_id=key_id, registry_revision=revision)

    return router


def _view(record: KeyRecord) -> KeyView:
    return KeyView(
        key_id=record.key_id,
        name=record.name,
        tenant=record.tenant,
        scopes=[str(scope) for scope in record.scopes],
        created_at=record.created_at,
    )
