"""Callers and their permissions. Keys come from the worker's table, never from Redis."""

import hashlib
import hmac
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from peterrec.patches.identity import DEFAULT_TENANT, TenantId
from peterrec.patches.registry.api_keys import (
    ALL_TASKS,
    KEY_PREFIX,
    Action,
    Scope,
    parse_scope,
)
from peterrec.service.errors import (
    DeviceUnavailable,
    Forbidden,
    KeyExpired,
    SigningKeyUnknown,
    Unauthenticated,
)
from peterrec.service.http.tokens import TokenVerifier
from peterrec.service.protocol.messages import KeyEntry

_HINT = "Send `Authorization: Bearer prk_…` or `X-API-Key: prk_…`."


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller. The tenant of a request is the caller's, never one from a body.

    ``key_id`` names the caller in the audit trail. ``number`` is that of the key's secret, 0 for a
    token. From ``expires_at`` (Unix time) on the caller is refused.
    """

    key_id: str
    tenant: TenantId
    scopes: tuple[Scope, ...]
    number: int = 0
    expires_at: float = math.inf

    def may(self, action: Action, task: str) -> bool:
        """Return whether any scope allows ``action`` on ``task``."""
        for scope in self.scopes:
            if scope.action == action and (
                scope.tasks == ALL_TASKS or fnmatchcase(task, scope.tasks)
            ):
                return True
        return False

    def refusal(self, action: Action, task: str) -> Forbidden | None:
        """Return the error if the caller may not do ``action`` to ``task``, else None.

        It is the same whether the task exists or not, as long as nobody looks before.
        """
        if self.may(action, task):
            return None
        return Forbidden(
            f"this key may not {_VERBS.get(action, action)} task {task[:128]!r}.",
            hint=f"Use a key with the scope {action}, or {action}:<glob> matching the task.",
        )

    def require(self, action: Action, task: str) -> None:
        """Raise Forbidden unless the caller may do ``action`` to ``task``."""
        refusal = self.refusal(action, task)
        if refusal is not None:
            raise refusal

    def may_everywhere(self, action: Action) -> bool:
        """Return whether a scope without a glob allows ``action``."""
        return any(scope.action == action and scope.tasks == ALL_TASKS for scope in self.scopes)

    def require_everywhere(self, action: Action) -> None:
        """Raise Forbidden unless a scope without a glob allows ``action``."""
        if not self.may_everywhere(action):
            raise Forbidden(
                f"this key has no {action} scope for all tasks.",
                hint=f"Use a key with the scope {action}.",
            )

    @property
    def is_operator(self) -> bool:
        """Whether the caller is above the tenants."""
        return self.may_everywhere("operator")

    def require_operator(self) -> None:
        """Raise Forbidden unless the caller is above the tenants."""
        if not self.is_operator:
            raise Forbidden(
                "this key is not an operator's.", hint="Use a key with the scope operator."
            )


ANYONE = Principal(
    "none",
    DEFAULT_TENANT,
    (Scope("predict"), Scope("vectors"), Scope("admin"), Scope("operator")),
)
"""The caller of every request if authentication is off."""


@dataclass(slots=True)
class _Known:
    """A secret that is accepted, and when it was used last (Unix time)."""

    sha256: str
    principal: Principal
    used_at: float = 0.0


@dataclass(slots=True)
class _Uses:
    """When secrets were used that was not taken yet, by key id and number."""

    latest: dict[str, dict[int, datetime]] = field(default_factory=dict)

    def add(self, known: _Known) -> None:
        of_key = self.latest.setdefault(known.principal.key_id, {})
        of_key[known.principal.number] = datetime.fromtimestamp(known.used_at, UTC)
        known.used_at = 0.0


class Authenticator:
    """Finds the caller of a request by its API key, or by a token if there is a ``verifier``.

    Lives on the event loop.
    """

    def __init__(self, is_required: bool, verifier: TokenVerifier | None = None) -> None:
        self._is_required = is_required
        self._verifier = verifier
        self._by_hash: dict[str, _Known] | None = None
        self._secrets: frozenset[tuple[str, int]] = frozenset()
        self._tenants = frozenset([DEFAULT_TENANT])
        self._gone = _Uses()

    def replace_keys(self, keys: Iterable[KeyEntry]) -> None:
        """Accept exactly these keys from now on."""
        for known in (self._by_hash or {}).values():
            if known.used_at:
                self._gone.add(known)
        fresh = [_Known(key.sha256, _principal(key)) for key in keys]
        self._secrets = frozenset((k.principal.key_id, k.principal.number) for k in fresh)
        self._by_hash = {known.sha256: known for known in fresh}

    def replace_tenants(self, tenants: Iterable[str]) -> None:
        """Accept tokens of exactly these tenants from now on, and of ``default``."""
        self._tenants = frozenset([DEFAULT_TENANT, *map(TenantId, tenants)])

    def take_uses(self) -> dict[str, dict[int, datetime]]:
        """Return when secrets were used since the last call: the last time of each, by key id."""
        uses, self._gone = self._gone, _Uses()
        for known in (self._by_hash or {}).values():
            if known.used_at:
                uses.add(known)
        return uses.latest

    def is_valid(self, principal: Principal) -> bool:
        """Return whether a caller that was authenticated before would still be accepted."""
        if not self._is_required:
            return True
        if time.time() >= principal.expires_at:
            return False
        if principal.number:
            return (principal.key_id, principal.number) in self._secrets
        return principal.tenant in self._tenants

    def require_valid(self, principal: Principal) -> None:
        """Raise Unauthenticated unless a caller would still be accepted, after a long step."""
        if not self.is_valid(principal):
            raise Unauthenticated(
                "the API key or token was revoked, or has expired, during the call.", hint=_HINT
            )

    async def identify(self, authorization: bytes, api_key: bytes) -> Principal:
        """Return the caller as ``authenticate`` does, after fetching the issuer's keys if needed.

        They are needed for a token that is signed by a key that was not there before.
        """
        try:
            return self.authenticate(authorization, api_key)
        except SigningKeyUnknown:
            assert self._verifier is not None, "only it looks for the keys of tokens"
            await self._verifier.keys.refresh()
            return self.authenticate(authorization, api_key)

    def authenticate(self, authorization: bytes, api_key: bytes) -> Principal:
        """Return the caller, given the raw values of the two headers; empty means absent.

        Raises Unauthenticated, or DeviceUnavailable while the keys are not known yet, after which a
        retry may succeed.
        """
        if not self._is_required:
            return ANYONE
        scheme, _, token = authorization.partition(b" ")
        bearer, key = token.strip() if scheme.lower() == b"bearer" else b"", api_key.strip()
        secret = bearer or key
        if not secret:
            raise Unauthenticated("the request carries no API key.", hint=_HINT)
        if bearer and key and bearer != key:
            raise Unauthenticated("the request carries two different keys.", hint=_HINT)
        if self._by_hash is None:
            raise DeviceUnavailable
        if self._verifier is not None and not secret.startswith(_PREFIX):
            return self._of_token(self._verifier, secret)
        found = hashlib.sha256(secret).hexdigest()
        known = self._by_hash.get(found)
        if known is None or not hmac.compare_digest(found, known.sha256):
            raise Unauthenticated("the API key is not valid (any more).", hint=_HINT)
        now = time.time()
        if now >= known.principal.expires_at:
            raise KeyExpired(known.principal.expires_at)
        known.used_at = now
        return known.principal

    def _of_token(self, verifier: TokenVerifier, token: bytes) -> Principal:
        claims = verifier.claims(token)
        if claims.tenant not in self._tenants:
            raise Unauthenticated(
                "the token's tenant does not exist.",
                hint="An operator creates it by PUT /tenants/….",
            )
        return Principal(claims.caller, claims.tenant, claims.scopes, expires_at=claims.expires_at)


_PREFIX = f"{KEY_PREFIX}_".encode()
_VERBS = {"vectors": "get the user vectors of"}


def _principal(key: KeyEntry) -> Principal:
    return Principal(
        key.key_id,
        TenantId(key.tenant),
        tuple(parse_scope(scope) for scope in key.scopes),
        key.number,
        key.expires_at or math.inf,
    )
