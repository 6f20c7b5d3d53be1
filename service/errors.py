"""All errors of the service, the HTTP status of each category, and the problem+json body.

Five groups: what a request is refused for, why a row has no answer, why a pushed bundle is refused,
why a process cannot start, and what commands refuse in addition to the model's errors.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import ClassVar

import msgspec

from peterrec.model.errors import RETRYABLE, Category, PeterRecError
from peterrec.patches.errors import (
    BundleRejected,
    BundleTooLarge,
    BundleUnsafe,
    OutputsDiffer,
    Reason,
    RegistryDenied,
    RegistryFailed,
    RegistryFull,
    RegistryReadOnly,
    RegistryUnavailable,
)

HTTP_STATUS: Mapping[Category, int] = {
    Category.MALFORMED: 400,
    Category.UNAUTHENTICATED: 401,
    Category.FORBIDDEN: 403,
    Category.NOT_FOUND: 404,
    Category.CONFLICT: 409,
    Category.GONE: 410,
    Category.STALE: 412,
    Category.TOO_LARGE: 413,
    Category.UNSAFE_FORMAT: 415,
    Category.INCOMPATIBLE: 422,
    Category.OVERLOADED: 429,
    Category.INTERNAL: 500,
    Category.UNAVAILABLE: 503,
    Category.DEADLINE: 504,
    Category.NO_ROOM: 507,
}

RETRY_AFTER_S = 1
"""Value of ``Retry-After`` on 429 and 503, in seconds: a device process restarts within seconds."""

OUTCOMES: Mapping[Category, str] = {
    Category.OVERLOADED: "rejected",
    Category.UNAVAILABLE: "rejected",
    Category.DEADLINE: "deadline",
    Category.INTERNAL: "error",
}
"""Label ``outcome`` of the request metrics; every other category counts as ``client_error``."""


SEVERITY = ("error", "rejected", "deadline", "client_error")
"""Outcomes in the order in which one stands for several: a fault of ours is not hidden by others,
and what may succeed later comes before what the caller has to change."""


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
            f"task {task!r} is a {kind} task; exclude and candidates belong to ranking tasks.",
            hint="Leave both out for this task.",
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


class BodyTooLarge(PeterRecError):
    code = "body_too_large"
    category = Category.TOO_LARGE

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body has more than {limit_bytes} bytes.", hint="Split the request.")


class Unauthenticated(PeterRecError):
    code = "unauthenticated"
    category = Category.UNAUTHENTICATED


class Forbidden(PeterRecError):
    code = "forbidden"
    category = Category.FORBIDDEN


class RouteNotFound(PeterRecError):
    code = "route_not_found"
    category = Category.NOT_FOUND


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


class TooManyStreams(PeterRecError):
    code = "too_many_streams"
    category = Category.OVERLOADED

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} clients already follow the registry through this worker.",
            hint="Try again later, or poll /registry/audit.",
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


class QueueFull(RowError):
    code = "queue_full"
    category = Category.OVERLOADED
    reason = "too many rows wait for the device."


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
            f"the probes' logits are off by {error:.2g} of the largest; {tolerance:g} is allowed.",
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


class LoadFailed(DeviceRefusal):
    """The device itself failed while it loaded a bundle; the load is tried again later."""

    code = "load_failed"
    category = Category.INTERNAL

    def __init__(self, error: Exception) -> None:
        super().__init__(
            f"the device failed while it loaded the bundle: {error!r}.",
            hint="See the log of the device process; its memory may be full.",
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
_REGISTRY_ERRORS: Mapping[str, type[RegistryUnavailable | RegistryFailed]] = {
    error.code: error
    for error in (
        RegistryUnavailable,
        RegistryReadOnly,
        RegistryFull,
        RegistryDenied,
        RegistryFailed,
    )
}


def push_error(category: str, reasons: Sequence[ErrorBody]) -> PeterRecError:
    """Rebuild the error of a push from what the device process reported.

    A registry error means that the bundle is good and could not be stored; any other reason
    refuses the bundle, and ``category`` decides how.
    """
    not_stored = _REGISTRY_ERRORS.get(reasons[0].code)
    if not_stored is not None:
        return not_stored(reasons[0].message, hint=reasons[0].hint)
    rejected = _BUNDLE_ERRORS.get(category, BundleRejected)
    return rejected([Reason(reason.code, reason.message, reason.hint) for reason in reasons])


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
            hint="Stop what listens there, or choose another port: `port` or `metrics_port`.",
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


class ReportSubjectUnknown(PeterRecError):
    """What a report is asked for is neither a bundle nor a backbone folder."""

    code = "report_subject_unknown"
    category = Category.NOT_FOUND


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


class TaskFileInvalid(PeterRecError):
    """A file that does not hold a valid list of tasks."""

    code = "task_file_invalid"
    category = Category.MALFORMED


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


def retry_headers(status: int) -> list[tuple[bytes, bytes]]:
    """Return the header ``Retry-After`` for the statuses after which a retry may succeed."""
    return [(b"retry-after", b"%d" % RETRY_AFTER_S)] if status in (429, 503) else []


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


class ServerUnreachable(PeterRecError):
    """No server answered a command."""

    code = "server_unreachable"
    category = Category.UNAVAILABLE
