"""Options of all commands that talk to a running server, and how they print."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from peterrec.model.errors import PeterRecError
from peterrec.service.cli.bundle_text import printable

if TYPE_CHECKING:
    from peterrec.service.cli.api_client import ApiClient

COMPLETION_TIMEOUT_S = 2.0

PIPED_WIDTH = 200
"""Columns of a table that goes to another program, which has no width of its own."""

SHORT_DIGEST = len("sha256:") + 12


def complete_task(context: typer.Context, incomplete: str) -> list[str]:
    """The server's tasks that begin so; none if it can't be asked."""
    from peterrec.service.cli.api_client import ApiClient

    url, key = context.params.get("url") or DEFAULT_URL, context.params.get("api_key")
    try:
        with ApiClient(url, key, COMPLETION_TIMEOUT_S) as client:
            names = [task["task"] for task in client.get("/tasks")]
    except PeterRecError:
        return []
    return [name for name in names if name.startswith(incomplete)]


Url = Annotated[str, typer.Option(envvar="PETERREC_URL", help="Where the server is.")]
ApiKey = Annotated[
    str | None, typer.Option(envvar="PETERREC_API_KEY", help="Key with the scope admin.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's answer as JSON.")]
Task = Annotated[
    str, typer.Argument(metavar="TASK", autocompletion=complete_task, help="Name of the task.")
]
IfMatch = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="REVISION", help="Only if the task is still at this revision; else exit 4."
    ),
]
DEFAULT_URL = "http://127.0.0.1:8000"


@contextmanager
def server(url: str, api_key: str | None) -> Iterator["ApiClient"]:
    """A connection to the server."""
    from peterrec.service.cli.api_client import ApiClient

    with ApiClient(url, api_key) as client:
        yield client


def print_json(document: object) -> None:
    """One JSON document for programs."""
    print(json.dumps(document, ensure_ascii=False, indent=1))


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table for people; what others have written is shown, never obeyed."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(printable(text) for text in row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)
    console.print(table)


def short(digest: str | None) -> str:
    """As much of a digest as tells versions apart."""
    return digest[:SHORT_DIGEST] if digest else "nothing"
