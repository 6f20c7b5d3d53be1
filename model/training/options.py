"""How an option of training is written: once, as an annotated field of a settings class.

The type, the bounds, the help text and the name outside Python are in the field's annotation, the
default is the field's default. The command line, the file of ``peterrec finetune-many`` and the
documentation read them with ``options_of``; ``pydantic.TypeAdapter`` of a settings class checks the
types and bounds of a document whose keys are the options' names. No torch here.
"""

from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

from annotated_types import Ge, Le
from pydantic import ConfigDict, Field
from pydantic.fields import FieldInfo

Panel = Literal["Input", "Methods", "Model", "Training"]
"""What an option is about: the data it reads, the methods that ``peterrec compare`` compares, the
network that it shapes, or the training run."""


STRICT = ConfigDict(extra="forbid")
"""The ``__pydantic_config__`` of a settings class: a document with an unknown name is refused."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option as its settings class states it.

    ``field`` is the attribute's name in Python, ``name`` the name on the command line (with ``-``
    for ``_``) and the key in files. ``type`` is without its annotation. ``default`` is MISSING if
    the option must be given. Bounds are inclusive. An option that is not public can be set from
    Python only.
    """

    field: str
    name: str
    type: Any  # Any: a type, a Literal or a union
    default: Any  # Any: a value of that type
    help: str
    panel: Panel
    minimum: float | None
    maximum: float | None
    is_public: bool


def option(
    text: str,
    panel: Panel = "Training",
    *,
    name: str | None = None,
    ge: float | None = None,
    le: float | None = None,
    is_public: bool = True,
) -> Any:  # Any: pydantic declares its result so
    """Return a field's annotation as an option: help text, panel, bounds, name outside Python."""
    extra: dict[str, Any] = {"panel": panel, "is_public": is_public}  # Any: JSON values
    return Field(alias=name, description=text, ge=ge, le=le, json_schema_extra=extra)


def options_of(settings: type) -> tuple[Option, ...]:
    """The options of a settings class, in the order of its fields."""
    hints = get_type_hints(settings, include_extras=True)
    return tuple(
        _option(field.name, hints[field.name], field.default) for field in fields(settings)
    )


def _option(name: str, annotation: Any, default: object) -> Option:  # Any: an annotated type
    kind, info = get_args(annotation)
    assert isinstance(info, FieldInfo)
    assert isinstance(info.json_schema_extra, dict)
    bounds: dict[type, Any] = {type(bound): bound for bound in info.metadata}  # Any: Ge or Le
    return Option(
        field=name,
        name=info.alias or name,
        type=kind,
        default=default,
        help=info.description or "",
        panel=info.json_schema_extra["panel"],  # type: ignore[arg-type]  # ``option`` wrote it
        minimum=bounds[Ge].ge if Ge in bounds else None,
        maximum=bounds[Le].le if Le in bounds else None,
        is_public=bool(info.json_schema_extra["is_public"]),
    )


REQUIRED = MISSING
"""The default of an option that must be given."""

LossName = Literal["full", "sampled"]
"""Softmax loss over items: exact over all of them, or against sampled negatives."""

Epochs = Annotated[int, option("Largest number of passes over the training users.", ge=1)]
BatchSize = Annotated[int, option("Training examples in one step of the optimiser.", ge=1)]
Seed = Annotated[int, option("Seed of every random draw; equal seeds give equal results.", ge=0)]
Patience = Annotated[
    int, option("Stop after this many epochs without a lower validation loss.", ge=1)
]
ValidationShare = Annotated[
    float,
    option("Share of users kept apart to choose the best epoch with.", ge=0, le=0.9),
]
ItemDropout = Annotated[
    float,
    option(
        "Mean share of items left out of each history while training.",
        ge=0,
        le=1,
    ),
]
MinLabelCount = Annotated[
    int, option("Drop labels, tags or target items that fewer users have.", "Input", ge=1)
]
