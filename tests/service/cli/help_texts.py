"""``--help`` of every command, as plain text of a fixed width.

``python -m tests.service.cli.help_texts`` writes the files in ``help/`` again. Read the difference
before you commit it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from peterrec.service.cli.main import build_app

FOLDER = Path(__file__).parent / "help"
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def help_texts() -> dict[str, str]:
    """Return the text of ``--help`` for each command, such as ``peterrec alias set``."""
    app = build_app()
    command = typer.main.get_command(app)
    return {" ".join(("peterrec", *path)): _help(app, path) for path in _paths(command, ())}


def file_of(command: str) -> Path:
    """Return the path of the file with a command's text."""
    return FOLDER / f"{command.replace(' ', '-')}.txt"


def _paths(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:  # Any: typer's own
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _paths(inner, (*path, name))


def _help(app: typer.Typer, path: tuple[str, ...]) -> str:
    done = CliRunner().invoke(app, [*path, "--help"], env=PLAIN, prog_name="peterrec")
    assert done.exit_code == 0, done.output
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n") + "\n"


def write_files() -> None:
    """Write every command's text, and delete the files of commands that no longer exist."""
    FOLDER.mkdir(exist_ok=True)
    for stale in FOLDER.glob("*.txt"):
        stale.unlink()
    for command, text in help_texts().items():
        file_of(command).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_files()
