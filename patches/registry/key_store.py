"""The API keys in the registry; only their sha256 is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from peterrec.patches.errors import (
    InvalidExpiry,
    KeyNotFound,
    KeyRotating,
    LastSecret,
    SecretNotFound,
)
from peterrec.patches.identity import TenantId, parse_tenant
from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.api_keys import KeyRecord, Scope, check_scopes, mint_key
from peterrec.patches.registry.records import SYSTEM
from peterrec.patches.registry.redis_store import Store
from peterrec.patches.registry.scripts import (
    CREATE_KEY,
    NOTE_USES,
    REVOKE_KEY,
    REVOKE_SECRET,
    ROTATE_KEY,
)
from peterrec.patches.registry.serialization import Outcome, key_record, text_of, uses_of
from peterrec.patches.registry.tenants import TenantStore

Uses = Mapping[str, Mapping[int, datetime]]
"""When secrets of keys were used last, by key id and number."""


LONGEST_YEARS = 100
"""Years after which a key that expires does so at the latest."""


class NewSecret(NamedTuple):
    """A secret's plain text, which is not stored anywhere, and its key as it is stored now.

    ``revision`` is the registry's revision from which the secret is valid.
    """

    plain_text: str
    record: KeyRecord
    revision: int = 0


class KeyStore:
    """The keys of all tenants."""

    def __init__(self, store: Store, tenants: TenantStore) -> None:
        self._store = store
        self._tenants = tenants

    async def create(
        self,
        tenant: TenantId,
        scopes: Sequence[Scope],
        name: str,
        actor: str = SYSTEM,
        *,
        expires_at: datetime | None = None,
        must_exist: bool = False,
    ) -> NewSecret:
        """Create a key, which is refused from ``expires_at`` on.

        Raises InvalidScope, QuotaExceeded and OperatorScopeRefused; with ``must_exist``, also
        TenantNotFound if the tenant does not exist.
        """
        created = await self._create(tenant, scopes, name, actor, expires_at, must_exist=must_exist)
        assert created is not None, "only a first key can be refused"
        return created

    async def ensure_first(self, tenant: TenantId, name: str) -> NewSecret | None:
        """Create a key with all scopes if there is no key at all, in one step; None otherwise."""
        scopes = (Scope("predict"), Scope("vectors"), Scope("admin"), Scope("operator"))
        return await self._create(tenant, scopes, name, SYSTEM, is_first_only=True)

    async def of_tenant(self, tenant: TenantId) -> tuple[KeyRecord, ...]:
        """Return a tenant's keys, oldest first."""
        with redis_errors():
            stored = await self._store.redis.hgetall(self._store.key("keys"))
        records = (key_record(text_of(key_id), text) for key_id, text in stored.items())
        mine = (record for record in records if record.tenant == tenant)
        return tuple(sorted(mine, key=lambda record: (record.created_at, record.key_id)))

    async def get(self, tenant: TenantId, key_id: str) -> KeyRecord | None:
        """Return a key of the tenant; None if it has no such key."""
        with redis_errors():
            text = await self._store.redis.hget(self._store.key("keys"), key_id)
        record = key_record(key_id, text) if text else None
        return record if record is not None and record.tenant == tenant else None

    async def revoke(self, tenant: TenantId, key_id: str, actor: str = SYSTEM) -> int:
        """Remove a key and return the revision; KeyNotFound if the tenant has no such key."""
        outcome = await self._tenants.change(
            REVOKE_KEY, parse_tenant(tenant), key_id=key_id, actor=actor
        )
        _check(outcome, key_id)
        return outcome.revision

    async def rotate(
        self, tenant: TenantId, key_id: str, overlap_s: float, actor: str = SYSTEM
    ) -> NewSecret:
        """Give a key a new secret; the one before stays valid for ``overlap_s`` seconds.

        Raises KeyNotFound, and KeyRotating if the key has two valid secrets already.
        """
        minted = mint_key(key_id)
        outcome = await self._store.change(
            ROTATE_KEY,
            tenant=parse_tenant(tenant),
            key_id=key_id,
            secret_digest=minted.secret_digest,
            overlap_ms=int(overlap_s * 1000),
            actor=actor,
        )
        _check(outcome, key_id)
        return NewSecret(minted.plain_text, key_record(key_id, outcome.text), outcome.revision)

    async def revoke_secret(
        self, tenant: TenantId, key_id: str, number: int, actor: str = SYSTEM
    ) -> int:
        """Remove one of a key's two secrets and return the revision.

        Raises KeyNotFound, SecretNotFound, and LastSecret of a key that has only this one.
        """
        outcome = await self._store.change(
            REVOKE_SECRET, tenant=parse_tenant(tenant), key_id=key_id, number=number, actor=actor
        )
        _check(outcome, key_id, number)
        return outcome.revision

    async def note_uses(self, uses: Uses) -> None:
        """Note when secrets were used. The latest time counts; revoked keys are left out."""
        in_ms = {
            key_id: {str(number): _ms(at) for number, at in of_key.items()}
            for key_id, of_key in uses.items()
        }
        if in_ms:
            await self._store.run(NOTE_USES, self._store.keys(), {"uses": in_ms})

    async def last_uses(self, key_ids: Sequence[str]) -> Uses:
        """Return when the secrets of these keys were used last, as far as that was noted."""
        if not key_ids:
            return {}
        with redis_errors():
            found = await self._store.redis.hmget(self._store.key("key_uses"), list(key_ids))
        return {key_id: uses_of(text) for key_id, text in zip(key_ids, found, strict=True) if text}

    async def _create(
        self,
        tenant: TenantId,
        scopes: Sequence[Scope],
        name: str,
        actor: str,
        expires_at: datetime | None = None,
        *,
        must_exist: bool = False,
        is_first_only: bool = False,
    ) -> NewSecret | None:
        check_scopes(scopes, parse_tenant(tenant))
        if expires_at is not None:
            _check_expiry(expires_at)
        minted = mint_key()
        key = {
            "tenant": tenant,
            "name": name,
            "scopes": [asdict(scope) for scope in scopes],
            "secret_digest": minted.secret_digest,
            **({} if expires_at is None else {"expires_ms": _ms(expires_at)}),
        }
        outcome = await self._tenants.change(
            CREATE_KEY,
            tenant,
            key_id=minted.key_id,
            key=key,
            actor=actor,
            must_exist=must_exist,
            is_first_only=is_first_only,
        )
        if outcome.error:
            return None
        return NewSecret(
            minted.plain_text, key_record(minted.key_id, outcome.text), outcome.revision
        )


def _check_expiry(expires_at: datetime) -> None:
    now = datetime.now(UTC)
    if not now < expires_at < now + timedelta(days=366 * LONGEST_YEARS):
        raise InvalidExpiry(expires_at, LONGEST_YEARS)


def _check(outcome: Outcome, key_id: str, number: int = 0) -> None:
    """Raise the error that a script has reported about a key."""
    if outcome.error == "key_rotating":
        raise KeyRotating(key_id, outcome.found)
    if outcome.error == "last_secret":
        raise LastSecret(key_id, number)
    if outcome.error == "secret_not_found":
        raise SecretNotFound(key_id, number)
    if outcome.error:
        raise KeyNotFound(key_id)


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
