"""API keys of the form ``prk_<id>_<secret>``. Only their sha256 is ever stored.

A key that is being rotated has two secrets for a while, so that its holders can change over one by
one. Secrets of a key count 1, 2, 3 …, and their numbers are never reused.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, NamedTuple

from peterrec.patches.errors import InvalidScope, OperatorScopeRefused
from peterrec.patches.identity import DEFAULT_TENANT, TenantId

Action = Literal["predict", "vectors", "admin", "operator"]
"""``vectors`` gives user vectors, from which more can be learned of a user than from an answer;
without a glob, also those of the plain backbone. ``operator`` is above the tenants: it makes and
deletes them, and sees no task of any."""

KEY_PREFIX = "prk"
ID_BYTES = 6
SECRET_BYTES = 24
ALL_TASKS = "*"
"""The glob of a scope that covers every task and the tenant itself."""

_SCOPE = re.compile(r"(?:(operator)|(predict|vectors|admin)(?::([A-Za-z0-9._*?-]{1,128}))?)\Z")


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """What a key may do, and a glob for the names of the tasks on which it may do it."""

    action: Action
    tasks: str = ALL_TASKS

    def __str__(self) -> str:
        return self.action if self.tasks == ALL_TASKS else f"{self.action}:{self.tasks}"


@dataclass(frozen=True, slots=True)
class KeySecret:
    """One secret of a key. ``secret_digest`` is the sha256 of the whole plain text, as hex digits.

    It is refused from ``expires_at`` on; None means that it does not expire.
    """

    number: int
    secret_digest: str = field(repr=False)
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A stored key. ``secret_digest`` belongs to its newest secret, whose number is ``number``.

    ``previous`` is the secret before, which a rotation leaves valid for a while.
    """

    key_id: str
    tenant: TenantId
    name: str
    scopes: tuple[Scope, ...]
    secret_digest: str = field(repr=False)
    created_at: datetime
    expires_at: datetime | None = None
    number: int = 1
    rotated_at: datetime | None = None
    previous: KeySecret | None = None

    def secrets(self) -> tuple[KeySecret, ...]:
        """Return the secrets, the newest first, each with the time from which it is refused."""
        newest = KeySecret(self.number, self.secret_digest, self.expires_at)
        if self.previous is None:
            return (newest,)
        ends = [end for end in (self.expires_at, self.previous.expires_at) if end is not None]
        return newest, replace(self.previous, expires_at=min(ends, default=None))


class MintedKey(NamedTuple):
    """A new key. ``plain_text`` is shown once and not stored anywhere."""

    key_id: str
    plain_text: str
    secret_digest: str


def parse_scope(text: str) -> Scope:
    """Parse ``operator``, or ``predict``, ``vectors`` or ``admin``, maybe with ``:<task glob>``.

    InvalidScope for any other text.
    """
    match = _SCOPE.match(text)
    if match is None:
        raise InvalidScope(text)
    if match.group(1):
        return Scope("operator")
    action: Action = match.group(2)  # type: ignore[assignment]  # the pattern has these texts only
    return Scope(action, match.group(3) or ALL_TASKS)


def check_scopes(scopes: Sequence[Scope], tenant: TenantId) -> None:
    """Raise InvalidScope unless a key of this tenant can have these scopes.

    ``operator`` is for keys of the tenant ``default`` only, which cannot be deleted, so that no
    tenant ever holds a key to the others and an operator cannot delete its own.
    """
    if not scopes:
        raise InvalidScope("")
    if tenant != DEFAULT_TENANT and any(scope.action == "operator" for scope in scopes):
        raise OperatorScopeRefused(tenant)


def mint_key(key_id: str | None = None) -> MintedKey:
    """Make a new random key, or a new secret of the key with this id."""
    key_id = key_id or secrets.token_hex(ID_BYTES)
    plain_text = f"{KEY_PREFIX}_{key_id}_{secrets.token_hex(SECRET_BYTES)}"
    return MintedKey(key_id, plain_text, _digest(plain_text))


def _digest(plain_text: str) -> str:
    return hashlib.sha256(plain_text.encode(errors="surrogatepass")).hexdigest()
