"""The ``peterrec`` command: the table of its command groups, and how it ends."""

import sys
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from typing import Any, get_args

import typer
from typer.core import TyperGroup
from typer.main import get_command
from typer.models import CommandInfo, ParameterInfo

from peterrec.service.cli.failures import (
    failure_of,
    flush_output,
    give_up_output,
    report,
    show_every_name,
)
from peterrec.service.system.program import import_nothing_from_current_folder

COMMAND_GROUPS = (
    "training",
    "next_items",
    "datasets",
    "many_tasks",
    "report",
    "compare",
    "explain",
    "score",
    "reference",
    "bundles",
    "describing",
    "signing",
    "serving",
    "doctor",
    "top",
    "tenants",
    "rollout",
    "migrate",
    "availability",
    "audit",
    "webhooks",
    "registry",
    "demo",
)
"""Modules of this folder, in the order in which ``peterrec --help`` lists their commands; each has
a function ``register(app)``."""


class Commands(TyperGroup):
    """The group of all commands; it ends none of them without a code, as typer does by itself."""

    def invoke(self, ctx: Any) -> Any:  # Any: as typer's own method
        """Run the command; what typer would end without a word becomes an error of ours."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            raise failure_of(error) from error


def build_app() -> typer.Typer:
    """The command line with all commands; each command itself imports what takes long to load."""
    app = typer.Typer(
        name="peterrec",
        help="One shared user model, a small patch per task: train, register and serve.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        cls=Commands,
    )
    for group in COMMAND_GROUPS:
        import_module(f"peterrec.service.cli.{group}").register(app)
    for command in _commands_of(app):
        _leave_paths_to(command)
    return app


def main() -> None:
    """Run the command line; any failure becomes a message on stderr and an exit status."""
    import_nothing_from_current_folder()
    show_every_name()
    app = build_app()
    try:
        try:
            app()
        finally:
            flush_output()
    except SystemExit:
        raise
    except BaseException as error:
        sys.exit(_end(app, error))


def _end(app: typer.Typer, error: BaseException) -> int:
    """Say why the command failed, and return its exit status."""
    from peterrec.service.cli.hints import names_of_settings
    from peterrec.service.cli.server_options import ExitStatus, exit_status
    from peterrec.service.jobs.hints import hint_for

    failure = failure_of(error)
    status = exit_status(failure)
    if status is not ExitStatus.OUTPUT_CLOSED:  # `| head` is no failure that anybody asks about
        names = names_of_settings(get_command(app), sys.argv[1:])
        report(error, rephrase=lambda hint: hint_for(hint, names))
    give_up_output()
    return status


def _commands_of(app: typer.Typer) -> Iterator[CommandInfo]:
    yield from app.registered_commands
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from _commands_of(group.typer_instance)


def _leave_paths_to(command: CommandInfo) -> None:
    """Let the command itself refuse unreadable paths: typer's refusals have no code and no hint."""
    assert command.callback is not None
    for parameter in signature(command.callback).parameters.values():
        for given in get_args(parameter.annotation):
            if isinstance(given, ParameterInfo):
                given.readable = False
