"""The API keys in the registry; only their sha256 is stored."""

from collections.abc import Sequence
from dataclasses import asdict

from peterrec.patches.errors import InvalidScope, KeyNotFound
from peterrec.patches.identity import TenantId, parse_tenant
from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.api_keys import KeyRecord, Scope, mint_key
from peterrec.patches.registry.records import SYSTEM
from peterrec.patches.registry.redis_store import Store
from peterrec.patches.registry.scripts import CREATE_KEY, REVOKE_KEY
from peterrec.patches.registry.serialization import key_record, text_of, time_of


class KeyStore:
    """The keys of all tenants."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(
        self, tenant: TenantId, scopes: Sequence[Scope], name: str, actor: str = SYSTEM
    ) -> tuple[str, KeyRecord]:
        """Create a key; return its plain text, which is not stored anywhere, and its record."""
        created = await self._create(tenant, scopes, name, actor, is_first_only=False)
        assert created is not None, "only a first key can be refused"
        return created

    async def ensure_first(self, tenant: TenantId, name: str) -> tuple[str, KeyRecord] | None:
        """Create a key with both scopes if there is no key at all, in one step; None otherwise."""
        scopes = (Scope("predict"), Scope("admin"))
        return await self._create(tenant, scopes, name, SYSTEM, is_first_only=True)

    async def of_tenant(self, tenant: TenantId) -> tuple[KeyRecord, ...]:
        """Return a tenant's keys, oldest first."""
        with redis_errors():
            stored = await self._store.redis.hgetall(self._store.key("keys"))
        records = (key_record(text_of(key_id), text) for key_id, text in stored.items())
        mine = (record for record in records if record.tenant == tenant)
        return tuple(sorted(mine, key=lambda record: (record.created_at, record.key_id)))

    async def revoke(self, tenant: TenantId, key_id: str, actor: str = SYSTEM) -> int:
        """Remove a key and return the revision; KeyNotFound if the tenant has no such key."""
        outcome = await self._store.change(
            REVOKE_KEY, tenant=parse_tenant(tenant), key_id=key_id, actor=actor
        )
        if outcome.error:
            raise KeyNotFound(key_id)
        return outcome.revision

    async def _create(
        self,
        tenant: TenantId,
        scopes: Sequence[Scope],
        name: str,
        actor: str,
        *,
        is_first_only: bool,
    ) -> tuple[str, KeyRecord] | None:
        if not scopes:
            raise InvalidScope("")
        minted = mint_key()
        key = {
            "tenant": parse_tenant(tenant),
            "name": name,
            "scopes": [asdict(scope) for scope in scopes],
            "secret_digest": minted.secret_digest,
        }
        outcome = await self._store.change(
            CREATE_KEY,
            tenant=tenant,
            key_id=minted.key_id,
            key=key,
            actor=actor,
            is_first_only=is_first_only,
        )
        if outcome.error:
            return None
        record = KeyRecord(
            minted.key_id,
            tenant,
            name,
            tuple(scopes),
            minted.secret_digest,
            time_of(outcome.created_ms),
        )
        return minted.plain_text, record
