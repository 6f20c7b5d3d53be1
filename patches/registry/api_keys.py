"""API keys of the form ``prk_<id>_<secret>``. Only their sha256 is ever stored."""

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from peterrec.patches.errors import InvalidScope
from peterrec.patches.identity import TenantId

Action = Literal["predict", "admin"]

KEY_PREFIX = "prk"
ID_BYTES = 6
SECRET_BYTES = 24
ALL_TASKS = "*"
"""The glob of a scope that covers every task and the tenant itself."""

_SCOPE = re.compile(r"(predict|admin)(?::([A-Za-z0-9._*?-]{1,128}))?\Z")


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """What a key may do, and a glob for the names of the tasks on which it may do it."""

    action: Action
    tasks: str = ALL_TASKS

    def __str__(self) -> str:
        return self.action if self.tasks == ALL_TASKS else f"{self.action}:{self.tasks}"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A stored key. ``secret_digest`` is the sha256 of the whole plain text, as hex digits."""

    key_id: str
    tenant: TenantId
    name: str
    scopes: tuple[Scope, ...]
    secret_digest: str = field(repr=False)
    created_at: datetime


class MintedKey(NamedTuple):
    """A new key. ``plain_text`` is shown once and not stored anywhere."""

    key_id: str
    plain_text: str
    secret_digest: str


def parse_scope(text: str) -> Scope:
    """Parse ``predict``, ``admin`` or ``predict:<task glob>``; InvalidScope for any other text."""
    match = _SCOPE.match(text)
    if match is None:
        raise InvalidScope(text)
    action: Action = "predict" if match.group(1) == "predict" else "admin"
    return Scope(action, match.group(2) or ALL_TASKS)


def mint_key() -> MintedKey:
    """Make a new random key."""
    key_id = secrets.token_hex(ID_BYTES)
    plain_text = f"{KEY_PREFIX}_{key_id}_{secrets.token_hex(SECRET_BYTES)}"
    return MintedKey(key_id, plain_text, _digest(plain_text))


def _digest(plain_text: str) -> str:
    return hashlib.sha256(plain_text.encode(errors="surrogatepass")).hexdigest()
