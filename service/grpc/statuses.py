"""Our errors as gRPC statuses, with the metadata that HTTP has in headers."""

from collections.abc import Mapping

from grpc import StatusCode

from peterrec.model.errors import Category, PeterRecError
from peterrec.service.errors import problem_of, retry_after_s, retry_headers
from peterrec.service.open_inference.infer import failure_text

STATUS: Mapping[Category, StatusCode] = {
    Category.MALFORMED: StatusCode.INVALID_ARGUMENT,
    Category.UNAUTHENTICATED: StatusCode.UNAUTHENTICATED,
    Category.FORBIDDEN: StatusCode.PERMISSION_DENIED,
    Category.NOT_FOUND: StatusCode.NOT_FOUND,
    Category.TOO_SLOW: StatusCode.DEADLINE_EXCEEDED,
    Category.CONFLICT: StatusCode.FAILED_PRECONDITION,
    Category.GONE: StatusCode.OUT_OF_RANGE,
    Category.STALE: StatusCode.ABORTED,
    Category.TOO_LARGE: StatusCode.INVALID_ARGUMENT,
    Category.UNSAFE_FORMAT: StatusCode.INVALID_ARGUMENT,
    Category.UNSUPPORTED: StatusCode.UNIMPLEMENTED,
    Category.INCOMPATIBLE: StatusCode.FAILED_PRECONDITION,
    Category.OVERLOADED: StatusCode.RESOURCE_EXHAUSTED,
    Category.OVER_QUOTA: StatusCode.RESOURCE_EXHAUSTED,
    Category.HEAD_TOO_LARGE: StatusCode.RESOURCE_EXHAUSTED,
    Category.INTERNAL: StatusCode.INTERNAL,
    Category.UNAVAILABLE: StatusCode.UNAVAILABLE,
    Category.DEADLINE: StatusCode.DEADLINE_EXCEEDED,
    Category.NO_ROOM: StatusCode.RESOURCE_EXHAUSTED,
}
"""Clients repeat calls after UNAVAILABLE by themselves, so nothing else maps to it."""

MAX_DETAILS = 2000
"""Characters of a status' text: it travels in a header."""

Metadata = tuple[tuple[str, str], ...]


def status_of(error: PeterRecError) -> StatusCode:
    """Return the status of an error; several errors have that of the gravest."""
    return STATUS[getattr(error, "first", error).category]


def details_of(error: PeterRecError) -> str:
    """Return code, message and hint of an error in one text."""
    return failure_text(error)[:MAX_DETAILS]


def metadata_of(error: PeterRecError, request_id: str) -> Metadata:
    """Return the trailing metadata of a refusal: the code, and when to try again."""
    problem = problem_of(error, request_id)
    found = retry_headers(problem.status, retry_after_s(error))
    retry = ((name.decode(), value.decode()) for name, value in found)
    return (("x-error-code", problem.code), ("x-request-id", request_id), *retry)
