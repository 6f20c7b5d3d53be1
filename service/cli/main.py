"""The ``peterrec`` command: a composition root, one line per group of commands."""

import sys
from importlib import import_module

import typer
from rich.console import Console

from peterrec.model.errors import PeterRecError
from peterrec.service.system.program import import_nothing_from_current_folder

COMMAND_GROUPS = (
    "training",
    "many",
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


def build_app() -> typer.Typer:
    """All commands; heavy imports happen inside the command that needs them."""
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
    """Run the command line; our own errors become a line on stderr and an exit status."""
    import_nothing_from_current_folder()
    try:
        build_app()()
    except PeterRecError as error:
        from peterrec.service.cli.api_client import exit_status

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[red]{error.code}[/red]: ", end="")
        console.print(error.message, markup=False)
        if error.hint:
            console.print(f"  {error.hint}", markup=False)
        sys.exit(exit_status(error))


if __name__ == "__main__":
    main()
