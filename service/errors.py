"""Every refusal as HTTP: categories → statuses, our own leaves, and the problem+json body.

What the training commands refuse beyond what the model refuses.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec

from peterrec.model.errors import RETRYABLE, Category, PeterRecError

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
"""Value of ``Retry-After`` on 429 and 503: a device process restarts within seconds."""

OUTCOMES: Mapping[Category, str] = {
    Category.OVERLOADED: "rejected",
    Category.UNAVAILABLE: "rejected",
    Category.DEADLINE: "deadline",
    Category.INTERNAL: "error",
}
"""Label ``outcome`` of the request metrics; other categories are the client's own mistakes."""


class ErrorBody(msgspec.Struct, frozen=True):
    """What went wrong in one slot of an answer whose other slots are fine."""

    code: str
    message: str
    hint: str


class MalformedRequest(PeterRecError):
    """The body or a header is not what the API takes; the message names the place."""

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
    """Changes that a stream would have to begin with are no longer kept, or are of another past."""

    code = "events_lost"
    category = Category.GONE

    def __init__(self, since: int, oldest: int, revision: int) -> None:
        super().__init__(
            f"changes after revision {since} can't be told: those from {oldest} to {revision} "
            "are kept.",
            hint=f"Read the tasks again, then follow from since={revision} on.",
        )


class TooManyStreams(PeterRecError):
    code = "too_many_streams"
    category = Category.OVERLOADED

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} clients follow the registry through this worker already.",
            hint="Try again; or read /registry/audit from time to time.",
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
    """A request asks for a version that no alias and no traffic keeps loaded."""

    code = "version_not_served"
    category = Category.CONFLICT

    def __init__(self, task: str, version: str, served: Mapping[int, Sequence[str]]) -> None:
        listed = [
            f"{number} ({', '.join(aliases)})" if aliases else f"{number}"
            for number, aliases in sorted(served.items())
        ]
        super().__init__(
            f"version {version:.80} of task {task!r} is not served; these are: "
            f"{', '.join(listed) or 'none'}.",
            hint=f"Give it an alias of its own, then it stays loaded: PUT /tasks/{task}/aliases/…",
        )


class BundleNotReady(PeterRecError):
    """Registered, but this replica has not loaded it (yet)."""

    code = "bundle_not_ready"
    category = Category.UNAVAILABLE

    def __init__(self, what: str) -> None:
        super().__init__(
            f"this server has not loaded the bundle {what}.",
            hint="Try again shortly; if it persists the server's log says why it was refused.",
        )


class BundleGone(PeterRecError):
    """A waiting row's bundle is no longer resident after the device process restarted."""

    code = "bundle_gone"
    category = Category.UNAVAILABLE


class HeadUnreadable(PeterRecError):
    """A ranking head that had left the device can't be read from its local file."""

    code = "head_unreadable"
    category = Category.UNAVAILABLE


class DeviceUnavailable(PeterRecError):
    code = "device_unavailable"
    category = Category.UNAVAILABLE


class QueueFull(PeterRecError):
    code = "queue_full"
    category = Category.OVERLOADED


class DeadlineExceeded(PeterRecError):
    code = "deadline_exceeded"
    category = Category.DEADLINE


class RowFailed(PeterRecError):
    """The forward failed for this row: a bug or a failing device."""

    code = "row_failed"
    category = Category.INTERNAL


class PushRefused(PeterRecError):
    """A pushed bundle that this server must not serve, with every reason found."""

    code = "bundle_rejected"
    category = Category.INCOMPATIBLE

    def __init__(self, reasons: Sequence[ErrorBody]) -> None:
        listed = "; ".join(f"[{reason.code}] {reason.message}" for reason in reasons)
        hints = dict.fromkeys(reason.hint for reason in reasons if reason.hint)
        super().__init__(f"the bundle is refused: {listed}", hint=" ".join(hints))
        self.reasons = list(reasons)


class PushTooLarge(PushRefused):
    code = "bundle_too_large"
    category = Category.TOO_LARGE


class PushUnsafe(PushRefused):
    code = "bundle_unsafe"
    category = Category.UNSAFE_FORMAT


class PushNoRoom(PushRefused):
    code = "head_budget_exceeded"
    category = Category.NO_ROOM


class PushFailed(PushRefused):
    """The server could not even judge the bundle."""

    code = "bundle_not_judged"
    category = Category.INTERNAL


_PUSH_ERRORS: Mapping[str, type[PushRefused]] = {
    error.category: error
    for error in (PushRefused, PushTooLarge, PushUnsafe, PushNoRoom, PushFailed)
}


def push_error(category: str, reasons: Sequence[ErrorBody]) -> PushRefused:
    """The refusal of a push for these reasons, by the category the device process found."""
    return _PUSH_ERRORS.get(category, PushRefused)(reasons)


class InternalError(PeterRecError):
    code = "internal"

    def __init__(self) -> None:
        super().__init__(
            "the server failed on this request.", hint="The log has it under the request id."
        )


_ROW_ERRORS: Mapping[str, tuple[type[PeterRecError], str]] = {
    "device_unavailable": (
        DeviceUnavailable,
        "the device process is not there; it is being started again.",
    ),
    "bundle_gone": (BundleGone, "the bundle was removed while the request waited."),
    "head_unreadable": (HeadUnreadable, "the task's catalog can't be read back; see the log."),
    "deadline_exceeded": (DeadlineExceeded, "the request's time ran out while it waited."),
    "queue_full": (QueueFull, "too many rows wait for the device."),
}


def row_error(code: str, detail: str = "") -> PeterRecError:
    """The error behind the code of a row that the device link or process did not answer."""
    error, message = _ROW_ERRORS.get(code, (RowFailed, f"{code}."))
    return error(detail or message, hint="Try again." if error.category in RETRYABLE else "")


class Problem(msgspec.Struct, frozen=True):
    """Body of every refusal: RFC 9457 with our stable ``code``, plus the ``error`` string of OIP.

    ``errors``: by task, if a call for several tasks could answer none.
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
    """No task of a call for several could be answered; it takes the first error's status."""

    def __init__(self, errors: Mapping[str, PeterRecError]) -> None:
        self.first = next(iter(errors.values()))
        self.errors = errors
        super().__init__(self.first.message, hint=self.first.hint)


def category_of(error: PeterRecError) -> Category:
    """The category that decides the status of an error."""
    return error.first.category if isinstance(error, NothingAnswered) else error.category


def error_body(error: PeterRecError) -> ErrorBody:
    """The error as it stands in one slot."""
    return ErrorBody(error.code, error.message, error.hint)


def problem_of(error: PeterRecError, request_id: str) -> Problem:
    """The error as the body of a whole response."""
    errors: dict[str, ErrorBody] | msgspec.UnsetType = msgspec.UNSET
    reasons: list[ErrorBody] | msgspec.UnsetType = msgspec.UNSET
    if isinstance(error, NothingAnswered):
        errors = {task: error_body(each) for task, each in error.errors.items()}
        error = error.first
    if isinstance(error, PushRefused):
        reasons = error.reasons
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
    """A problem of HTTP itself (method not allowed), outside our hierarchy."""
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
    """``Retry-After`` where a repetition helps."""
    return [(b"retry-after", b"%d" % RETRY_AFTER_S)] if status in (429, 503) else []


def _title(code: str) -> str:
    return code.replace("_", " ").capitalize()


class OutputExists(PeterRecError):
    """A result that would be overwritten without being asked to."""

    code = "output_exists"
    category = Category.CONFLICT


class TaskUnpackable(PeterRecError):
    """A task whose names or metrics the bundle format does not take."""

    code = "task_unpackable"
    category = Category.INCOMPATIBLE


class DownloadFailed(PeterRecError):
    code = "download_failed"
    category = Category.UNAVAILABLE


class DemoFailed(PeterRecError):
    """A step of ``peterrec demo`` failed."""

    code = "demo_failed"
    category = Category.INTERNAL


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


class ServerUnreachable(PeterRecError):
    """No server answered a command."""

    code = "server_unreachable"
    category = Category.UNAVAILABLE


class TaskFileInvalid(PeterRecError):
    """A file of tasks that cannot be read as one."""

    code = "task_file_invalid"
    category = Category.MALFORMED
