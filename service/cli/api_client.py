"""The command line's side of REST: refusals become our errors, with every reason."""

import json
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from peterrec.model.errors import Category, PeterRecError

TIMEOUT_S = 180.0

Document = Any  # Any: JSON documents, whose shape the server's OpenAPI document tells


class ExitStatus(IntEnum):
    """How a command ends; 2 is a mistake on the command line itself."""

    REFUSED = 1
    NOT_FOUND = 3
    STALE = 4
    UNAVAILABLE = 5


_STATUSES: Mapping[int, ExitStatus] = {
    404: ExitStatus.NOT_FOUND,
    410: ExitStatus.NOT_FOUND,
    412: ExitStatus.STALE,
    429: ExitStatus.UNAVAILABLE,
    502: ExitStatus.UNAVAILABLE,
    503: ExitStatus.UNAVAILABLE,
    504: ExitStatus.UNAVAILABLE,
}


class ServerRefused(PeterRecError):
    """The server's own problem, told as it was; ``status`` is that of HTTP, 0 without an answer."""

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
    code = "server_unreachable"
    category = Category.UNAVAILABLE


def exit_status(error: PeterRecError) -> ExitStatus:
    """The status that a command ends with for this error."""
    if isinstance(error, ServerUnreachable):
        return ExitStatus.UNAVAILABLE
    if isinstance(error, ServerRefused):
        return _STATUSES.get(error.status, ExitStatus.REFUSED)
    return ExitStatus.REFUSED


def task_path(task: str, rest: str = "") -> str:
    """The path of a task, or of what belongs to it."""
    return f"/tasks/{quote(task, safe='')}{rest}"


class ApiClient:
    """A few synchronous calls to a running server."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float = TIMEOUT_S) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def get(self, path: str) -> Document:
        """The answer to a GET."""
        return self._call("GET", path)

    def post(self, path: str, body: Document, **parameters: str) -> Document:
        """The answer to a POST with a JSON body."""
        return self._call("POST", path, json=body, params=parameters)

    def delete(self, path: str) -> Document:
        """The answer to a DELETE."""
        return self._call("DELETE", path)

    def change(
        self, method: str, path: str, body: Document = None, if_match: int | None = None
    ) -> Document:
        """The answer to a change, made only if the task is still at revision ``if_match``."""
        return self._call(method, path, json=body, headers=_if_match(if_match))

    def lines(self, path: str, **parameters: str) -> tuple[list[str], httpx.Headers]:
        """The lines of a text, and the headers that came with it."""
        response = self._exchange("GET", path, params=parameters)
        return response.text.splitlines(), response.headers

    def follow(self, path: str, **parameters: str) -> Iterator[Document]:
        """The data of server-sent events, until the server ends them."""
        options: Any = {"params": parameters, "timeout": httpx.Timeout(TIMEOUT_S)}  # Any: httpx's
        try:
            with self._client.stream("GET", path, **options) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def push(
        self,
        file: Path,
        task: str,
        *,
        alias: str,
        validate_only: bool,
        if_match: int | None = None,
    ) -> Document:
        """Register a bundle file; the refusal lists every reason."""
        parameters = {"alias": alias, "validate_only": str(validate_only).lower()}
        try:
            opened = file.open("rb")
        except OSError as error:
            raise ServerRefused("file_unreadable", f"{file}: {error.strerror}.", "") from error
        with opened as content:
            return self._call(
                "POST",
                task_path(task, "/versions"),
                params=parameters,
                headers=_if_match(if_match),
                content=content,
            )

    def _call(self, method: str, path: str, **options: Any) -> Document:  # Any: httpx's options
        return self._exchange(method, path, **options).json()

    def _exchange(self, method: str, path: str, **options: Any) -> httpx.Response:  # Any: as above
        try:
            response = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_success:
            return response
        raise _refusal(response)

    def _unreachable(self, error: httpx.TransportError) -> ServerUnreachable:
        return ServerUnreachable(
            f"no server answers at {self._url}: {error}.",
            hint="Start one with `peterrec serve`, or give --url.",
        )


def _if_match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"If-Match": f'"{revision}"'}


def _refusal(response: httpx.Response) -> ServerRefused:
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        text = f"HTTP {response.status_code}: {response.text[:200]}"
        hint = "Is this a PeterRec server?"
        return ServerRefused("unexpected_answer", text, hint, response.status_code)
    problem = response.json()
    reasons = [
        f"\n  - {reason['code']}: {reason['message']}" for reason in problem.get("reasons", ())
    ]
    message = "the bundle is refused:" + "".join(reasons) if reasons else problem["detail"]
    return ServerRefused(problem["code"], message, problem["hint"], response.status_code)
