"""Conversion of the registry's records from and to the form that Redis holds.

Tasks, versions and keys are JSON in hashes; changes are entries of a stream.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from peterrec.patches.errors import InvalidTraffic, RegistryFailed
from peterrec.patches.identity import Digest, TaskId, TaskRef, TenantId
from peterrec.patches.interning import shared_digest
from peterrec.patches.registry.api_keys import KeyRecord, KeySecret, Scope
from peterrec.patches.registry.availability import Availability
from peterrec.patches.registry.records import (
    ActiveTraffic,
    AliasTarget,
    Quotas,
    RegistryEvent,
    TaskEntry,
    TaskOptions,
    TaskRecord,
    TenantEntry,
    TenantOptions,
    TenantRecord,
    Usage,
    VersionRecord,
    VersionSummary,
)
from peterrec.patches.registry.traffic import Traffic

Raw = bytes | str | None
"""The type that redis-py declares for an answer; our client always returns bytes."""


class Outcome(msgspec.Struct, frozen=True):
    """The answer of a script; each script fills the fields that concern it."""

    error: str | None = None
    found: int = 0
    aliases: dict[str, AliasTarget] = {}
    is_in_traffic: bool = False
    revision: int = 0
    version: int = 0
    was_created: bool = False
    digest: Digest | None = None
    previous: Digest | None = None
    is_present: bool = False
    traffic: str | None = None
    previous_traffic: str | None = None
    was_removed: bool = False
    was_changed: bool = False
    is_same_outputs: bool = False
    quota: str = ""
    limit: int = 0
    wanted: int = 0
    text: str = ""
    erased: dict[str, int] = {}
    reason: str = ""


class _StoredTraffic(msgspec.Struct, frozen=True):
    text: str
    versions: dict[Digest, int]
    revision: int


class _StoredTask(msgspec.Struct, frozen=True):
    revision: int
    created_ms: int
    updated_ms: int
    next_version: int
    description: str
    is_sensitive: bool
    aliases: dict[str, AliasTarget]
    traffic: _StoredTraffic | None = None


class _StoredVersion(msgspec.Struct, frozen=True):
    version: int
    created_ms: int
    actor: str
    summary: str


class _StoredSecret(msgspec.Struct, frozen=True):
    number: int
    secret_digest: str
    expires_ms: int


class _StoredKey(msgspec.Struct, frozen=True):
    tenant: TenantId
    name: str
    scopes: tuple[Scope, ...]
    secret_digest: str
    created_ms: int
    expires_ms: int | None = None
    number: int = 1
    rotated_ms: int | None = None
    previous: _StoredSecret | None = None


class _StoredTenant(msgspec.Struct, frozen=True):
    """A tenant's record. Without ``usage``, it was not counted yet."""

    revision: int
    created_ms: int = 0
    updated_ms: int = 0
    description: str = ""
    quotas: Quotas = Quotas()
    usage: Usage | None = None
    deleted_ms: int | None = None
    deleted_revision: int = 0
    weight: float = 1.0


T = TypeVar("T")


def _decode(text: bytes | str, form: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(text, type=form)
    except (msgspec.MsgspecError, InvalidTraffic) as error:
        raise RegistryFailed(
            f"the registry's record of {what} is unreadable: {error}.",
            hint="Something else writes to these keys; give the registry a separate key prefix.",
        ) from error


def text_of(found: Raw) -> str:
    """Decode a name or text from Redis."""
    assert isinstance(found, bytes), "the client must not decode answers"
    return found.decode()


def pairs_of(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Pair the fields and values of a hash, which a script returns as one flat list."""
    return zip(flat[::2], flat[1::2], strict=True)


def time_of(milliseconds: int) -> datetime:
    """Convert milliseconds of Redis' clock."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def task_record(field: str, text: bytes | str) -> TaskRecord:
    """Decode a task from its field ``tenant/task`` in the hash of tasks."""
    stored = _decode(text, _StoredTask, f"task {field}")
    ref = task_ref(field)
    return TaskRecord(
        tenant=ref.tenant,
        task=ref.task,
        revision=stored.revision,
        options=TaskOptions(stored.description, stored.is_sensitive),
        aliases=stored.aliases,
        created_at=time_of(stored.created_ms),
        updated_at=time_of(stored.updated_ms),
        traffic=_active_traffic(stored.traffic, field),
    )


def task_entry(field: str, text: bytes | str, listed: bytes | str | None = None) -> TaskEntry:
    """Decode the part of a task that replicas need, from its field in the hash of tasks.

    ``listed`` is what the hash of availability has in this field, if anything.
    """
    stored = _decode(text, _StoredTask, f"task {field}")
    versions = {t.version: shared_digest(t.digest) for t in stored.aliases.values()}
    traffic = _active_traffic(stored.traffic, field)
    if traffic is not None:
        versions |= {number: shared_digest(d) for d, number in traffic.versions.items()}
    aliases = {alias: target.version for alias, target in stored.aliases.items()}
    availability = None if listed is None else availability_of(field, listed)
    return TaskEntry.of(
        task_ref(field),
        stored.revision,
        aliases,
        versions,
        traffic,
        availability=availability,
        is_sensitive=stored.is_sensitive,
    )


def availability_of(field: str, text: bytes | str) -> Availability:
    """Decode a task's list from its field in the hash of availability."""
    try:
        return Availability.parse(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RegistryFailed(
            f"the registry's list of the items of {field} is unreadable: {error}.",
            hint="Put the list again.",
        ) from error


def task_ref(field: str) -> TaskRef:
    """Parse a task's identity from its field in the hash of tasks."""
    tenant, _, task = field.partition("/")
    return TaskRef(TenantId(tenant), TaskId(task))


def traffic_text(traffic: Traffic) -> str:
    """Encode traffic as it is stored; equal traffic gives equal texts."""
    return msgspec.json.encode(traffic).decode()


def traffic_of(text: str | None) -> Traffic | None:
    """Decode what ``traffic_text`` has encoded."""
    return None if text is None else _decode(text, Traffic, "a task's traffic")


def _active_traffic(stored: _StoredTraffic | None, field: str) -> ActiveTraffic | None:
    if stored is None:
        return None
    traffic = _decode(stored.text, Traffic, f"the traffic of {field}")
    return ActiveTraffic(traffic, stored.versions, stored.revision)


def version_record(digest: str, text: bytes | str) -> VersionRecord:
    """Decode a version from its field in the task's hash of versions."""
    stored = _decode(text, _StoredVersion, f"version {digest}")
    return VersionRecord(
        digest=Digest(digest),
        version=stored.version,
        created_at=time_of(stored.created_ms),
        actor=stored.actor,
        summary=_decode(stored.summary, VersionSummary, f"version {digest}"),
    )


def key_record(key_id: str, text: bytes | str) -> KeyRecord:
    """Decode an API key from its field in the hash of keys."""
    stored = _decode(text, _StoredKey, f"key {key_id}")
    previous = stored.previous
    return KeyRecord(
        key_id,
        stored.tenant,
        stored.name,
        stored.scopes,
        stored.secret_digest,
        time_of(stored.created_ms),
        _time_or_none(stored.expires_ms),
        stored.number,
        _time_or_none(stored.rotated_ms),
        None if previous is None else _secret(previous),
    )


def _secret(stored: _StoredSecret) -> KeySecret:
    return KeySecret(stored.number, stored.secret_digest, time_of(stored.expires_ms))


def tenant_entry(tenant: str, text: bytes | str) -> TenantEntry | None:
    """Decode the part of a tenant that replicas need, from its field in the hash of tenants.

    None for one that was only counted: that was no change, so not every replica knows of it.
    """
    stored = _decode(text, _StoredTenant, f"tenant {tenant}")
    if not stored.revision:
        return None
    is_deleted = stored.deleted_ms is not None
    return TenantEntry(
        TenantId(tenant), is_deleted, stored.deleted_revision, stored.quotas, stored.weight
    )


def tenant_record(tenant: str, text: bytes | str, usage: Usage = Usage()) -> TenantRecord | None:
    """Decode a tenant; None if it was deleted. ``usage`` is for a record that does not say it."""
    stored = _decode(text or b'{"revision":0}', _StoredTenant, f"tenant {tenant}")
    if stored.deleted_ms is not None:
        return None
    return TenantRecord(
        TenantId(tenant),
        stored.revision,
        TenantOptions(stored.description, stored.quotas, stored.weight),
        usage if stored.usage is None else stored.usage,
        _time_or_none(stored.created_ms or None),
        _time_or_none(stored.updated_ms or None),
    )


def is_counted(text: bytes | str) -> bool:
    """Return whether a tenant's record, which may be empty, says what the tenant uses."""
    return bool(text) and _decode(text, _StoredTenant, "a tenant").usage is not None


def uses_of(text: bytes | str) -> dict[int, datetime]:
    """Decode when each secret of a key was used last."""
    stored = _decode(text, dict[int, int], "a key's uses")
    return {number: time_of(at_ms) for number, at_ms in stored.items()}


def _time_or_none(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else time_of(milliseconds)


_NESTED = frozenset(
    {"options", "previous_options", "aliases", "previous_aliases", "traffic", "previous_traffic"}
    | {"observed", "quotas"}
)
"""Fields of an event that are JSON in the stream. All others are texts and numbers."""


def event_of(entry_id: Raw, fields: Mapping[bytes | str, bytes | str]) -> RegistryEvent:
    """Decode a change from its entry in the stream, whose id is the revision."""
    texts = {text_of(name): text_of(text) for name, text in fields.items()}
    found: dict[str, object] = {
        name: msgspec.json.decode(text) if name in _NESTED else text for name, text in texts.items()
    }
    found["revision"] = text_of(entry_id).partition("-")[0]
    found["at"] = time_of(int(texts["at_ms"]))
    for name in ("at_ms", "mark"):
        found.pop(name, None)
    return msgspec.convert(found, type=RegistryEvent, strict=False)


def event_document(event: RegistryEvent) -> dict[str, object]:
    """Return an event as a JSON object, without the fields that do not concern it."""
    fields: dict[str, object] = msgspec.to_builtins(event)
    return {name: value for name, value in fields.items() if value is not None}


def outcome_of(answer: bytes | str) -> Outcome:
    """Decode a script's answer."""
    return _decode(answer, Outcome, "a change")
