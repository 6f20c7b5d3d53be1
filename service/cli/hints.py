"""Hints as a command's user can follow them: settings become options that the command has."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol


class Parameter(Protocol):
    """What is read of a command's parameter: its options, and those that switch it off."""

    opts: list[str]
    secondary_opts: list[str]


class Command(Protocol):
    """What is read of a command. A group of commands has ``commands`` as well."""

    name: str | None

    @property
    def params(self) -> Sequence[Parameter]:
        """The command's parameters."""


def names_of_settings(root: Command, arguments: Sequence[str]) -> dict[str, str]:
    """Each setting of the command that the arguments call, as its user writes it.

    Settings in a file of tasks keep their names; a comparison reads all of them from there.
    """
    command = command_of(root, arguments)
    options = {option[2:].replace("-", "_"): option for option in long_options(command)}
    if command.name == "finetune-many":
        from peterrec.service.jobs.task_file import TASK_SETTINGS

        return _keys(TASK_SETTINGS) | options
    if command.name == "compare" and any(text.startswith("--task-list") for text in arguments):
        from peterrec.model.study.sources import TASK_LIST_SETTINGS

        return options | _keys(TASK_LIST_SETTINGS)
    return options


def command_of(root: Command, arguments: Sequence[str]) -> Command:
    """The command that the arguments call."""
    command = root
    for argument in arguments:
        commands: Mapping[str, Command] = getattr(command, "commands", {})
        if argument not in commands:
            break
        command = commands[argument]
    return command


def long_options(command: Command) -> list[str]:
    """All options of a command, such as ``--order-column``."""
    given = [[*each.opts, *each.secondary_opts] for each in command.params]
    return [option for options in given for option in options if option.startswith("--")]


def _keys(names: Iterable[str]) -> dict[str, str]:
    return {name: f"`{name}`" for name in names}
