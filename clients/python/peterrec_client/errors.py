"""All errors of this client, as one hierarchy. Refusals come as ``application/problem+json``."""

from collections.abc import Mapping

import msgspec

from peterrec_client.codes import STATUS_BY_CODE
from peterrec_client.kinds.prediction import Reason

SHOWN_CHARACTERS = 200
"""Characters of an answer without a problem document that the message shows."""


class Problem(msgspec.Struct, frozen=True):
    """The fields of a refusal that the client reads."""

    code: str
    detail: str
    hint: str = ""
    request_id: str = ""
    retryable: bool = False
    reasons: tuple[Reason, ...] = ()
    errors: Mapping[str, Reason] = {}


class PeterRecError(Exception):
    """Root of every error of this client.

    ``code`` is stable and meant for programs. ``status`` is the HTTP status, or None if no answer
    came. ``hint`` says what to do, ``request_id`` finds the request in the server's log, and
    ``retryable`` says whether the same call may succeed later. ``reasons`` lists everything against
    a refused bundle, or how a version's outputs differ. If a call for several tasks or users could
    answer none of them, ``errors`` has one reason per task, or per user by its number from 0.
    """

    def __init__(self, problem: Problem, status: int | None = None) -> None:
        super().__init__(problem, status)  # the arguments, so that it can be pickled
        self.code = problem.code
        self.message = problem.detail
        self.hint = problem.hint
        self.request_id = problem.request_id
        self.retryable = problem.retryable
        self.reasons = problem.reasons
        self.errors = problem.errors
        self.status = status

    def __str__(self) -> str:
        text = f"{self.code}: {self.message}"
        text = f"{text} {self.hint}" if self.hint else text
        return f"{text} (request {self.request_id})" if self.request_id else text


class InvalidRequest(PeterRecError):
    """400: the request is malformed; the message names the place."""


class Unauthenticated(PeterRecError):
    """401: no valid API key."""


class Forbidden(PeterRecError):
    """403: the key may not do this."""


class NotFound(PeterRecError):
    """404, 410: the task, version or route does not exist, or exists no longer."""


class Conflict(PeterRecError):
    """409: the task's state does not allow it, such as a task without a prod version."""


class OutputsDiffer(Conflict):
    """409: the version's answers have another kind, labels, catalog or unit; see ``reasons``."""


class StaleRevision(PeterRecError):
    """412: the task changed since ``if_revision``; read it again."""


class TooLarge(PeterRecError):
    """413, 431: a body, head, history, call or bundle that exceeds the server's limits."""


class UnsafeFormat(PeterRecError):
    """415: a bundle in a format that could run code when it is read, or an unknown coding."""


class Incompatible(PeterRecError):
    """422: a bundle that this server must not serve; ``reasons`` lists every reason."""


class Overloaded(PeterRecError):
    """429: refused immediately because too many requests are waiting; nothing was done."""


class OverQuota(Overloaded):
    """429: the tenant asks for more than its quota; nothing was done. See ``Client.usage``."""


class ServerFailed(PeterRecError):
    """500 and other statuses from 500: the server's log has details under ``request_id``."""


class Unavailable(PeterRecError):
    """502, 503: no replica can answer at the moment."""


class DeadlineExceeded(PeterRecError):
    """408, 504, or the call's own time limit passed while it waited for an answer."""


class NoRoom(PeterRecError):
    """507: no room for what is pushed or created, on the device or in the registry."""


class QuotaExceeded(NoRoom):
    """507: the tenant, or one of its bundles, would have too much; see ``Client.usage``."""


class ServerUnreachable(PeterRecError):
    """No answer came: nothing listens at the address, or the connection broke."""


class StreamBroken(PeterRecError):
    """A stream of answers ended early: the first ``answered`` instances have their answers.

    ``code`` and ``status`` are those of the reason, which is the error's cause.
    """

    def __init__(self, problem: Problem, status: int | None = None, answered: int = 0) -> None:
        super().__init__(problem, status)
        self.args = (problem, status, answered)  # so that it can be pickled
        self.answered = answered


class UnexpectedAnswer(PeterRecError):
    """The answer is not one of a PeterRec server, or only a newer client understands it."""


BY_STATUS: Mapping[int, type[PeterRecError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    410: NotFound,
    408: DeadlineExceeded,
    409: Conflict,
    412: StaleRevision,
    413: TooLarge,
    415: UnsafeFormat,
    422: Incompatible,
    429: Overloaded,
    431: TooLarge,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
    507: NoRoom,
}
"""The error of each status. Other statuses from 500 are ServerFailed, the rest UnexpectedAnswer."""

BY_CODE: Mapping[str, type[PeterRecError]] = {
    "outputs_differ": OutputsDiffer,
    "quota_exceeded": QuotaExceeded,
    "bundle_quota_exceeded": QuotaExceeded,
    "rate_exceeded": OverQuota,
    "at_once_exceeded": OverQuota,
}
"""Errors of their own among those of one status."""

_decode_problem = msgspec.json.Decoder(Problem).decode


def refusal(status: int, body: bytes, *, is_retryable: bool) -> PeterRecError:
    """The error that an HTTP answer stands for, from the server or from a proxy in front of it."""
    fallback = ServerFailed if status >= 500 else UnexpectedAnswer
    error = BY_STATUS.get(status, fallback)
    try:
        problem = _decode_problem(body)
        return BY_CODE.get(problem.code, error)(problem, status)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        shown = body[:SHOWN_CHARACTERS].decode(errors="replace")
        return error(
            Problem(
                code=f"http_{status}",
                detail=f"HTTP {status} without a problem document: {shown!r}.",
                hint="A proxy between client and server answered, or it is not a PeterRec server.",
                retryable=is_retryable,
            ),
            status,
        )


def refused(reason: Reason, request_id: str = "") -> PeterRecError:
    """The error of one user or task of a call, as a call for it alone would have raised it."""
    status = STATUS_BY_CODE.get(reason.code, 500)
    error = BY_CODE.get(reason.code) or BY_STATUS.get(status, ServerFailed)
    problem = Problem(
        reason.code, reason.message, reason.hint, request_id, retryable=reason.retryable
    )
    return error(problem, status)


def broken_off(reason: PeterRecError, answered: int) -> StreamBroken:
    """The error of a stream of which so many instances were answered."""
    problem = Problem(
        reason.code,
        f"the stream broke after {answered:,} answers: {reason.message}",
        reason.hint,
        reason.request_id,
        retryable=reason.retryable,
    )
    broken = StreamBroken(problem, reason.status, answered)
    broken.__cause__ = reason
    return broken


def connection_broke(url: str, cause: Exception) -> ServerUnreachable:
    """The error of a connection that broke while answers came."""
    return ServerUnreachable(
        Problem(
            code="server_unreachable",
            detail=f"the connection to {url} broke: {cause or type(cause).__name__}.",
            hint="Go on with the instances after these.",
            retryable=True,
        )
    )


def unreachable(url: str, cause: Exception) -> ServerUnreachable:
    """The error of a connection that could not be made, or that broke."""
    return ServerUnreachable(
        Problem(
            code="server_unreachable",
            detail=f"no answer from {url}: {cause or type(cause).__name__}.",
            hint="Is the server running, and is the URL right?",
            retryable=True,
        )
    )


def out_of_time(timeout_s: float) -> DeadlineExceeded:
    """The error of a call whose own time limit passed."""
    return DeadlineExceeded(
        Problem(
            code="client_timeout",
            detail=f"no answer within the {timeout_s:g} s of this call.",
            hint="Try again, or give a larger timeout_s.",
            retryable=True,
        )
    )


def not_understood(what: str, cause: Exception, status: int) -> UnexpectedAnswer:
    """The error of an answer that this client can't read."""
    return UnexpectedAnswer(
        Problem(
            code="unexpected_answer",
            detail=f"the answer to {what} is not understood: {cause}.",
            hint="Is it a PeterRec server, and peterrec-client as new as it?",
        ),
        status,
    )
