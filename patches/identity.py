"""Types for names and ids that must not be mixed up: tenants, tasks and digests."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import NamedTuple, NewType

from peterrec.patches.errors import InvalidDigest, InvalidName

TenantId = NewType("TenantId", str)
TaskId = NewType("TaskId", str)
Digest = NewType("Digest", str)
"""The version id of a bundle: the sha256 of its bytes as 64 hex digits, without a prefix."""

DIGEST_DIGITS = 64

DEFAULT_TENANT = TenantId("default")

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""The form of tenant, task, alias and bundle names, which occur in URLs, keys and file names."""

_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})\Z")


class TaskRef(NamedTuple):
    """The identity of a task, which is always the pair of tenant and task."""

    tenant: TenantId
    task: TaskId


def check_name(text: str, what: str) -> str:
    """Return the name; raise InvalidName, which says ``what`` it names, if it has another form."""
    if not _NAME.match(text):
        raise InvalidName(what, text)
    return text


def parse_tenant(text: str) -> TenantId:
    """Check a tenant's name; InvalidName if it does not have the form."""
    return TenantId(check_name(text, "tenant"))


def parse_task(text: str) -> TaskId:
    """Check a task's name; InvalidName if it does not have the form."""
    return TaskId(check_name(text, "task"))


def parse_digest(text: str) -> Digest:
    """Parse ``sha256:<hex>`` or the bare hex digits; InvalidDigest for any other text."""
    match = _DIGEST.match(text)
    if match is None:
        raise InvalidDigest(text)
    return Digest(match.group(1))


def format_digest(digest: Digest) -> str:
    """Return the form that users see: ``sha256:<hex>``."""
    return f"sha256:{digest}"


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """Return the version id of these bytes; blocks for about a second per gigabyte."""
    return Digest(hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes together with their digest, so that no later step hashes them again.

    Making one hashes, so a digest can never belong to other bytes. Blocks like digest_of.
    """

    data: bytes = field(repr=False)
    digest: Digest = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest_of(self.data))
