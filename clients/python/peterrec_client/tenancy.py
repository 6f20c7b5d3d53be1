"""The calls about tenants and API keys.

With ``tenant``, the calls about keys are an operator's; without, they are about the keys of the
caller's own tenant.
"""

from collections.abc import Sequence
from datetime import datetime
from urllib.parse import quote

import msgspec

from peterrec_client.administering import CHANGE_TIMEOUT_S
from peterrec_client.answers import (
    Key,
    KeyRevoked,
    NewKey,
    Tenant,
    TenantDeleted,
    TenantPut,
    TenantUsage,
)
from peterrec_client.call import Call, Repeat
from peterrec_client.questions import KeyBody, RotationBody, TenantBody, encode


def tenants() -> Call[list[Tenant]]:
    """List the tenants that the key may see."""
    return Call("GET", "/tenants", msgspec.json.Decoder(list[Tenant]).decode)


def tenant(name: str) -> Call[Tenant]:
    """Read a tenant's description and quotas."""
    return Call("GET", _path(name), msgspec.json.Decoder(Tenant).decode)


def usage(tenant: str) -> Call[TenantUsage]:
    """Read what a tenant uses of its quotas."""
    return Call("GET", f"{_path(tenant)}/usage", msgspec.json.Decoder(TenantUsage).decode)


def put_tenant(name: str, body: TenantBody, if_revision: int | None) -> Call[TenantPut]:
    """Create a tenant, or replace its options. Repeating it changes nothing more."""
    return Call(
        "PUT",
        _path(name),
        msgspec.json.Decoder(TenantPut).decode,
        encode(body),
        headers={} if if_revision is None else {"If-Match": f'"{if_revision}"'},
        repeat=Repeat.ALWAYS if if_revision is None else Repeat.IF_UNSENT,
        timeout_s=CHANGE_TIMEOUT_S,
    )


def delete_tenant(name: str) -> Call[TenantDeleted]:
    """Erase a tenant. A lost call is repeated only if it was never sent: the second is 404."""
    return Call(
        "DELETE",
        _path(name),
        msgspec.json.Decoder(TenantDeleted).decode,
        repeat=Repeat.IF_UNSENT,
        timeout_s=CHANGE_TIMEOUT_S,
    )


def keys(tenant: str | None) -> Call[list[Key]]:
    """List keys, oldest first."""
    return Call("GET", _keys_path(tenant), msgspec.json.Decoder(list[Key]).decode)


def create_key(
    name: str, scopes: Sequence[str], expires_at: datetime | None, tenant: str | None
) -> Call[NewKey]:
    """Create a key. A lost call is repeated only if it was never sent: each makes another key."""
    return Call(
        "POST",
        _keys_path(tenant),
        msgspec.json.Decoder(NewKey).decode,
        encode(KeyBody(name, scopes, expires_at)),
        repeat=Repeat.IF_UNSENT,
        timeout_s=CHANGE_TIMEOUT_S,
    )


def rotate_key(key_id: str, overlap_s: float, tenant: str | None) -> Call[NewKey]:
    """Give a key a new secret. A lost call is repeated only if it was never sent."""
    return Call(
        "POST",
        f"{_keys_path(tenant)}/{quote(key_id, safe='')}:rotate",
        msgspec.json.Decoder(NewKey).decode,
        encode(RotationBody(overlap_s)),
        repeat=Repeat.IF_UNSENT,
        timeout_s=CHANGE_TIMEOUT_S,
    )


def revoke_key(key_id: str, secret: int | None, tenant: str | None) -> Call[KeyRevoked]:
    """Revoke a key, or one of its two secrets."""
    path = f"{_keys_path(tenant)}/{quote(key_id, safe='')}"
    return Call(
        "DELETE",
        path if secret is None else f"{path}/secrets/{secret}",
        msgspec.json.Decoder(KeyRevoked).decode,
        repeat=Repeat.IF_UNSENT,
        timeout_s=CHANGE_TIMEOUT_S,
    )


def _path(tenant: str) -> str:
    return f"/tenants/{quote(tenant, safe='')}"


def _keys_path(tenant: str | None) -> str:
    return "/keys" if tenant is None else f"{_path(tenant)}/keys"
