"""Callers and their permissions. Keys come from the worker's table, never from Redis."""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from peterrec.patches.identity import DEFAULT_TENANT, TenantId
from peterrec.patches.registry.api_keys import ALL_TASKS, Action, Scope, parse_scope
from peterrec.service.errors import DeviceUnavailable, Forbidden, Unauthenticated
from peterrec.service.protocol.messages import KeyEntry

_HINT = "Send `Authorization: Bearer prk_…` or `X-API-Key: prk_…`."


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller. The tenant of a request is the caller's, never one from a body."""

    key_id: str
    tenant: TenantId
    scopes: tuple[Scope, ...]

    def may(self, action: Action, task: str) -> bool:
        """Return whether any scope allows ``action`` on ``task``."""
        for scope in self.scopes:
            if scope.action == action and (
                scope.tasks == ALL_TASKS or fnmatchcase(task, scope.tasks)
            ):
                return True
        return False

    def refusal(self, action: Action, task: str) -> Forbidden | None:
        """Return the error if the caller may not do ``action`` to ``task``, else None."""
        if self.may(action, task):
            return None
        return Forbidden(
            f"this key may not {action} task {task!r}.",
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


ANYONE = Principal("none", DEFAULT_TENANT, (Scope("predict"), Scope("admin")))
"""The caller of every request if authentication is off."""


class Authenticator:
    """Finds the caller of a request by its API key."""

    def __init__(self, is_required: bool) -> None:
        self._is_required = is_required
        self._by_hash: dict[str, tuple[str, Principal]] | None = None
        self._key_ids: frozenset[str] = frozenset()

    def replace_keys(self, keys: Iterable[KeyEntry]) -> None:
        """Accept exactly these keys from now on."""
        keys = list(keys)
        self._key_ids = frozenset(key.key_id for key in keys)
        self._by_hash = {
            key.sha256: (
                key.sha256,
                Principal(
                    key.key_id,
                    TenantId(key.tenant),
                    tuple(parse_scope(scope) for scope in key.scopes),
                ),
            )
            for key in keys
        }

    def is_valid(self, principal: Principal) -> bool:
        """Return whether the key of an authenticated caller is still valid."""
        return not self._is_required or principal.key_id in self._key_ids

    def authenticate(self, authorization: bytes, api_key: bytes) -> Principal:
        """Return the caller, given the raw values of the two headers; empty means absent.

        Raises DeviceUnavailable, after which a retry may succeed, while the keys are not known yet.
        """
        if not self._is_required:
            return ANYONE
        scheme, _, token = authorization.partition(b" ")
        secret = token.strip() if scheme.lower() == b"bearer" else api_key.strip()
        if not secret:
            raise Unauthenticated("the request carries no API key.", hint=_HINT)
        if self._by_hash is None:
            raise DeviceUnavailable
        found = hashlib.sha256(secret).hexdigest()
        stored, principal = self._by_hash.get(found, ("", None))
        if principal is None or not hmac.compare_digest(found, stored):
            raise Unauthenticated("the API key is not valid (any more).", hint=_HINT)
        return principal
