"""Keyword arguments that stand for the commands' options: their names, checks and signatures.

An option has one name everywhere: ``--order-column`` of a command is ``order_column=`` here. Which
options there are, with their defaults, is written in the classes that the commands take. The types
alone are repeated for type checkers, in ``option_types.py``, which this module writes:

    python -m peterrec.service.library.keywords > service/library/option_types.py
"""

import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from functools import wraps
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import typer
from pydantic import TypeAdapter, ValidationError

from peterrec.model.errors import PeterRecError
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.options import options_of
from peterrec.model.training.pretrain.settings import PretrainSettings
from peterrec.service.errors import ArgumentInvalid
from peterrec.service.jobs.hints import hint_for
from peterrec.service.jobs.options import AnswerOptions, EventOptions, TimeOptions
from peterrec.service.jobs.tracking.options import TrackOptions
from peterrec.service.predict.body_hints import DOCS

P = ParamSpec("P")
Result = TypeVar("Result")
Settings = TypeVar("Settings")

COMMANDS_CLASSES = (EventOptions, AnswerOptions, TimeOptions, TrackOptions)
"""Classes whose fields are written for typer; the fields of other classes are ``Option``s."""

PARAMETERS = frozenset({"interactions", "kind"})
"""Fields that are ordinary parameters of the library's functions."""

_OPTION = re.compile(r"--([a-z][a-z-]*[a-z])")


@dataclass(frozen=True, slots=True)
class Keyword:
    """One keyword argument: its name, its type, its default and what it means."""

    name: str
    type: Any  # Any: a type, a Literal or a union
    default: Any  # Any: a value of that type
    help: str


def keywords_of(options: type) -> tuple[Keyword, ...]:
    """The keyword arguments that stand for the fields of a class of options."""
    if options in COMMANDS_CLASSES:
        hints = get_type_hints(options, include_extras=True)
        marks = {name: get_args(hint) for name, hint in hints.items()}
        found = [
            Keyword(f.name, marks[f.name][0], f.default, marks[f.name][1].help)
            for f in fields(options)
        ]
    else:
        found = [Keyword(o.name, o.type, o.default, o.help) for o in options_of(options)]
    return tuple(keyword for keyword in found if keyword.name not in PARAMETERS)


def takes(*options: type) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Make a function's ``**options`` the keyword arguments of these classes.

    Its signature lists them with their defaults, an unknown name is a TypeError, and hints speak
    of `name` where the commands' hints speak of ``--name``.
    """

    def decorated(function: Callable[P, Result]) -> Callable[P, Result]:
        signature = _signature(function, options)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            _require_known(function.__name__, kwargs, signature)
            with errors_in_python(signature.parameters):
                return function(*args, **kwargs)

        call.__signature__ = signature  # type: ignore[attr-defined]  # read by inspect
        return call

    return decorated


def taken(options: type, given: Mapping[str, object]) -> dict[str, Any]:  # Any: their values
    """Those of the given keyword arguments that stand for fields of a class of options."""
    names = {keyword.name for keyword in keywords_of(options)}
    return {name: plain(value) for name, value in given.items() if name in names}


def settings_of(
    settings: type[Settings], given: Mapping[str, object], base: Settings | None = None
) -> Settings:
    """Settings with the given values; the others are those of ``base`` or the defaults.

    Keys are the names of the commands' options. Raises ArgumentInvalid for a wrong value.
    """
    known = options_of(settings)
    values = {} if base is None else {o.name: getattr(base, o.field) for o in known}
    values |= {o.name: plain(given[o.name]) for o in known if o.name in given}
    try:
        return TypeAdapter(settings).validate_python(values)
    except ValidationError as error:
        reasons = [
            f"{'.'.join(map(str, e['loc'][:1]))}={e['input']!r:.60}: {e['msg']}"
            for e in error.errors()
        ]
        raise ArgumentInvalid("; ".join(reasons) + ".", hint="See docs/python.md.") from error


def require_one_of(name: str, value: object, known: Collection[str]) -> None:
    """Refuse the value of an argument that is none of the known words."""
    if value not in known:
        raise ArgumentInvalid(f"{name}={value!r:.60} is unknown.", hint=f"Give {', '.join(known)}.")


def plain(value: object) -> Any:  # Any: a value without NumPy's types
    """A value of NumPy as Python's, also within a list: parameter grids often hold such values."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


@contextmanager
def errors_in_python(names: Iterable[str]) -> Iterator[None]:
    """Let the hints of errors name these arguments, as the commands' hints name options."""
    try:
        yield
    except PeterRecError as error:
        error.message = _in_python(error.message)
        own = {name: f"`{name}`" for name in names}
        hint = error.hint.removesuffix(DOCS).rstrip()  # that page is a server's
        error.hint = hint_for(_in_python(hint), own, knows_others=False)
        raise
    except typer.BadParameter as error:
        raise ArgumentInvalid(f"{_in_python(error.message)}.") from error


def _in_python(text: str) -> str:
    return _OPTION.sub(lambda match: f"`{match[1].replace('-', '_')}`", text)


def _signature(function: Callable[..., object], options: tuple[type, ...]) -> inspect.Signature:
    """The function's own parameters and, instead of ``**options``, one for each option."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = {parameter.name for parameter in own}
    keywords = [each for cls in options for each in keywords_of(cls) if each.name not in names]
    more = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.default is MISSING else each.default,
            annotation=type_text(each),
        )
        for each in keywords
    ]
    return signature.replace(parameters=[*own, *more])


def _require_known(
    function: str, given: Mapping[str, object], signature: inspect.Signature
) -> None:
    for name in given:
        if name not in signature.parameters:
            near = get_close_matches(name, signature.parameters, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}.{hint}")


_SPECIAL = {
    "labels": "Answers | None",
    "targets": "Histories | None",
    "blocks": "str | Sequence[int] | None",
    "columns": "str | Sequence[str] | None",
    "answers_columns": "str | Sequence[str] | None",
}
"""Types that are wider than the commands': tables in memory, and numbers instead of a text."""


def type_text(keyword: Keyword) -> str:
    """The type of a keyword argument as it is written in Python."""
    return _SPECIAL.get(keyword.name) or _type_text(keyword.type)


def _type_text(kind: Any) -> str:  # Any: a type, a Literal or a union
    origin: object = get_origin(kind)
    if kind is NoneType:
        return "None"
    if origin is Literal:
        return f"Literal[{', '.join(json.dumps(value) for value in get_args(kind))}]"
    if origin in (Union, UnionType):
        return " | ".join(map(_type_text, get_args(kind)))
    if origin in (tuple, list):
        return f"Sequence[{_type_text(get_args(kind)[0])}]"  # of texts: a single one will do
    return str(kind.__name__)


def option_types() -> str:
    """The text of ``option_types.py``."""
    classes = {
        "EventKeywords": ("Where events are and how their table is read.", EventOptions),
        "AnswerKeywords": ("Where a task's answers are.", AnswerOptions),
        "TimeKeywords": ("How events are split in time.", TimeOptions),
        "TrackKeywords": ("The tracker that follows a training.", TrackOptions),
        "PretrainKeywords": ("What shapes a pretraining run.", PretrainSettings),
        "FinetuneKeywords": ("What shapes a fine-tuning run.", FinetuneSettings),
    }
    lines = [
        '"""Types of the keyword arguments that stand for the commands\' options.',
        "",
        "Written by ``python -m peterrec.service.library.keywords``; a test compares it.",
        '"""',
        "",
        "from collections.abc import Sequence",
        "from typing import Literal, TypedDict",
        "",
        "from peterrec.service.library.inputs import Answers, Histories",
    ]
    for name, (text, options) in classes.items():
        lines += ["", "", f"class {name}(TypedDict, total=False):", f'    """{text}"""', ""]
        lines += [f"    {each.name}: {type_text(each)}" for each in keywords_of(options)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(option_types(), end="")
