"""Calls to a running server, with its errors as a command or the library reports them."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from peterrec.model.disk import refusal
from peterrec.model.progress import OnProgress, Progress, no_progress
from peterrec.patches.errors import OutputsDiffer
from peterrec.service.errors import ServerRefused, ServerUnreachable

if TYPE_CHECKING:
    import peterrec_client

DEFAULT_URL = "http://127.0.0.1:8000"

TIMEOUT_S = 180.0
"""Limit of one call. A change waits until the whole replica serves it."""

Document = Any  # Any: JSON documents, whose shape the server's OpenAPI document defines


def ignore_sent(sent: int) -> None:
    """Ignore how many bytes of a file were sent."""


@dataclass(frozen=True, slots=True)
class Server:
    """Calls to a running server, answered with the server's JSON documents.

    Errors of its methods are ``ServerRefused`` and ``ServerUnreachable``.
    """

    client: "peterrec_client.Client"
    url: str

    def get(self, path: str) -> Document:
        """The answer to a GET."""
        return json.loads(self.content(path))

    def content(self, path: str) -> bytes:
        """The bytes of an answer."""
        with _translated_errors(self.url):
            return self.client.request("GET", path)

    def lines(self, path: str, params: Mapping[str, str]) -> list[str]:
        """The lines of a text answer."""
        with _translated_errors(self.url):
            return self.client.request("GET", path, params=params).decode().splitlines()

    def change(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        if_match: int | None = None,
        params: Mapping[str, str] = {},
        on_sent: Callable[[int], None] = ignore_sent,
    ) -> Document:
        """Make a change and return its answer.

        With ``if_match``, the change is refused unless the task still has this revision. ``body``
        is a document, or the path of a file to send, of which ``on_sent`` gets the bytes sent.
        """
        with _translated_errors(self.url):
            answer = self.client.request(
                method, path, body=body, params=params, if_revision=if_match, on_sent=on_sent
            )
        return json.loads(answer)

    def follow(self, since: int | None) -> Iterator[Document]:
        """The registry's changes as they happen, until the server ends the stream."""
        return self.client.events(since)


@contextmanager
def server(url: str, api_key: str | None, timeout_s: float = TIMEOUT_S) -> Iterator[Server]:
    """A connection to the server; its errors are raised as ``ServerRefused`` or
    ``ServerUnreachable``.

    Calls are not retried: the person at the terminal sees the error and can repeat the command.
    """
    import peterrec_client

    if not url.startswith(("http://", "https://")):
        raise ServerUnreachable(
            f"{url!r} is no address of a server.",
            hint="Write it with its beginning: `url` http://127.0.0.1:8000.",
        )
    retry = peterrec_client.RetryPolicy(attempts=1)
    client = peterrec_client.Client(url, api_key, timeout_s=timeout_s, retry=retry)
    with _translated_errors(url), client:
        yield Server(client, url)


@contextmanager
def _translated_errors(url: str) -> Iterator[None]:
    import peterrec_client

    try:
        yield
    except peterrec_client.PeterRecError as error:
        raise _translated(error, url) from error


def _translated(
    error: "peterrec_client.PeterRecError", url: str
) -> "ServerRefused | ServerUnreachable":
    """A client's error as the command reports it: every reason on its own line."""
    if error.status is None:
        cause = error.__cause__ or error.message
        return ServerUnreachable(
            f"no server answers at {url}: {cause}.",
            hint="Start one with `peterrec serve`, or give `url`.",
        )
    if error.code == f"http_{error.status}":  # the client's code for an answer without a problem
        return ServerRefused(
            "unexpected_answer", error.message, "Is this a PeterRec server?", error.status
        )
    reasons = "".join(f"\n  - {reason.code}: {reason.message}" for reason in error.reasons)
    is_bundle_refused = bool(reasons) and error.code != OutputsDiffer.code
    message = f"the bundle is refused:{reasons}" if is_bundle_refused else error.message
    return ServerRefused(error.code, message, error.hint, error.status)


def task_path(task: str, rest: str = "") -> str:
    """The path of a task, or of something that belongs to it."""
    return f"/tasks/{quote(task, safe='')}{rest}"


def outputs_parameter(*, allow_new_outputs: bool) -> dict[str, str]:
    """The parameter that lets a change give the answers other outputs; none by default."""
    return {"allow_new_outputs": "true"} if allow_new_outputs else {}


def push(
    to: Server,
    file: Path,
    task: str,
    params: Mapping[str, str],
    if_match: int | None,
    on_progress: OnProgress = no_progress,
) -> Document:
    """Register a bundle file; the refusal lists every reason."""

    def tell(sent: int) -> None:
        on_progress(Progress("uploading", sent, size, unit="bytes"))
        if sent == size:
            on_progress(Progress("waiting until the server has verified and loaded the bundle"))

    try:
        size = file.stat().st_size
        path = task_path(task, "/versions")
        return to.change("POST", path, file, if_match=if_match, params=params, on_sent=tell)
    except OSError as error:
        raise refusal(error, file, doing="read") from error
