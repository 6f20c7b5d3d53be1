"""Webhooks: URLs that are told of the registry's changes, and how far each was told.

A webhook's *cursor* is the revision of the last change that it was told of, or that does not
concern it. Nothing else of what is to be delivered is stored: the trail of changes has it. One
replica at a time delivers, the one that holds a lease.
"""

import base64
import binascii
import secrets
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from peterrec.patches.errors import InvalidWebhook, TooManyWebhooks, WebhookNotFound
from peterrec.patches.identity import TenantId, check_name
from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.records import SYSTEM
from peterrec.patches.registry.redis_store import Argument, Store
from peterrec.patches.registry.scripts import (
    DELETE_WEBHOOK,
    DISABLE_WEBHOOK,
    LEASE_WEBHOOKS,
    NOTE_DELIVERY,
    PUT_WEBHOOK,
)
from peterrec.patches.registry.serialization import text_of, time_of
from peterrec.patches.registry.tenants import TenantStore

MOST_WEBHOOKS = 8
"""Webhooks of one tenant."""

SECRET_PREFIX = "whsec_"  # noqa: S105  # how secrets of Standard Webhooks begin
SECRET_BYTES = 32
SHORTEST_SECRET, LONGEST_SECRET = 24, 64
"""Bytes of a secret, by the specification of Standard Webhooks."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A URL that is told of the changes of one tenant.

    ``revision`` is that of its last put. With ``disabled_at`` nothing is delivered any more, for
    the reason ``disabled_since``.
    """

    tenant: TenantId
    name: str
    url: str = field(repr=False)
    secret: str = field(repr=False)
    revision: int
    created_at: datetime
    updated_at: datetime
    disabled_at: datetime | None = None
    disabled_since: str = ""

    @property
    def key(self) -> bytes:
        """The bytes that sign its deliveries."""
        return secret_bytes(self.secret)


class DeliveryState(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a webhook was told, and what went wrong since it was last told something.

    ``failing_since_ms`` is when the first of its ``failures`` in a row was, as Unix time.
    """

    cursor: int
    failures: int = 0
    failing_since_ms: int = 0
    last_error: str = ""
    delivered: int = 0


class _Stored(msgspec.Struct, frozen=True):
    url: str
    secret: str
    revision: int
    created_ms: int
    updated_ms: int
    disabled_ms: int | None = None
    disabled_since: str = ""


def secret_bytes(secret: str) -> bytes:
    """Decode a secret of the form ``whsec_`` and base64; InvalidWebhook if it has another one."""
    try:
        found = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        found = b""
    is_long_enough = SHORTEST_SECRET <= len(found) <= LONGEST_SECRET
    if not (secret.startswith(SECRET_PREFIX) and is_long_enough):
        raise InvalidWebhook(
            f"the secret is not `{SECRET_PREFIX}` and the base64 of {SHORTEST_SECRET} to "
            f"{LONGEST_SECRET} bytes.",
            hint="Leave it out: the server makes one and shows it once.",
        )
    return found


def new_secret() -> str:
    """Make a secret."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


class WebhookStore:
    """The webhooks of all tenants."""

    def __init__(self, store: Store, tenants: TenantStore) -> None:
        self._store = store
        self._tenants = tenants

    async def put(
        self, tenant: TenantId, name: str, url: str, secret: str | None, actor: str
    ) -> tuple[Webhook, bool]:
        """Create a webhook, or replace the URL and, if it is given, the secret of one.

        Returns it, and whether it is new. Putting a disabled one lets it begin anew. Raises
        InvalidName, InvalidWebhook, TooManyWebhooks and TenantNotFound.
        """
        check_name(name, "webhook")
        if secret is not None:
            secret_bytes(secret)
        outcome = await self._tenants.change(
            PUT_WEBHOOK,
            tenant,
            hook=_field(tenant, name),
            url=url,
            secret=secret,
            new_secret=new_secret(),
            most=MOST_WEBHOOKS,
            actor=actor,
            note=name,
        )
        if outcome.error:
            raise TooManyWebhooks(MOST_WEBHOOKS)
        return await self.get(tenant, name), outcome.was_created

    async def get(self, tenant: TenantId, name: str) -> Webhook:
        """Return a webhook; WebhookNotFound if the tenant has none of this name."""
        field = _field(tenant, name)
        with redis_errors():
            text = await self._store.redis.hget(self._store.key("webhooks"), field)
        if text is None:
            raise WebhookNotFound(name)
        return _webhook(field, text)

    async def all(self) -> list[Webhook]:
        """Return the webhooks of all tenants, by tenant and name."""
        with redis_errors():
            stored = await self._store.redis.hgetall(self._store.key("webhooks"))
        return [_webhook(field, stored[field.encode()]) for field in sorted(map(text_of, stored))]

    async def of_tenant(self, tenant: TenantId) -> list[Webhook]:
        """Return a tenant's webhooks by name."""
        return [each for each in await self.all() if each.tenant == tenant]

    async def state(self, hook: Webhook) -> DeliveryState:
        """Return how far a webhook was told."""
        field = _field(hook.tenant, hook.name)
        with redis_errors():
            text = await self._store.redis.hget(self._store.key("webhook_states"), field)
        if text is None:
            return DeliveryState(hook.revision)
        return msgspec.json.decode(text, type=DeliveryState)

    async def delete(self, tenant: TenantId, name: str, actor: str) -> int:
        """Remove a webhook and return the revision; WebhookNotFound."""
        outcome = await self._store.change(
            DELETE_WEBHOOK, tenant=tenant, hook=_field(tenant, name), actor=actor, note=name
        )
        if outcome.error:
            raise WebhookNotFound(name)
        return outcome.revision

    async def disable(self, hook: Webhook, reason: str) -> bool:
        """Deliver nothing to a webhook any more; False if it was put again or deleted meanwhile."""
        outcome = await self._store.change(
            DISABLE_WEBHOOK,
            tenant=hook.tenant,
            hook=_field(hook.tenant, hook.name),
            hook_revision=hook.revision,
            reason=reason,
            actor=SYSTEM,
            note=f"{hook.name}: {reason}",
        )
        return outcome.was_changed

    async def note(self, hook: Webhook, state: DeliveryState, owner: str) -> bool:
        """Note how far a webhook was told; False if it has changed, or another replica delivers."""
        argument: dict[str, Argument] = {
            "hook": _field(hook.tenant, hook.name),
            "hook_revision": hook.revision,
            "state": msgspec.json.encode(state).decode(),
            "owner": owner,
        }
        return bool(await self._store.run(NOTE_DELIVERY, self._store.keys(), argument))

    async def lease(self, owner: str, lasting_s: float) -> bool:
        """Take or keep the lease; False if another replica has it. 0 seconds give it back."""
        argument: dict[str, Argument] = {"owner": owner, "ms": int(1000 * lasting_s)}
        return bool(await self._store.run(LEASE_WEBHOOKS, self._store.keys(), argument))


def _field(tenant: TenantId, name: str) -> str:
    return f"{tenant}/{name}"


def _webhook(field: str, text: bytes | str) -> Webhook:
    tenant, _, name = field.partition("/")
    stored = msgspec.json.decode(text, type=_Stored)
    return Webhook(
        TenantId(tenant),
        name,
        stored.url,
        stored.secret,
        stored.revision,
        time_of(stored.created_ms),
        time_of(stored.updated_ms),
        None if stored.disabled_ms is None else time_of(stored.disabled_ms),
        stored.disabled_since,
    )
