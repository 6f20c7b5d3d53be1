"""What all commands that call a running server share: their options, the connection, the output."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table

from peterrec.model.disk import refusal
from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import OutputsDiffer
from peterrec.service.cli.bundle_text import printable
from peterrec.service.errors import Interrupted, OutputClosed, ServerRefused, ServerUnreachable

if TYPE_CHECKING:
    import peterrec_client

DEFAULT_URL = "http://127.0.0.1:8000"

TIMEOUT_S = 180.0
"""Limit of one call. A change waits until the whole replica serves it."""

COMPLETION_TIMEOUT_S = 2.0
"""Limit of the call behind a shell completion: nobody waits longer after pressing tab."""

PIPED_WIDTH = 200
"""Columns of a table that is written to a file or a pipe, which have no width themselves."""

SHORT_DIGEST = len("sha256:") + 12
"""Characters of a shortened digest: enough to distinguish the versions of a task."""

Document = Any  # Any: JSON documents, whose shape the server's OpenAPI document defines


class ExitStatus(IntEnum):
    """Exit statuses of a failed command; 2 is a mistake on the command line itself.

    The last two are those of programs that a signal ends: 128 and its number.
    """

    REFUSED = 1
    NOT_FOUND = 3
    STALE = 4
    UNAVAILABLE = 5
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141


_STATUSES: Mapping[int, ExitStatus] = {
    404: ExitStatus.NOT_FOUND,
    410: ExitStatus.NOT_FOUND,
    412: ExitStatus.STALE,
    429: ExitStatus.UNAVAILABLE,
    502: ExitStatus.UNAVAILABLE,
    503: ExitStatus.UNAVAILABLE,
    504: ExitStatus.UNAVAILABLE,
}


def exit_status(error: PeterRecError) -> ExitStatus:
    """The exit status of a command that failed with this error."""
    if isinstance(error, ServerUnreachable):
        return ExitStatus.UNAVAILABLE
    if isinstance(error, Interrupted):
        return ExitStatus.INTERRUPTED
    if isinstance(error, OutputClosed):
        return ExitStatus.OUTPUT_CLOSED
    if isinstance(error, ServerRefused):
        return _STATUSES.get(error.status, ExitStatus.REFUSED)
    return ExitStatus.REFUSED


@dataclass(frozen=True, slots=True)
class Server:
    """Calls to a running server, answered with the server's JSON documents."""

    client: "peterrec_client.Client"

    def get(self, path: str) -> Document:
        """The answer to a GET."""
        return json.loads(self.client.request("GET", path))

    def lines(self, path: str, params: Mapping[str, str]) -> list[str]:
        """The lines of a text answer."""
        return self.client.request("GET", path, params=params).decode().splitlines()

    def change(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        if_match: int | None = None,
        params: Mapping[str, str] = {},
    ) -> Document:
        """Make a change and return its answer.

        With ``if_match``, the change is refused unless the task still has this revision. ``body``
        is a document, or the path of a file to send.
        """
        return json.loads(
            self.client.request(method, path, body=body, params=params, if_revision=if_match)
        )

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

    retry = peterrec_client.RetryPolicy(attempts=1)
    client = peterrec_client.Client(url, api_key, timeout_s=timeout_s, retry=retry)
    try:
        with client:
            yield Server(client)
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


def push(
    to: Server, file: Path, task: str, params: Mapping[str, str], if_match: int | None
) -> Document:
    """Register a bundle file; the refusal lists every reason."""
    try:
        return to.change(
            "POST", task_path(task, "/versions"), file, if_match=if_match, params=params
        )
    except OSError as error:
        raise refusal(error, file, doing="read") from error


def complete_task(context: typer.Context, incomplete: str) -> list[str]:
    """The server's tasks whose names begin with the typed text; none if the server is away."""
    url, key = context.params.get("url") or DEFAULT_URL, context.params.get("api_key")
    try:
        with server(url, key, COMPLETION_TIMEOUT_S) as to:
            names = [task["task"] for task in to.get("/tasks")]
    except PeterRecError:
        return []
    return [name for name in names if name.startswith(incomplete)]


Url = Annotated[str, typer.Option(envvar="PETERREC_URL", help="URL of the server.")]
ApiKey = Annotated[
    str | None, typer.Option(envvar="PETERREC_API_KEY", help="API key with the scope admin.")
]
Task = Annotated[
    str, typer.Argument(metavar="TASK", autocompletion=complete_task, help="Name of the task.")
]
AllowNewOutputs = Annotated[
    bool,
    typer.Option(
        "--allow-new-outputs",
        help="Let the answers have another kind, other labels, another catalog or another unit.",
    ),
]
IfMatch = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="REVISION",
        help="Change the task only if it still has this revision; otherwise exit with status 4.",
    ),
]


def outputs_parameter(*, allow_new_outputs: bool) -> dict[str, str]:
    """The parameter that lets a change give the answers other outputs; none by default."""
    return {"allow_new_outputs": "true"} if allow_new_outputs else {}


def print_json(document: object) -> None:
    """Print one JSON document for programs."""
    print(json.dumps(document, ensure_ascii=False, indent=1))


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table for people; markup and control characters in the cells have no effect."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(printable(text) for text in row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)
    console.print(table)


def short(digest: str | None) -> str:
    """The beginning of a digest, which is enough to distinguish versions."""
    return digest[:SHORT_DIGEST] if digest else "nothing"
