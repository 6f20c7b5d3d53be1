"""Command line options made from the fields of settings classes.

A command takes a settings object as one parameter; ``takes_settings`` shows typer one option for
each of its fields. What an option is called, its type, default, bounds and help text are written in
the settings class only (``model/training/options.py``), or, for a dataclass that belongs to the
command line, as ``typer.Option`` in the field's annotation.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import TypeAdapter, ValidationError
from typer.models import OptionInfo

from peterrec.model.training.options import REQUIRED, Option, Panel, options_of

Type = Any  # Any: a type, a Literal or a union

LONGEST_DEFAULT = 40
"""Characters of a default that is shown as it is; a longer list gets spaces so that it can wrap."""


@dataclass(frozen=True, slots=True)
class FieldsOf:
    """Which fields of a settings class become options, as an annotation of a command's parameter.

    ``only`` names the fields (None: all), ``without`` those left out, and ``of_panel`` restricts
    them to one panel. ``names`` gives fields other option names, and ``title`` replaces the panel
    as the heading in ``--help``. ``base`` has the defaults, and the values of the fields that are
    left out. A parameter whose type is not a dataclass gets a dict of field names and values.
    """

    settings: type
    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    of_panel: Panel | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    title: str | None = None
    base: Any = None  # Any: an instance of ``settings``

    def options(self) -> list[Option]:
        """The chosen options, with their names and defaults for this command."""
        chosen = [option for option in options_of(self.settings) if self._takes(option)]
        return [self._adapted(option) for option in chosen]

    def _takes(self, option: Option) -> bool:
        is_named = self.only is None or option.field in self.only
        is_there = option.is_public and option.field not in self.without
        return is_there and is_named and self.of_panel in (None, option.panel)

    def _adapted(self, option: Option) -> Option:
        name = self.names.get(option.field, option.name)
        default = option.default if self.base is None else getattr(self.base, option.field)
        return replace(option, name=name, default=default)


@dataclass(frozen=True, slots=True)
class _Expansion:
    """The options that stand for one parameter, and how their values become its value."""

    parameters: list[inspect.Parameter]
    build: Callable[[dict[str, Any]], Any]  # Any: values that typer parsed; a settings object


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Show typer one option for each field of the settings that a command takes."""
    hints = get_type_hints(command, include_extras=True)
    expansions: dict[str, _Expansion] = {}
    shown: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        expansion = _expansion(hints[name])
        if expansion is None:
            keyword = inspect.Parameter.KEYWORD_ONLY
            shown.append(parameter.replace(annotation=hints[name], kind=keyword))
        else:
            expansions[name] = expansion
            shown += expansion.parameters

    @wraps(command)
    def with_options(**given: Any) -> None:  # Any: values that typer parsed
        built = {name: expansion.build(given) for name, expansion in expansions.items()}
        taken = {each.name for expansion in expansions.values() for each in expansion.parameters}
        command(**{name: value for name, value in given.items() if name not in taken}, **built)

    with_options.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # read by inspect
    with_options.__annotations__ = {each.name: each.annotation for each in shown}
    return with_options


def field_option(settings: type, name: str) -> OptionInfo:
    """The option of one field, for a command that parses its value itself."""
    (option,) = (each for each in options_of(settings) if each.field == name)
    return _info(option, option.panel)


def comma_separated(text: str, kind: Type, name: str) -> Any:  # Any: a tuple of that type
    """Read a list such as ``1,4,1,4``; BadParameter names the option and the wrong part."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return TypeAdapter(kind).validate_python(parts)
    except ValidationError as error:
        wrong = error.errors()[0]["input"]
        reasons = dict.fromkeys(e["msg"] for e in error.errors() if e["input"] == wrong)
        raise typer.BadParameter(
            f"--{name.replace('_', '-')} {text!r}: {wrong!r} is wrong. {'; or '.join(reasons)}."
        ) from error


def comma_text(values: Iterable[object]) -> str:
    """Write a list as ``comma_separated`` reads it."""
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _expansion(annotation: Type) -> _Expansion | None:
    """The options behind a parameter's annotation; None if it is an ordinary parameter."""
    origin: object = get_origin(annotation)
    base, *marks = get_args(annotation) if origin is Annotated else (annotation,)
    chosen = next((mark for mark in marks if isinstance(mark, FieldsOf)), None)
    if chosen is None and not is_dataclass(base):
        return None
    if chosen is None and _is_written_for_typer(base):
        return _typer_expansion(base)
    return _settings_expansion(chosen or FieldsOf(base), makes_object=is_dataclass(base))


def _is_written_for_typer(settings: type) -> bool:
    hints = get_type_hints(settings, include_extras=True)
    return any(isinstance(mark, OptionInfo) for hint in hints.values() for mark in get_args(hint))


def _typer_expansion(settings: Any) -> _Expansion:  # Any: a dataclass
    hints = get_type_hints(settings, include_extras=True)
    ordered = sorted(fields(settings), key=lambda f: f.default is not REQUIRED)
    parameters = [_parameter(f.name, hints[f.name], f.default) for f in ordered]

    def build(given: dict[str, Any]) -> Any:  # Any: as in _Expansion
        return settings(**{each.name: given[each.name] for each in parameters})

    return _Expansion(parameters, build)


def _settings_expansion(chosen: FieldsOf, *, makes_object: bool) -> _Expansion:
    options = chosen.options()
    parameters = [
        _parameter(
            option.name,
            Annotated[_typer_type(option), _info(option, chosen.title or option.panel)],
            _shown(option),
        )
        for option in options
    ]

    def build(given: dict[str, Any]) -> Any:  # Any: as in _Expansion
        values = {option.field: _value(option, given[option.name]) for option in options}
        if not makes_object:
            return values
        return chosen.settings(**values) if chosen.base is None else replace(chosen.base, **values)

    return _Expansion(parameters, build)


def _parameter(name: str, annotation: Type, default: object) -> inspect.Parameter:
    is_required = default is REQUIRED
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if is_required else default,
        annotation=annotation,
    )


def _info(option: Option, title: str) -> OptionInfo:
    number = int if option.type is int else float
    default = _shown(option)
    is_long = isinstance(default, str) and len(default) > LONGEST_DEFAULT
    found: OptionInfo = typer.Option(
        help=option.help,
        rich_help_panel=title,
        show_default=str(default).replace(",", ", ") if is_long else True,
        min=None if option.minimum is None else number(option.minimum),
        max=None if option.maximum is None else number(option.maximum),
    )
    return found


def _typer_type(option: Option) -> Type:
    """The type that typer parses: lists are texts, and a union of Literals is one Literal."""
    if _is_list(option.type):
        return str
    if get_origin(option.type) not in (Union, UnionType):
        return option.type
    members = get_args(option.type)
    if all(get_origin(member) is Literal for member in members):
        return Literal[tuple(value for member in members for value in get_args(member))]
    assert set(members[1:]) == {NoneType}, f"typer has no option of the type {option.type}"
    return option.type


def _is_list(kind: Type) -> bool:
    origin: object = get_origin(kind)
    return origin is tuple


def _shown(option: Option) -> object:
    """The default as typer takes and shows it."""
    if _is_list(option.type) and option.default is not REQUIRED:
        return comma_text(option.default)
    return option.default


def _value(option: Option, given: Any) -> Any:  # Any: what typer parsed, and the field's value
    return comma_separated(given, option.type, option.name) if _is_list(option.type) else given
