"""All errors of this client, as one hierarchy. Refusals come as ``application/problem+json``."""

from collections.abc import Mapping

import msgspec

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
    """413: a body, history, call or bundle that exceeds the server's limits."""


class UnsafeFormat(PeterRecError):
    """415: the file is not a bundle but a format that could run code when it is read."""


class Incompatible(PeterRecError):
    """422: a bundle that this server must not serve; ``reasons`` lists every reason."""


class Overloaded(PeterRecError):
    """429: refused immediately because too many requests are waiting; nothing was done."""


class ServerFailed(PeterRecError):
    """500 and other statuses from 500: the server's log has details under ``request_id``."""


class Unavailable(PeterRecError):
    """502, 503: no replica can answer at the moment."""


class DeadlineExceeded(PeterRecError):
    """504, or the call's own time limit passed while it waited for an answer."""


class NoRoom(PeterRecError):
    """507: the device has no room for the bundle's head."""


class ServerUnreachable(PeterRecError):
    """No answer came: nothing listens at the address, or the connection broke."""


class UnexpectedAnswer(PeterRecError):
    """The answer is not one of a PeterRec server, or only a newer client understands it."""


BY_STATUS: Mapping[int, type[PeterRecError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    410: NotFound,
    409: Conflict,
    412: StaleRevision,
    413: TooLarge,
    415: UnsafeFormat,
    422: Incompatible,
    429: Overloaded,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
    507: NoRoom,
}
"""The error of each status. Other statuses from 500 are ServerFailed, the rest UnexpectedAnswer."""

BY_CODE: Mapping[str, type[PeterRecError]] = {"outputs_differ": OutputsDiffer}
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
