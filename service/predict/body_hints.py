"""What to do about a body that is not understood: hints that are derived from the bodies' schemas.

They are made for refusals only, so their time does not matter.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from msgspec import Struct, inspect

from peterrec.service.predict.schemas import PredictRequest, UsersPredictRequest
from peterrec.service.predict.user_vectors import VectorsRequest

DOCS = "/docs shows the body."

OTHER_NAMES: Mapping[str, frozenset[str]] = {
    "history": frozenset({"items", "itemids", "sequence", "session", "events", "clicks", "input"}),
    "user_id": frozenset({"user", "uid", "id", "customer"}),
    "instances": frozenset({"users", "histories", "rows", "requests", "batch", "inputs", "data"}),
    "top_k": frozenset({"k", "n", "limit", "size", "count", "num"}),
    "task": frozenset({"name", "model", "modelname"}),
    "tasks": frozenset({"models", "names"}),
    "exclude": frozenset({"ignore", "without", "blocked"}),
    "where": frozenset({"filter", "filters", "query", "conditions", "attributes"}),
    "titles": frozenset({"display", "displaynames", "withtitles"}),
    "prediction_ids": frozenset({"predictionid", "ids", "withids", "feedback"}),
    "remember": frozenset({"keep", "store", "byuser", "remembered"}),
    "encoding": frozenset({"format", "dtype", "type"}),
    "candidates": frozenset({"include", "only", "allowed", "catalog"}),
    "explain": frozenset({"why", "explanation", "explanations", "reasons"}),
    "parameters": frozenset({"params", "options", "config", "settings"}),
}
"""What other interfaces call these fields, in small letters and without ``_`` and ``-``."""

SHOWN_NAME = 60
"""Characters of an unknown name that an answer repeats, and that similar names are sought for."""

Fields = Mapping[str, inspect.Type]
Places = Mapping[str, Fields]
"""The fields of each object of a body by its path, in which ``[]`` stands for every entry."""

_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)(?:`\Z|…\Z)", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`\Z")
_GOT = re.compile(r"Expected `.*`, got `(\w+)`\Z")


@dataclass(frozen=True, slots=True)
class BodyForm:
    """The body of one call: its name for people, its schema and an example."""

    call: str
    schema: type[Struct]
    example: str

    @property
    def places(self) -> Places:
        """The objects of this body."""
        return _places_of(self.schema)


PREDICT = BodyForm("POST /tasks/{task}/predict", PredictRequest, '{"history": ["1193", 661]}')
PREDICT_USER = BodyForm(
    "POST /users/predict", UsersPredictRequest, '{"history": ["1193", 661], "tasks": ["gender"]}'
)
VECTORS = BodyForm("POST /users/vectors", VectorsRequest, '{"history": ["1193", 661]}')
FORMS = (PREDICT, PREDICT_USER, VECTORS)


def schema_hint(form: BodyForm, problem: str, path: str) -> str:
    """Say what to change about a part of a body that has another form than the schema.

    ``problem`` is msgspec's message and ``path`` its place, such as ``$.instances[3].history``.
    """
    place = re.sub(r"\[(\d+|\.\.\.)\]", "[]", path)
    unknown, missing = _UNKNOWN.match(problem), _MISSING.match(problem)
    if unknown:
        hint = _hint_for_unknown(form, unknown[1], place)
    elif missing:
        form_of_missing = _form(form.places[place][missing[1]])
        hint = f"{_title(place)} needs `{missing[1]}`: {form_of_missing}."
    else:
        hint = _hint_for_value(form, problem, place)
    return f"{hint} {DOCS}"


def query_hint(form: BodyForm, name: str) -> str:
    """Say where in the body the name of a query parameter belongs."""
    name = name[:SHOWN_NAME]
    places = [path for path, fields in form.places.items() if name in fields]
    where = f"`{name}` belongs in {_names_of(places)}" if places else "Send everything in the body"
    return f"{where}: {form.example}. {DOCS}"


def syntax_hint(form: BodyForm, body: bytes) -> str:
    """Say what to change about bytes that are not JSON."""
    text = body.lstrip()
    if not text:
        hint = f"The body is empty; send JSON: {form.example}."
    elif body[:2] == b"\x1f\x8b" or body[:4] == b"\x28\xb5\x2f\xfd":
        hint = "The body is compressed; send it without Content-Encoding."
    elif body[:3] == b"\xef\xbb\xbf" or body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        hint = "The body begins with a byte-order mark; send UTF-8 without one."
    elif text[:1] not in (b"{", b"["):
        hint = f"The body is an object in JSON, not a form: {form.example}."
    elif b"'" in text and b'"' not in text:
        hint = f"JSON has double quotes: {form.example}."
    else:
        hint = f"The body is JSON in UTF-8: {form.example}."
    return f"{hint} {DOCS}"


def repeated_field(body: bytes) -> str | None:
    """Return a field that occurs twice in one object of a JSON body; None if there is none."""
    repeated: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        names = Counter(name for name, _ in pairs)
        repeated.extend(name for name, times in names.items() if times > 1)

    json.loads(body, object_pairs_hook=note)
    return repeated[0] if repeated else None


def _hint_for_unknown(form: BodyForm, name: str, place: str) -> str:
    """Say where a field belongs that the schema does not have in this place."""
    name = name[:SHOWN_NAME]  # the search for a similar name takes a time that grows with it
    shown = f"`{name}`"
    here = form.places.get(place, {})
    elsewhere = {each: fields for each, fields in form.places.items() if each != place}
    if meant_here := next((field for field in here if _is_other_name(name, field)), None):
        return f"Is `{meant_here}` meant instead of {shown}? It is {_form(here[meant_here])}."
    if where := _names_of(path for path, fields in elsewhere.items() if name in fields):
        plural = f"{name}s"
        meant = f"Is `{plural}` meant? It is {_form(here[plural])}. " if plural in here else ""
        return f"{meant}{shown} belongs in {where}."
    if near := _nearest(name, here):
        return f"Is `{near}` meant instead of {shown}? It is {_form(here[near])}."
    for path, fields in elsewhere.items():
        if near := _nearest(name, fields):
            return f"Is `{near}` in {_name_of(path)} meant instead of {shown}?"
    for other in FORMS:
        if other is not form and any(_nearest(name, each) for each in other.places.values()):
            return f"{shown} belongs to {other.call}: {other.example}."
    return f"{_title(place)} has the fields {_listed(here)}."


def _hint_for_value(form: BodyForm, problem: str, place: str) -> str:
    """Say what a value should be instead."""
    got = _GOT.match(problem)
    found = got[1] if got else ""
    if place == "$":
        return f"The body is an object: {form.example}."
    kind = _type_at(form, place)
    if kind is None:
        return f"The body is an object: {form.example}."
    hint = f"{_title(place)} is {_form(kind)}."
    has_list = any(isinstance(each, inspect.ListType) for each in _options(kind))
    if found == "null":
        empty = " An empty list is a cold start." if place.endswith(".history") else ""
        hint += empty or " Leave out what has no value."
    elif has_list and (found in {"str", "int", "object"} or problem.startswith("Invalid enum")):
        hint += " A single one is put in brackets: […]."
    elif found == "object" and place.endswith("[]"):
        hint += " Send the id alone."
    elif found == "array" and place.endswith("history[]") and form is PREDICT:
        hint += ' Several histories are {"instances": [{"history": […]}, …]}.'
    elif found == "float" and place.endswith("[]"):
        hint += ' Send an id as it is written in the training data: 12 or "12", not 12.0.'
    elif found == "str" and isinstance(_plain(kind), inspect.IntType | inspect.BoolType):
        hint += " Send it without quotes."
    return hint


def _nearest(name: str, fields: Iterable[str]) -> str | None:
    """Return the field that is probably meant by a name, if there is one."""
    wanted = _normal(name)
    by_normal = {_normal(field): field for field in fields}
    for normal, field in by_normal.items():
        if wanted == normal or _is_other_name(name, field):
            return field
    near = get_close_matches(wanted, by_normal, n=1, cutoff=0.7)
    return by_normal[near[0]] if near else None


def _is_other_name(name: str, field: str) -> bool:
    return _normal(name) in OTHER_NAMES.get(field, frozenset())


def _normal(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _title(place: str) -> str:
    name = _name_of(place)
    return name[0].upper() + name[1:]


def _name_of(place: str) -> str:
    """Return a place in words: `parameters`, an entry of `instances`."""
    last = place.rpartition(".")[2]
    if last == "$":
        return "the top level of the body"
    return f"an entry of `{last[:-2]}`" if last.endswith("[]") else f"`{last}`"


def _names_of(places: Iterable[str]) -> str:
    return " or in ".join(map(_name_of, places))


def _listed(fields: Iterable[str]) -> str:
    return ", ".join(f"`{field}`" for field in fields)


def _type_at(form: BodyForm, place: str) -> inspect.Type | None:
    """Return the type of a place that is a field, or an entry of a field's list."""
    object_path, _, field = place.rpartition(".")
    kind = form.places.get(object_path, {}).get(field.removesuffix("[]"))
    if kind is None or not field.endswith("[]"):
        return kind
    entries = [_entry_of(each) for each in _options(kind)]
    return next((each for each in entries if each is not None), None)


def _entry_of(kind: inspect.Type) -> inspect.Type | None:
    """Return the type of the entries of a list or of a filter."""
    if isinstance(kind, inspect.ListType):
        return kind.item_type
    return kind.value_type if isinstance(kind, inspect.DictType) else None


def _options(kind: inspect.Type) -> list[inspect.Type]:
    """Return the alternatives of a type, without null and without metadata."""
    if isinstance(kind, inspect.Metadata):
        return _options(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [option for each in kind.types for option in _options(each)]
    return [] if isinstance(kind, inspect.NoneType) else [kind]


def _plain(kind: inspect.Type) -> inspect.Type | None:
    """Return a type without its metadata, if it is the only alternative."""
    options = _options(kind)
    return options[0] if len(options) == 1 else None


def _form(kind: inspect.Type) -> str:
    """Describe a type in words, lists last."""
    options = sorted(_options(kind), key=lambda each: isinstance(each, inspect.ListType))
    return " or ".join(dict.fromkeys(map(_word, options)))


def _word(kind: inspect.Type) -> str:
    match kind:
        case inspect.ListType():
            length = f" of at most {kind.max_length}" if kind.max_length else ""
            return f"a list{length}, of which each entry is {_form(kind.item_type)}"
        case inspect.StructType():
            return f"an object of {_listed(field.encode_name for field in kind.fields)}"
        case inspect.DictType():
            return "an object with a value, a list of values or conditions for each attribute"
        case inspect.IntType() | inspect.FloatType() if kind.le is None and kind.ge is None:
            return "a number"
        case inspect.LiteralType():
            return " or ".join(f'"{value}"' for value in kind.values)
        case inspect.IntType():
            bounds = f" from {kind.ge} to {kind.le}" if kind.le is not None else ""
            return f"a whole number{bounds}"
        case inspect.BoolType():
            return "true or false"
    return "a text"


@cache
def _places_of(schema: type[Struct]) -> Places:
    found: dict[str, Fields] = {}
    _find_places(inspect.type_info(schema), "$", found)
    return found


def _find_places(kind: inspect.Type, path: str, found: dict[str, Fields]) -> None:
    for option in _options(kind):
        entry = _entry_of(option)
        if entry is not None:
            _find_places(entry, f"{path}[]", found)
        elif isinstance(option, inspect.StructType):
            found[path] = {field.encode_name: field.type for field in option.fields}
            for field in option.fields:
                _find_places(field.type, f"{path}.{field.encode_name}", found)
