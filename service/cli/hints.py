"""Hints as a command's user can follow them: settings become options that the command has."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def names_of_settings(root: Command, arguments: Sequence[str]) -> dict[str, str | None]:
    """The settings of all commands, as the user of the one that the arguments call writes them."""
    own = _own_settings(command_of(root, arguments), arguments)
    return dict.fromkeys(_all_settings(root)) | own


def _all_settings(command: Command) -> Iterator[str]:
    yield from _options(command)
    for inner in _commands_in(command).values():
        yield from _all_settings(inner)


def _own_settings(command: Command, arguments: Sequence[str]) -> dict[str, str]:
    """A command's options. Settings in a file of tasks keep their names.

    A comparison reads all of them from its file, if that is given.
    """
    options = _options(command)
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
        if argument not in _commands_in(command):
            break
        command = _commands_in(command)[argument]
    return command


def _commands_in(command: Command) -> Mapping[str, Command]:
    found: Mapping[str, Command] = getattr(command, "commands", {})
    return found


def _options(command: Command) -> dict[str, str]:
    """The options of a command by the settings that they set."""
    return {option[2:].replace("-", "_"): option for option in long_options(command)}


def long_options(command: Command) -> list[str]:
    """All options of a command, such as ``--order-column``."""
    given = [[*each.opts, *each.secondary_opts] for each in command.params]
    return [option for options in given for option in options if option.startswith("--")]


def _keys(names: Iterable[str]) -> dict[str, str]:
    return {name: f"`{name}`" for name in names}
