"""All errors of the service, the HTTP status of each category, and the problem+json body.

Five groups: what a request is refused for, why a row has no answer, why a pushed bundle is refused,
why a process cannot start, and what commands refuse in addition to the model's errors.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import ClassVar

import msgspec

from peterrec.model.errors import RETRYABLE, Category, DiskFull, PeterRecError
from peterrec.patches.errors import (
    BundleRejected,
    BundleTooLarge,
    BundleUnsafe,
    CacheUnwritable,
    OutputsDiffer,
    Reason,
    RegistryDenied,
    RegistryFailed,
    RegistryFull,
    RegistryLost,
    RegistryReadOnly,
    RegistryUnacknowledged,
    RegistryUnavailable,
)

HTTP_STATUS: Mapping[Category, int] = {
    Category.MALFORMED: 400,
    Category.UNAUTHENTICATED: 401,
    Category.FORBIDDEN: 403,
    Category.NOT_FOUND: 404,
    Category.TOO_SLOW: 408,
    Category.CONFLICT: 409,
    Category.GONE: 410,
    Category.STALE: 412,
    Category.TOO_LARGE: 413,
    Category.UNSAFE_FORMAT: 415,
    Category.UNSUPPORTED: 415,
    Category.INCOMPATIBLE: 422,
    Category.OVERLOADED: 429,
    Category.OVER_QUOTA: 429,
    Category.HEAD_TOO_LARGE: 431,
    Category.INTERNAL: 500,
    Category.UNAVAILABLE: 503,
    Category.DEADLINE: 504,
    Category.NO_ROOM: 507,
}

RETRY_AFTER_S = 1
"""Value of ``Retry-After`` on 429 and 503, in seconds, if the error does not know better: a device
process restarts within seconds."""

OUTCOMES: Mapping[Category, str] = {
    Category.OVERLOADED: "rejected",
    Category.OVER_QUOTA: "over_quota",
    Category.UNAVAILABLE: "rejected",
    Category.DEADLINE: "deadline",
    Category.INTERNAL: "error",
}
"""Label ``outcome`` of the request metrics; every other category counts as ``client_error``."""


OVER_SHARE = "over_share"
"""Label ``outcome`` of a refusal that a tenant's own flood is the reason of, and that concerns no
other tenant: no fault of the service."""

SEVERITY = ("error", "rejected", "deadline", "over_quota", OVER_SHARE, "client_error")
"""Outcomes in the order in which one stands for several: a fault of ours is not hidden by others,
and what may succeed later comes before what the caller has to change."""


def cut(text: str, limit: int) -> str:
    """Return the beginning of a caller's text: what an answer repeats of it is bounded."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class ErrorBody(msgspec.Struct, frozen=True):
    """One error inside an answer that also holds results, or one reason of a refused push.

    ``retryable`` says whether the same call may succeed later.
    """

    code: str
    message: str
    hint: str
    retryable: bool = False


class MalformedRequest(PeterRecError):
    """The body or a header does not have the form that the API accepts; the message says where."""

    code = "malformed_request"
    category = Category.MALFORMED


class UnknownItemsRefused(PeterRecError):
    code = "unknown_items"
    category = Category.MALFORMED


class NotARankingTask(PeterRecError):
    code = "not_a_ranking_task"
    category = Category.MALFORMED

    def __init__(self, task: str, kind: str) -> None:
        super().__init__(
            f"task {task!r} is a {kind} task; exclude, candidates and where belong to ranking "
            "tasks.",
            hint="Leave them out for this task.",
        )


class TaskHasNoItems(PeterRecError):
    """A list of available items for a task that answers with something else than items."""

    code = "task_has_no_items"
    category = Category.CONFLICT

    def __init__(self, task: str, kind: str) -> None:
        super().__init__(
            f"task {task!r} is a {kind} task, which answers with no items.",
            hint="Lists of available items belong to ranking tasks.",
        )


class FeedbackRefused(PeterRecError):
    """Outcomes of a task whose answers the server must not look at."""

    code = "feedback_refused"
    category = Category.CONFLICT

    def __init__(self, task: str) -> None:
        super().__init__(
            f"outcomes of task {task!r} are not counted: the task is marked as sensitive, or the "
            "server looks at no answers.",
            hint="The server's operator allows it with PETERREC_SAMPLE_ANSWERS.",
        )


class UnknownAttribute(PeterRecError):
    """A filter by an attribute that the items of the bundle's catalog do not have."""

    code = "unknown_attribute"
    category = Category.MALFORMED

    def __init__(self, name: str, known: Sequence[str], near: str | None) -> None:
        listed = ", ".join(map(repr, known))
        meant = "" if near is None else f"Is {near!r} meant? "
        super().__init__(
            f"the items have no attribute {name!r} to filter by.",
            hint=f"{meant}They have {listed}."
            if known
            else "The bundle has no attributes: its items can't be filtered.",
        )


class FilterInvalid(PeterRecError):
    """A filter whose condition does not fit the attribute."""

    code = "filter_invalid"
    category = Category.MALFORMED


class VersionWithoutTask(PeterRecError):
    """A version is named of a task that is not."""

    code = "version_without_task"
    category = Category.MALFORMED

    def __init__(self) -> None:
        super().__init__(
            "a version is named, but no task.",
            hint="Name the task, too, or leave the version out for vectors of the plain backbone.",
        )


class WebhookFailed(PeterRecError):
    """A webhook was not told of a change; ``reason`` is one word. Nobody is answered with it."""

    code = "webhook_failed"
    category = Category.UNAVAILABLE

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(f"the webhook failed: {reason}.", hint="Look at the receiver's log.")
        self.reason = reason
        self.is_final = is_final


class BackboneNotServed(PeterRecError):
    """User vectors were asked of a backbone that this server, or the task, does not have."""

    code = "backbone_not_served"
    category = Category.INCOMPATIBLE

    def __init__(self, fingerprint: str, served: str) -> None:
        super().__init__(
            f"backbone {fingerprint[:80]!r} is not the one that could answer: {served}.",
            hint="GET /backbone names the backbones of a server, and GET /tasks/{task} a task's.",
        )


class MixedKinds(PeterRecError):
    """Versions of several kinds answered one call whose answer has one form."""

    code = "mixed_kinds"
    category = Category.CONFLICT

    def __init__(self, task: str, kinds: Collection[str]) -> None:
        super().__init__(
            f"versions of task {task!r} answered that are of different kinds: "
            f"{', '.join(sorted(kinds))}.",
            hint="Name the version in the URL, or send one user per call.",
        )


class UnloadRefused(PeterRecError):
    """A client of a model repository asks to unload a task."""

    code = "unload_refused"
    category = Category.CONFLICT

    def __init__(self) -> None:
        super().__init__(
            "tasks are not loaded and unloaded by calls: a server serves what aliases name.",
            hint="Remove the alias: DELETE /tasks/…/aliases/….",
        )


class HistoryTooLong(PeterRecError):
    code = "history_too_long"
    category = Category.TOO_LARGE


class TooManyRows(PeterRecError):
    code = "too_many_rows"
    category = Category.TOO_LARGE


class ExplanationTooLarge(PeterRecError):
    code = "explanation_too_large"
    category = Category.TOO_LARGE


class TooManyValues(PeterRecError):
    code = "too_many_values"
    category = Category.TOO_LARGE

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the body has more than {limit} values.",
            hint="Split the call, and send only the newest items of each history.",
        )


class BodyTooLarge(PeterRecError):
    code = "body_too_large"
    category = Category.TOO_LARGE

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body has more than {limit_bytes} bytes.", hint="Split the request.")


class SourceInvalid(PeterRecError):
    """The address of a bundle that cannot be one, or that names no single bundle."""

    code = "source_invalid"
    category = Category.MALFORMED


class SourceRefused(PeterRecError):
    """A server does not fetch bundles from this address, or from where it leads."""

    code = "source_refused"
    category = Category.FORBIDDEN


class SourceNotFound(PeterRecError):
    """There is no bundle at an address."""

    code = "source_not_found"
    category = Category.NOT_FOUND


class SourceDenied(PeterRecError):
    """The store of a bundle does not let this process read it."""

    code = "source_denied"
    category = Category.FORBIDDEN

    def __init__(self, source: object, reason: str) -> None:
        super().__init__(
            f"{source}: the store does not let it be read: {reason}.",
            hint="Credentials come from the environment of the process that fetches, which is the "
            "server's for a `source` and the command's for `peterrec push`: docs/sources.md.",
        )


class SourceTooLarge(PeterRecError):
    """What an address gives has more bytes than a bundle may have."""

    code = "source_too_large"
    category = Category.TOO_LARGE

    def __init__(self, source: object, limit_bytes: int) -> None:
        super().__init__(
            f"{source} has more than {limit_bytes} bytes.",
            hint="Is it a bundle? The limit is PETERREC_BUNDLE_SIZE_LIMIT_BYTES.",
        )


class SourceUnreachable(PeterRecError):
    """The store of a bundle does not answer, answers with a failure, or broke off."""

    code = "source_unreachable"
    category = Category.UNAVAILABLE


class SourceTooSlow(PeterRecError):
    """A server did not get a bundle in the time that it takes for one."""

    code = "source_too_slow"
    category = Category.DEADLINE

    def __init__(self, source: object, limit_s: float) -> None:
        super().__init__(
            f"{source} was not there within {limit_s:g} s.",
            hint="Push the bytes instead, or raise PETERREC_BUNDLE_SOURCE_TIMEOUT_S.",
        )


class SourceBusy(PeterRecError):
    """A tenant, or all of them, has as many bundles fetched at a time as one worker does."""

    code = "source_busy"
    category = Category.OVERLOADED

    def __init__(self, count: int, whose: str) -> None:
        super().__init__(
            f"{count} bundles are being fetched for {whose}, which is the limit.",
            hint="Repeat it when one of them is done.",
        )


class SourceLibraryMissing(PeterRecError):
    """The library that reads from a kind of store is not installed."""

    code = "source_library_missing"
    category = Category.UNSUPPORTED

    def __init__(self, scheme: str, extra: str, module: str | None) -> None:
        super().__init__(
            f"bundles at {scheme}: addresses need {module}, which is not installed.",
            hint=f"pip install 'peterrec-serving[{extra}]', where the bundle is fetched.",
        )


class SourceDigestMismatch(PeterRecError):
    """A bundle that was fetched has another digest than it should have."""

    code = "source_digest_mismatch"
    category = Category.INCOMPATIBLE

    def __init__(self, source: object, found: str, expected: str) -> None:
        super().__init__(
            f"{source} has the digest {found}, not {expected}.",
            hint="Somebody has replaced the file, or the digest is another bundle's.",
        )


class HeadTooLarge(PeterRecError):
    """The request line and the header fields, or a trailer, are larger than any real ones."""

    code = "head_too_large"
    category = Category.HEAD_TOO_LARGE

    def __init__(self, limit_bytes: int, limit_fields: int) -> None:
        super().__init__(
            f"the request's head has more than {limit_bytes} bytes or {limit_fields} fields.",
            hint="Send data in the body, and drop cookies and fields that this server ignores.",
        )


class RequestTimedOut(PeterRecError):
    """A part of a request did not arrive in time."""

    code = "request_timeout"
    category = Category.TOO_SLOW

    def __init__(self, part: str, limit_s: float) -> None:
        super().__init__(
            f"the request's {part} did not arrive within {limit_s:.3g} s.",
            hint="Send it again, in one go.",
        )


class TooManyConnections(PeterRecError):
    code = "too_many_connections"
    category = Category.OVERLOADED

    def __init__(self) -> None:
        super().__init__(
            "this server has no room for one more connection.",
            hint="Send several requests over each connection, and fewer at the same time.",
        )


class EncodingUnsupported(PeterRecError):
    """The body is compressed in a way that the server does not know."""

    code = "encoding_unsupported"
    category = Category.UNSUPPORTED

    def __init__(self, name: str, accepted: str) -> None:
        super().__init__(
            f"Content-Encoding {name[:40]!r} is not supported here.",
            hint=f"Send the body without it, or one of {accepted} for JSON.",
        )


class Unauthenticated(PeterRecError):
    code = "unauthenticated"
    category = Category.UNAUTHENTICATED


class SigningKeyUnknown(Unauthenticated):
    """A token by a key that is not in our copy of its issuer's keys; it may be a new one."""

    def __init__(self) -> None:
        super().__init__(
            "the token is signed by a key that its issuer does not publish.",
            hint="Get a new token.",
        )


class KeyExpired(PeterRecError):
    code = "key_expired"
    category = Category.UNAUTHENTICATED

    def __init__(self, expired_at: float) -> None:
        at = datetime.fromtimestamp(expired_at, UTC).isoformat(timespec="seconds")
        super().__init__(
            f"the API key has expired at {at}.",
            hint="Ask the tenant's admin for a new one: POST /keys, or POST /keys/ID:rotate before "
            "it expires.",
        )


class IssuerUnavailable(PeterRecError):
    """The keys of the tokens' issuer were not fetched yet."""

    code = "issuer_unavailable"
    category = Category.UNAVAILABLE

    def __init__(self) -> None:
        super().__init__(
            "the keys of the tokens' issuer could not be fetched yet.",
            hint="Try again. If it persists, see the server's log and PETERREC_OIDC_JWKS_URL.",
        )


class Forbidden(PeterRecError):
    code = "forbidden"
    category = Category.FORBIDDEN


class ProfilingOff(PeterRecError):
    """A profile is asked for, and this server makes none."""

    code = "profiling_off"
    category = Category.FORBIDDEN

    def __init__(self) -> None:
        super().__init__(
            "this server makes no profiles.", hint="Start it with PETERREC_PROFILING=true."
        )


class ProfilerBusy(PeterRecError):
    """Another profile of this server is being made."""

    code = "profiler_busy"
    category = Category.CONFLICT

    def __init__(self) -> None:
        super().__init__(
            "another profile of this server is being made.", hint="Try again in a minute."
        )


class ProfileFailed(PeterRecError):
    """The profiler could not look at a process."""

    code = "profile_failed"
    category = Category.UNAVAILABLE

    def __init__(self, profiler: str, reason: str) -> None:
        super().__init__(
            f"{profiler} gave no profile: {reason}",
            hint="In a container, py-spy may need the capability SYS_PTRACE; see docs/tracing.md.",
        )


class RouteNotFound(PeterRecError):
    code = "route_not_found"
    category = Category.NOT_FOUND


class ServiceUnknown(PeterRecError):
    """A health check asks for a gRPC service that this server does not have."""

    code = "service_unknown"
    category = Category.NOT_FOUND

    def __init__(self, name: str) -> None:
        super().__init__(
            f"there is no gRPC service {name!r}.",
            hint="Leave it empty for the health of the whole server.",
        )


class EventsLost(PeterRecError):
    """The changes that a stream should begin with are no longer kept, or were never made here."""

    code = "events_lost"
    category = Category.GONE

    def __init__(self, since: int, oldest: int, revision: int) -> None:
        super().__init__(
            f"the changes after revision {since} are not available: those from {oldest} to "
            f"{revision} are kept.",
            hint=f"Read the tasks again, then follow with since={revision}.",
        )


class RegistryNotLost(PeterRecError):
    """An acceptance of what Redis holds, although nothing is lost."""

    code = "registry_not_lost"
    category = Category.CONFLICT

    def __init__(self) -> None:
        super().__init__(
            "Redis holds the registry that this server knows; there is nothing to accept.",
            hint="A loss is noticed within two seconds; /readyz then names it among its reasons.",
        )


class TooManyStreams(PeterRecError):
    code = "too_many_streams"
    category = Category.OVERLOADED

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} clients already follow the registry through this worker.",
            hint="Try again later, or poll /registry/audit.",
        )


class TooManyBatches(PeterRecError):
    """More streams of predictions at a time than a worker serves."""

    code = "too_many_batches"
    category = Category.OVERLOADED

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"a worker answers {limit} streams of lines of a tenant at a time.",
            hint="Wait for one of them, or send more lines in each.",
        )


class ServerDraining(PeterRecError):
    """A stream of predictions that a server ends because it stops."""

    code = "server_draining"
    category = Category.UNAVAILABLE

    def __init__(self) -> None:
        super().__init__(
            "the server stops, so the stream ends here.",
            hint="Send the lines that have no answer again, to another replica.",
        )


class LineTooLong(PeterRecError):
    """A line of a stream with more bytes than one user needs."""

    code = "line_too_long"
    category = Category.TOO_LARGE

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the line has more than {limit_bytes} bytes.", hint="Send one user in a line."
        )


class ArrowRefused(PeterRecError):
    """A stream of Arrow record batches that is none, or not one of users."""

    code = "arrow_refused"
    category = Category.MALFORMED

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(
            f"the Arrow stream is refused: {why}",
            hint=hint
            or "Write it with pyarrow.ipc.new_stream, without compression and dictionaries.",
        )


class ArrowBatchTooLarge(PeterRecError):
    """A message of an Arrow stream with more bytes than a worker holds of one."""

    code = "arrow_batch_too_large"
    category = Category.TOO_LARGE

    def __init__(self, what: str, limit_bytes: int) -> None:
        super().__init__(
            f"a {what} may have at most {limit_bytes} bytes.",
            hint="Write smaller batches: writer.write_table(table, max_chunksize=1000).",
        )


class OutputsChanged(PeterRecError):
    """An answer that has other outputs than the schema of its stream."""

    code = "outputs_changed"
    category = Category.CONFLICT

    def __init__(self, task: str, version: int) -> None:
        super().__init__(
            f"version {version} of {task!r} has other outputs than the columns of this stream.",
            hint="Send the rest of the users in a new stream.",
        )


class RateExceeded(PeterRecError):
    """A tenant asks for more per second than its quota.

    After ``retry_after_s`` it has what it lacks now. ``headers`` are further ones of the answer.
    """

    code = "rate_exceeded"
    category = Category.OVER_QUOTA

    def __init__(
        self,
        tenant: str,
        quota: str,
        limit: int,
        retry_after_s: int,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        what = quota.removesuffix("_per_s")
        super().__init__(
            f"tenant {tenant!r} may ask for {limit} {what} per second.",
            hint=f"Try again in {retry_after_s} s, or ask the operator for a larger quota.",
        )
        self.retry_after_s = retry_after_s
        self.headers = [*headers]


class AtOnceExceeded(PeterRecError):
    """A tenant has as much of something at the same time as its quota allows."""

    code = "at_once_exceeded"
    category = Category.OVER_QUOTA

    def __init__(self, tenant: str, quota: str, limit: int, used: int) -> None:
        what = quota.replace("_", " ")
        super().__init__(
            f"tenant {tenant!r} may have {limit} {what} on all replicas together, and has {used} "
            "here.",
            hint="Wait for some of them to end, or ask the operator for a larger quota.",
        )


class TaskNotActive(PeterRecError):
    code = "task_not_active"
    category = Category.CONFLICT

    def __init__(self, task: str) -> None:
        super().__init__(
            f"task {task!r} has no version named prod.",
            hint=f"PUT /tasks/{task}/aliases/prod with the version that should serve.",
        )


class VersionNotServed(PeterRecError):
    """A request asks for a version that is not loaded: no alias and no traffic names it."""

    code = "version_not_served"
    category = Category.CONFLICT

    def __init__(self, task: str, version: str, served: Mapping[int, Sequence[str]]) -> None:
        listed = [
            f"{number} ({', '.join(aliases)})" if aliases else f"{number}"
            for number, aliases in sorted(served.items())
        ]
        self.served = ", ".join(listed) or "none"
        super().__init__(
            f"version {version:.80} of task {task!r} is not served; these are: {self.served}.",
            hint=f"Give it an alias so that it stays loaded: PUT /tasks/{task}/aliases/…",
        )
        self.task = task
        self.version = version


class BundleNotReady(PeterRecError):
    """The bundle is registered, but this replica has not loaded it (yet)."""

    code = "bundle_not_ready"
    category = Category.UNAVAILABLE

    def __init__(self, what: str) -> None:
        super().__init__(
            f"this server has not loaded the bundle {what}.",
            hint="Try again shortly. If it persists, see the server's log for the reason.",
        )


class BundleUnservable(PeterRecError):
    """The bundle that should answer can never be loaded by this server, so retries are in vain."""

    code = "bundle_refused"
    category = Category.CONFLICT

    def __init__(self, task: str, version: int, reason: str) -> None:
        super().__init__(
            f"this server refuses the bundle of version {version} of task {task!r}: {reason}.",
            hint="Trying again does not help: the task's owner has to push a bundle for this "
            "server's backbone.",
        )


class RowError(PeterRecError):
    """Why one row (one history for one bundle) has no answer.

    Its code is all that the device process sends to a worker, which finds the class by the code in
    ``ROW_ERRORS``. ``reason`` is the message where no more is known.
    """

    reason: ClassVar[str]

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        retry = "Try again." if self.category in RETRYABLE else ""
        super().__init__(message or self.reason, hint=hint or retry)


class BundleGone(RowError):
    """The bundle of a waiting row is no longer resident after the device process restarted."""

    code = "bundle_gone"
    category = Category.UNAVAILABLE
    reason = "the bundle was removed while the request waited."


class HeadUnreadable(RowError):
    """A part of a head that was evicted from the device cannot be read from its local file."""

    code = "head_unreadable"
    category = Category.UNAVAILABLE
    reason = "the task's catalog or item table cannot be read from disk; see the server's log."


class DeviceUnavailable(RowError):
    code = "device_unavailable"
    category = Category.UNAVAILABLE
    reason = "the device process is not running; it is being restarted."


class ActivityUnknown(PeterRecError):
    """The counts of the metrics could not be read."""

    code = "activity_unknown"
    category = Category.UNAVAILABLE

    def __init__(self, url: str, error: Exception) -> None:
        super().__init__(
            f"the metrics at {url} could not be read ({type(error).__name__}).",
            hint="Everything else works. Look at the port of the metrics.",
        )


class QueueFull(RowError):
    """Too many rows wait, or the call's own could not be answered in time."""

    code = "queue_full"
    category = Category.OVERLOADED
    reason = "too many rows wait for the device."

    def __init__(
        self,
        message: str = "",
        *,
        hint: str = "",
        retry_after_s: int = RETRY_AFTER_S,
        is_own: bool = False,
    ) -> None:
        """``is_own``: of the caller's tenant alone; calls of others are taken."""
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
        self.is_own = is_own


class DeadlineExceeded(RowError):
    code = "deadline_exceeded"
    category = Category.DEADLINE
    reason = "the request's time ran out while it waited."


class RowFailed(RowError):
    """The forward failed for this row: a bug or a failing device."""

    code = "row_failed"
    category = Category.INTERNAL
    reason = "the device failed on this history; see the server's log."


class ResultNotFinite(RowError):
    """The bundle computes NaN or infinity for this history."""

    code = "result_not_finite"
    category = Category.INTERNAL
    reason = "the bundle gives numbers that are not finite for this history."


ROW_ERRORS: Mapping[str, type[RowError]] = {
    error.code: error
    for error in (
        BundleGone,
        HeadUnreadable,
        DeviceUnavailable,
        QueueFull,
        DeadlineExceeded,
        RowFailed,
        ResultNotFinite,
    )
}
"""Every error of a row by the code that is sent between processes."""


def row_error(code: str, detail: str = "") -> RowError:
    """Build the error of a row from the code and the detail that were sent for it."""
    error = ROW_ERRORS.get(code)
    return RowFailed(detail or f"{code}.") if error is None else error(detail)


class DeviceRefusal(PeterRecError):
    """A verified bundle that the device cannot serve: a reason of a push that is refused."""


class ProbeFailed(DeviceRefusal):
    """The device computes other numbers for the bundle's probes than its trainer recorded."""

    code = "probe_failed"
    category = Category.INCOMPATIBLE

    def __init__(self, error: float, tolerance: float) -> None:
        super().__init__(
            f"the probes' logits are off by {error:.2g} of what their output can reach; "
            f"{tolerance:g} is allowed.",
            hint="Write the bundle again on the backbone that is served; its weights do not "
            "give the answers its trainer recorded.",
        )


class HeadBudgetExceeded(DeviceRefusal):
    code = "head_budget_exceeded"
    category = Category.NO_ROOM

    def __init__(self, wanted: int, kept: int, limit: int) -> None:
        super().__init__(
            f"the head needs {wanted} bytes; heads that can't be evicted need {kept} of {limit}.",
            hint="Raise PETERREC_HEAD_LIMIT_BYTES, or retire tasks with large heads or tables.",
        )


class PatchBudgetExceeded(DeviceRefusal):
    code = "patch_budget_exceeded"
    category = Category.NO_ROOM

    def __init__(self, wanted: int, kept: int, limit: int) -> None:
        super().__init__(
            f"the patch needs {wanted} bytes on the device; those of other bundles take {kept} of "
            f"{limit}.",
            hint="Raise PETERREC_PATCH_LIMIT_BYTES, or retire tasks. Patches are never evicted.",
        )


class LoadFailed(DeviceRefusal):
    """The device itself failed while it loaded a bundle; the load is tried again later."""

    code = "load_failed"
    category = Category.INTERNAL

    def __init__(self, error: Exception) -> None:
        super().__init__(
            f"the device failed while it loaded the bundle: {error!r:.200}.",
            hint="See the log of the device process; its memory may be full.",
        )


class InternalFault(DeviceRefusal):
    """The device process failed at what it was asked. ``fault_id`` finds the reason in its log."""

    code = "internal_fault"
    category = Category.INTERNAL

    def __init__(self) -> None:
        self.fault_id = secrets.token_hex(4)
        super().__init__(
            f"the device process failed at this (fault {self.fault_id}).",
            hint="See the log of the device process; it names this fault.",
        )


class BundleNoRoom(BundleRejected):
    """A pushed bundle whose head does not fit into the device's memory budget."""

    code = "head_budget_exceeded"
    category = Category.NO_ROOM


class BundleNotJudged(BundleRejected):
    """A pushed bundle that the server could not check because of an internal fault."""

    code = "bundle_not_judged"
    category = Category.INTERNAL


_BUNDLE_ERRORS: Mapping[str, type[BundleRejected]] = {
    error.category: error
    for error in (BundleRejected, BundleTooLarge, BundleUnsafe, BundleNoRoom, BundleNotJudged)
}
_DISK_ERRORS: Mapping[str, type[DiskFull | CacheUnwritable]] = {
    error.code: error for error in (DiskFull, CacheUnwritable)
}
_REGISTRY_ERRORS: Mapping[str, type[RegistryUnavailable | RegistryFailed]] = {
    error.code: error
    for error in (
        RegistryUnavailable,
        RegistryLost,
        RegistryUnacknowledged,
        RegistryReadOnly,
        RegistryFull,
        RegistryDenied,
        RegistryFailed,
    )
}


def push_error(category: str, reasons: Sequence[ErrorBody]) -> PeterRecError:
    """Rebuild the error of a push from what the device process reported.

    A registry error, or a full disk, means that the bundle could not be stored; any other reason
    refuses the bundle, and ``category`` decides how.
    """
    first = reasons[0]
    not_stored = _REGISTRY_ERRORS.get(first.code)
    if not_stored is not None:
        return not_stored(first.message, hint=first.hint)
    no_room = _DISK_ERRORS.get(first.code)
    if no_room is not None:
        return no_room(first.message, hint=first.hint)
    rejected = _BUNDLE_ERRORS.get(category, BundleRejected)
    return rejected([Reason(reason.code, reason.message, reason.hint) for reason in reasons])


_SOURCE_ERRORS: Mapping[str, type[PeterRecError]] = {
    error.code: error
    for error in (
        SourceInvalid,
        SourceRefused,
        SourceNotFound,
        SourceDenied,
        SourceTooLarge,
        SourceUnreachable,
        SourceLibraryMissing,
        SourceDigestMismatch,
        DiskFull,
    )
}


def fetch_error(code: str, message: str, hint: str) -> PeterRecError:
    """Rebuild the error with which the process that fetches a bundle ended."""
    kind = _SOURCE_ERRORS.get(code, InternalError)
    error = kind.__new__(kind)  # its message is written already
    PeterRecError.__init__(error, message, hint=hint)
    return error


class InternalError(PeterRecError):
    code = "internal"

    def __init__(self) -> None:
        super().__init__(
            "the server failed on this request.",
            hint="See the server's log; it names this request id.",
        )


class SettingsInvalid(PeterRecError):
    """One or more settings are out of bounds or contradict each other; the message lists all."""

    code = "settings_invalid"
    category = Category.MALFORMED


class AnswersNotGiven(PeterRecError):
    """A task's kind needs answers that the options do not name."""

    code = "answers_not_given"
    category = Category.MALFORMED


class AddressInUse(PeterRecError):
    code = "address_in_use"
    category = Category.CONFLICT

    def __init__(self, host: str, port: int, reason: OSError) -> None:
        super().__init__(
            f"cannot listen on {host} port {port}: {reason.strerror}.",
            hint="Stop what listens there, or choose another port: `port`, `grpc_port` or "
            "`metrics_port`.",
        )


class NeverReady(PeterRecError):
    code = "never_ready"

    def __init__(self, child: str) -> None:
        super().__init__(f"the {child} process could not start.", hint="See the lines above.")


class DemoFailed(PeterRecError):
    code = "demo_failed"
    category = Category.INTERNAL


class OutputExists(PeterRecError):
    """A result exists already and the command was not asked to overwrite it."""

    code = "output_exists"
    category = Category.CONFLICT


class NoTaskMatches(PeterRecError):
    """A task that is to be scored is not there."""

    code = "no_task_matches"
    category = Category.NOT_FOUND

    def __init__(self, wanted: str, there: Sequence[str]) -> None:
        if not there:
            super().__init__(
                "there is no task to score.",
                hint="Check the folder of `bundles`, or the tenant and the registry's address.",
            )
            return
        shown = ", ".join(there[:SHOWN_TASKS])
        more = f" and {len(there) - SHOWN_TASKS} others" if len(there) > SHOWN_TASKS else ""
        super().__init__(
            f"there is no task {wanted!r}; there are {len(there)}: {shown}{more}.",
            hint="Name tasks with `tasks`, or with a pattern by `glob`.",
        )


SHOWN_TASKS = 8
"""Tasks that an error names."""


class TwoBundlesOfOneName(PeterRecError):
    """Two bundle files that would be one task."""

    code = "two_bundles_of_one_name"
    category = Category.CONFLICT

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__(
            f"{first} and {second} would both be the task {name!r}.",
            hint="Give one of them, or rename a file: a task is named as its file.",
        )


class InputUnreachable(PeterRecError):
    """Files behind a URL that cannot be fetched."""

    code = "input_unreachable"
    category = Category.UNAVAILABLE

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"{url} cannot be fetched: {reason}.",
            hint="Check the URL and the credentials. A store may need a package: s3fs for s3://, "
            "gcsfs for gs://, adlfs for abfs://, aiohttp for https://.",
        )


class NoUserReadable(PeterRecError):
    """Users none of whom can be read; the message has the first reason."""

    code = "no_user_readable"
    category = Category.MALFORMED

    def __init__(self, first: str) -> None:
        super().__init__(
            f"no user can be read. {first}",
            hint="Name the columns with `user_column`, and `history_column` or `item_column`.",
        )


class UsersMixed(PeterRecError):
    """Users whose ids are integers in one file and texts in another."""

    code = "users_mixed"
    category = Category.MALFORMED

    def __init__(self, name: str, first: str, other: str) -> None:
        super().__init__(
            f"{name}: ids of users are of type {other} after others of type {first}.",
            hint="Write them in one type in all files.",
        )


class UsersNotNumbered(PeterRecError):
    """Ids of users that a numpy array of integers cannot hold."""

    code = "users_not_numbered"
    category = Category.MALFORMED

    def __init__(self, user: str) -> None:
        super().__init__(
            f"the user {user!r:.80} is no integer of 64 bits, as client_ids.npy has them.",
            hint="Write the vectors as Parquet: `vectors` parquet. Nothing else need be repeated.",
        )


class RunChanged(PeterRecError):
    """A run that is to go on, with another input or other options."""

    code = "run_changed"
    category = Category.CONFLICT

    def __init__(self, what: str, before: str, now: str) -> None:
        super().__init__(
            f"the run began with {what} {before}, and is now to go on with {now}.",
            hint="Go on with the same, begin anew with `overwrite`, or write to another `out`.",
        )


class RunBusy(PeterRecError):
    """An output that another process is writing."""

    code = "run_busy"
    category = Category.CONFLICT

    def __init__(self, folder: str) -> None:
        super().__init__(
            f"another process is writing to {folder}.", hint="Wait for it, or stop it."
        )


class OutputChanged(PeterRecError):
    """A finished file that is gone or has another size than it had."""

    code = "output_changed"
    category = Category.CONFLICT

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} was finished, and is gone or has changed since.",
            hint="Put it back, or begin anew with `overwrite`.",
        )


class ReportSubjectUnknown(PeterRecError):
    """What a report is asked for is neither a bundle nor a backbone folder."""

    code = "report_subject_unknown"
    category = Category.NOT_FOUND


class TracingMissing(PeterRecError):
    """Traces are asked for, and OpenTelemetry is not installed."""

    code = "tracing_missing"
    category = Category.UNSUPPORTED

    def __init__(self, module: str | None) -> None:
        super().__init__(
            f"PETERREC_TRACE_ENDPOINT is set, and {module} is not installed.",
            hint="pip install 'peterrec-serving[tracing]', or unset it.",
        )


class TrackerMissing(PeterRecError):
    """The library of a tracker is not installed."""

    code = "tracker_missing"
    category = Category.UNAVAILABLE


class TrackerUnavailable(PeterRecError):
    """A tracker can't be reached, or does not take a run, before a training begins."""

    code = "tracker_unavailable"
    category = Category.UNAVAILABLE


class TaskUnpackable(PeterRecError):
    """A task whose names or metrics the bundle format does not accept."""

    code = "task_unpackable"
    category = Category.INCOMPATIBLE


class DownloadFailed(PeterRecError):
    code = "download_failed"
    category = Category.UNAVAILABLE


class ArgumentInvalid(PeterRecError, ValueError):
    """An argument of a function of the library that cannot be used."""

    code = "argument_invalid"
    category = Category.MALFORMED


class DescriptionUnmatched(PeterRecError):
    """A table of titles or attributes that says nothing of any output of the bundle."""

    code = "description_unmatched"
    category = Category.MALFORMED

    def __init__(self, source: str, what: str, output: str | None, found: str | None) -> None:
        if output is None:
            super().__init__(
                f"{source}: the bundle answers with a number, which has no {what}.",
                hint=f"Leave the {what} out.",
            )
            return
        super().__init__(
            f"{source}: none of its ids, such as {found!r:.60}, is an output of the bundle, such "
            f"as {output!r:.60}.",
            hint="Name the column of the ids with `id_column`.",
        )


class DescriptionMissing(PeterRecError):
    code = "description_missing"
    category = Category.MALFORMED

    def __init__(self) -> None:
        super().__init__(
            "there is nothing to describe the bundle with.",
            hint="Give `titles` or `attributes`, or both.",
        )


class TaskFileInvalid(PeterRecError):
    """A file that does not hold a valid list of tasks."""

    code = "task_file_invalid"
    category = Category.MALFORMED


class NewBackboneNotServed(PeterRecError):
    """Tasks are to move to a backbone that the server does not hold."""

    code = "new_backbone_not_served"
    category = Category.INCOMPATIBLE

    def __init__(self, fingerprint: str, served: Sequence[str]) -> None:
        super().__init__(
            f"the server does not hold backbone {fingerprint}, only {', '.join(served)}.",
            hint="Restart it with both folders: `peterrec serve --backbone NEW --backbone OLD`.",
        )


class OldBackboneMissing(PeterRecError):
    """The backbone of a version that is to be compared with its successor is not at hand."""

    code = "old_backbone_missing"
    category = Category.NOT_FOUND

    def __init__(self, fingerprint: str) -> None:
        super().__init__(
            f"no given folder holds backbone {fingerprint}, by which the task answers now.",
            hint="Name its folder with `old_backbone`.",
        )


class TrainingUnrepeatable(PeterRecError):
    """A bundle does not say how it was trained, so that nobody can train it again."""

    code = "training_unrepeatable"
    category = Category.INCOMPATIBLE

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}.",
            hint="A file of `sources` can say where the data are and how they are read; without "
            "recorded settings and digests, train it by `peterrec finetune`.",
        )


class TrainingDataMissing(PeterRecError):
    """The data of a training are in none of the folders that were given."""

    code = "training_data_missing"
    category = Category.NOT_FOUND

    def __init__(self, recorded: str) -> None:
        super().__init__(
            f"{recorded} is not there.",
            hint="Name a folder that has it, or has it further below, with `data`; or say in a "
            "file of `sources` where it is.",
        )


class TrainingDataChanged(PeterRecError):
    """Data that were found are not those of the training, by their digest."""

    code = "training_data_changed"
    category = Category.CONFLICT

    def __init__(self, found: str, why: str) -> None:
        super().__init__(
            f"{found} is not what the task was trained on: {why}.",
            hint="Give the data of the training. On new data, train by `peterrec finetune`.",
        )


class NothingHeldOut(PeterRecError):
    """Two versions of a task have no users in common that the training of neither has seen."""

    code = "nothing_held_out"
    category = Category.INCOMPATIBLE

    def __init__(self) -> None:
        super().__init__(
            "no user was held out by both trainings, so they can't be compared.",
            hint="Train it by `peterrec finetune` with a `test_share`, and compare by yourself.",
        )


class TrafficInUse(PeterRecError):
    """A task that has canaries or shadows already."""

    code = "traffic_in_use"
    category = Category.CONFLICT

    def __init__(self, task: str) -> None:
        super().__init__(
            f"task {task!r} has canaries or shadows already.",
            hint="Decide on them first: `peterrec traffic show`, `peterrec traffic clear`.",
        )


class ProdMoved(PeterRecError):
    """A task whose prod is no longer the version that a new one was compared with."""

    code = "prod_moved"
    category = Category.STALE

    def __init__(self, task: str) -> None:
        super().__init__(
            f"prod of task {task!r} names another version than the one that was compared.",
            hint="Repeat the command: it begins anew for this task.",
        )


class NewVersionWorse(PeterRecError):
    """A version that is worse than its predecessor by more than is tolerated."""

    code = "new_version_worse"
    category = Category.CONFLICT

    def __init__(self, metric: str, old: float, new: float, tolerance: float) -> None:
        super().__init__(
            f"{metric} fell from {old:.4f} to {new:.4f}, by more than {tolerance:.0%}.",
            hint="It is not registered. A larger `tolerance` registers it without training anew.",
        )


class TasksNotMigrated(PeterRecError):
    """A migration that left some of its tasks where they were."""

    code = "tasks_not_migrated"
    category = Category.CONFLICT

    def __init__(self, tasks: Sequence[str], report: str) -> None:
        shown = ", ".join(tasks[:SHOWN_TASKS])
        more = f" and {len(tasks) - SHOWN_TASKS} others" if len(tasks) > SHOWN_TASKS else ""
        super().__init__(
            f"not migrated: {shown}{more}.",
            hint=f"{report} says why. The same command goes on with them.",
        )


class Problem(msgspec.Struct, frozen=True):
    """Body of every refusal: a problem as defined by RFC 9457, with a stable ``code``.

    ``error`` is code, detail and hint in one line. ``reasons``: why a pushed bundle is refused, or
    how the outputs of a version differ.
    ``errors``: the error of each task, or of each instance by its number from 0, if a call for
    several could answer none of them.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str
    request_id: str
    retryable: bool
    error: str
    reasons: list[ErrorBody] | msgspec.UnsetType = msgspec.UNSET
    errors: dict[str, ErrorBody] | msgspec.UnsetType = msgspec.UNSET


class NothingAnswered(PeterRecError):
    """A call for several tasks or instances could answer none.

    ``errors`` are by task, or by the number of the instance. The gravest stands for all of them:
    ``SEVERITY`` says which outcome that is, and the first comes before its equals.
    """

    def __init__(self, errors: Mapping[str, PeterRecError]) -> None:
        self.first = min(errors.values(), key=lambda each: SEVERITY.index(_outcome_of_status(each)))
        self.errors = errors
        super().__init__(self.first.message, hint=self.first.hint)


def outcome_of(error: PeterRecError) -> str:
    """Return the label ``outcome`` under which the metrics count an error.

    That a server can't load a bundle is not its callers' mistake, although the status is 409:
    somebody has to be alerted.
    """
    first = error.first if isinstance(error, NothingAnswered) else error
    if isinstance(first, QueueFull) and first.is_own:
        return OVER_SHARE
    return "error" if isinstance(first, BundleUnservable) else _outcome_of_status(first)


def _outcome_of_status(error: PeterRecError) -> str:
    return OUTCOMES.get(error.category, "client_error")


def error_body(error: PeterRecError) -> ErrorBody:
    """Return the error in the form that answers with other results use."""
    return ErrorBody(error.code, error.message, error.hint, error.is_retryable)


def problem_of(error: PeterRecError, request_id: str) -> Problem:
    """Return the error as the body of a whole response."""
    errors: dict[str, ErrorBody] | msgspec.UnsetType = msgspec.UNSET
    reasons: list[ErrorBody] | msgspec.UnsetType = msgspec.UNSET
    if isinstance(error, NothingAnswered):
        errors = {task: error_body(each) for task, each in error.errors.items()}
        error = error.first
    if isinstance(error, BundleRejected):
        reasons = [ErrorBody(each.code, each.message, each.hint) for each in error.reasons]
    if isinstance(error, OutputsDiffer):
        reasons = [ErrorBody(error.code, each, "") for each in error.differences]
    status = HTTP_STATUS[error.category]
    return Problem(
        type=f"urn:peterrec:error:{error.code}",
        title=_title(error.code),
        status=status,
        code=error.code,
        detail=error.message,
        hint=error.hint,
        request_id=request_id,
        retryable=error.is_retryable,
        error=str(error),
        reasons=reasons,
        errors=errors,
    )


def plain_problem(status: int, detail: str, request_id: str) -> Problem:
    """Return a problem of HTTP itself, such as a method that is not allowed."""
    code = HTTPStatus(status).phrase.lower().replace(" ", "_")
    return Problem(
        type=f"urn:peterrec:error:{code}",
        title=_title(code),
        status=status,
        code=code,
        detail=detail,
        hint="/docs lists the routes.",
        request_id=request_id,
        retryable=False,
        error=f"{code}: {detail}",
    )


def retry_after_s(error: PeterRecError) -> int:
    """Return the seconds after which a refused call may come back.

    Errors that know when that is have them as ``retry_after_s``.
    """
    first = error.first if isinstance(error, NothingAnswered) else error
    seconds: int = getattr(first, "retry_after_s", RETRY_AFTER_S)
    return seconds


def retry_headers(status: int, seconds: int = RETRY_AFTER_S) -> list[tuple[bytes, bytes]]:
    """Return the header ``Retry-After`` for the statuses after which a retry may succeed."""
    return [(b"retry-after", b"%d" % seconds)] if status in (429, 503) else []


def _title(code: str) -> str:
    return code.replace("_", " ").capitalize()


class ServerRefused(PeterRecError):
    """A server's refusal, as a command reports it.

    It has the server's code. ``status`` is the HTTP status, 0 if nothing was sent.
    """

    category = Category.CONFLICT

    def __init__(self, code: str, message: str, hint: str, status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.refused_code = code
        self.status = status

    @property
    def code(self) -> str:  # type: ignore[override]  # the server's code, not one of this process
        """The server's code."""
        return self.refused_code


class Interrupted(PeterRecError):
    """Somebody stopped the command, by Ctrl-C; the hint says what is kept."""

    code = "interrupted"


class OutputClosed(PeterRecError):
    """The program that read the command's output has ended."""

    code = "output_closed"


class OutOfMemory(PeterRecError):
    """The memory of this machine or of the graphics card is not enough."""

    code = "out_of_memory"
    category = Category.NO_ROOM


class UnexpectedFailure(PeterRecError):
    """A fault of ours: an exception that nobody expected."""

    code = "unexpected_failure"


class ProcessLost(PeterRecError):
    """A process that a training needs has ended."""

    code = "process_lost"


class RayMissing(PeterRecError):
    """Ray is asked for, and is not installed."""

    code = "ray_missing"
    category = Category.UNSUPPORTED

    def __init__(self, module: str | None) -> None:
        super().__init__(
            f"{module} is not installed.", hint="pip install 'peterrec-serving[ray]' everywhere."
        )


class ReplicaFailed(PeterRecError):
    """The server of a replica of Ray Serve has ended, or does not answer."""

    code = "replica_failed"
    category = Category.UNAVAILABLE

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the server of this replica {what}.", hint="Its lines in the actor's log say why."
        )


class ServerUnreachable(PeterRecError):
    """No server answered a command."""

    code = "server_unreachable"
    category = Category.UNAVAILABLE
