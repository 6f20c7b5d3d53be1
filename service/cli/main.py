"""The ``peterrec`` command: the table of its command groups, and how errors are printed."""

import sys
from importlib import import_module

import typer
from rich.console import Console
from typer.main import get_command

from peterrec.model.errors import PeterRecError
from peterrec.service.system.program import import_nothing_from_current_folder

COMMAND_GROUPS = (
    "training",
    "datasets",
    "many_tasks",
    "compare",
    "reference",
    "bundles",
    "signing",
    "serving",
    "rollout",
    "audit",
    "registry",
    "demo",
)
"""Modules of this folder, in the order in which ``peterrec --help`` lists their commands; each has
a function ``register(app)``."""


def build_app() -> typer.Typer:
    """The command line with all commands; each command itself imports what takes long to load."""
    app = typer.Typer(
        name="peterrec",
        help="One shared user model, a small patch per task: train, register and serve.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    for group in COMMAND_GROUPS:
        import_module(f"peterrec.service.cli.{group}").register(app)
    return app


def main() -> None:
    """Run the command line; an error of ours becomes a message on stderr and an exit status."""
    import_nothing_from_current_folder()
    app = build_app()
    try:
        app()
    except PeterRecError as error:
        from peterrec.service.cli.hints import names_of_settings
        from peterrec.service.cli.server_options import exit_status
        from peterrec.service.jobs.hints import hint_for

        hint = hint_for(error.hint, names_of_settings(get_command(app), sys.argv[1:]))

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[red]{error.code}[/red]: ", end="")
        console.print(error.message, markup=False)
        if hint:
            console.print(f"  {hint}", markup=False)
        sys.exit(exit_status(error))
