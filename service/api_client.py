"""The command line's side of REST: refusals become our errors, with every reason."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from model.errors import Category, PeterRecError

TIMEOUT_S = 180.0

Document = Any  # Any: JSON documents, whose shape the server's OpenAPI document tells


class ServerRefused(PeterRecError):
    """The server's own problem, told as it was."""

    category = Category.CONFLICT

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.refused_code = code

    @property
    def code(self) -> str:  # type: ignore[override]  # the server's code, not one of this process
        """The server's code."""
        return self.refused_code


class ServerUnreachable(PeterRecError):
    code = "server_unreachable"
    category = Category.UNAVAILABLE


class ApiClient:
    """A few synchronous calls to a running server."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url
        self._client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S)

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

    def post(self, path: str, body: Document) -> Document:
        """The answer to a POST with a JSON body."""
        return self._call("POST", path, json=body)

    def delete(self, path: str) -> Document:
        """The answer to a DELETE."""
        return self._call("DELETE", path)

    def push(self, file: Path, task: str, *, alias: str, validate_only: bool) -> Document:
        """Register a bundle file; the refusal lists every reason."""
        parameters = {"alias": alias, "validate_only": str(validate_only).lower()}
        try:
            opened = file.open("rb")
        except OSError as error:
            raise ServerRefused("file_unreadable", f"{file}: {error.strerror}.", "") from error
        with opened as content:
            return self._call(
                "POST",
                f"/tasks/{quote(task, safe='')}/versions",
                params=parameters,
                content=content,
            )

    def _call(self, method: str, path: str, **options: Any) -> Document:  # Any: httpx's options
        try:
            response = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise ServerUnreachable(
                f"no server answers at {self._url}: {error}.",
                hint="Start one with `peterrec serve`, or give --url.",
            ) from error
        if response.is_success:
            return response.json()
        raise _refusal(response)


def _refusal(response: httpx.Response) -> ServerRefused:
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        text = f"HTTP {response.status_code}: {response.text[:200]}"
        return ServerRefused("unexpected_answer", text, "Is this a PeterRec server?")
    problem = response.json()
    reasons = [
        f"\n  - {reason['code']}: {reason['message']}" for reason in problem.get("reasons", ())
    ]
    message = "the bundle is refused:" + "".join(reasons) if reasons else problem["detail"]
    return ServerRefused(problem["code"], message, problem["hint"])
