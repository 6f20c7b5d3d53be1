"""Names and ids that must not mix: tenants, tasks, digests."""

import hashlib
import re
from typing import NamedTuple, NewType

from peterrec.patches.errors import InvalidDigest, InvalidName

TenantId = NewType("TenantId", str)
TaskId = NewType("TaskId", str)
Digest = NewType("Digest", str)
"""Version id of a bundle: the sha256 of its bytes, 64 hex digits, without a prefix."""

DIGEST_DIGITS = 64

DEFAULT_TENANT = TenantId("default")

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""Tenants, tasks, aliases and bundle names: they stand in URLs, keys, labels and file names."""

_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})\Z")


class TaskRef(NamedTuple):
    """A task's identity: always the pair."""

    tenant: TenantId
    task: TaskId


def check_name(text: str, what: str) -> str:
    """The name itself, or InvalidName saying ``what`` it was to be."""
    if not _NAME.match(text):
        raise InvalidName(what, text)
    return text


def parse_tenant(text: str) -> TenantId:
    """A checked tenant name; InvalidName otherwise."""
    return TenantId(check_name(text, "tenant"))


def parse_task(text: str) -> TaskId:
    """A checked task name; InvalidName otherwise."""
    return TaskId(check_name(text, "task"))


def parse_digest(text: str) -> Digest:
    """A digest from ``sha256:<hex>`` or the bare hex digits; InvalidDigest otherwise."""
    match = _DIGEST.match(text)
    if match is None:
        raise InvalidDigest(text)
    return Digest(match.group(1))


def format_digest(digest: Digest) -> str:
    """The form shown outside: ``sha256:<hex>``."""
    return f"sha256:{digest}"


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """The version id of these bytes; blocks for about a second per gigabyte."""
    return Digest(hashlib.sha256(data).hexdigest())
