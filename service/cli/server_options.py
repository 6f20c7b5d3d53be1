"""What all commands that call a running server share: their options and the form of the output."""

import json
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import Interrupted, OutputClosed, ServerRefused, ServerUnreachable
from peterrec.service.jobs.server_calls import DEFAULT_URL, server
from peterrec.service.system.texts import printable

COMPLETION_TIMEOUT_S = 2.0
"""Limit of the call behind a shell completion: nobody waits longer after pressing tab."""

PIPED_WIDTH = 200
"""Columns of a table that is written to a file or a pipe, which have no width themselves."""

SHORT_DIGEST = len("sha256:") + 12
"""Characters of a shortened digest: enough to distinguish the versions of a task."""


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
