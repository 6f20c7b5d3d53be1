"""Hints for calls that nearly exist, derived from the OpenAPI document.

They are made for refusals only, so their time does not matter.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches

from peterrec.model.documents import Document

ROUTES = "/docs lists the routes."
BODY = "/docs shows the body."

MOST_NAMES = 3
"""Unknown names of one body that similar ones are sought for."""


def route_hint(document: Document, path: str) -> str:
    """Name the calls of the path that is nearest to one that does not exist."""
    wanted = path.rstrip("/").lower()
    shapes = {_filled(each, wanted): each for each in document["paths"]}
    near = get_close_matches(wanted, shapes, n=1, cutoff=0.7)
    found = [shapes[shape] for shape in near]
    calls = [f"{method.upper()} {path}" for path in found for method in document["paths"][path]]
    return f"Is {' or '.join(calls)} meant? {ROUTES}" if calls else ROUTES


def field_hint(document: Document, method: str, path: str, names: list[str]) -> str:
    """Name the fields that are probably meant by those that a call's body does not have."""
    names = names[:MOST_NAMES]
    operation = document["paths"].get(path, {}).get(method.lower(), {})
    known = sorted(set(_fields(document, operation.get("requestBody", {}))))
    if not names or not known:
        return BODY
    near = {name: get_close_matches(name.lower(), known, n=1) for name in names}
    meant = [
        f"Is `{found[0]}` meant instead of `{name:.60}`?" for name, found in near.items() if found
    ]
    return " ".join([*meant, f"The body has the fields {', '.join(known)}.", BODY])


def _filled(template: str, path: str) -> str:
    """Put the parts of a path in the place of a template's parameters, as far as there are any."""
    parts = path.split("/")
    return "/".join(
        parts[at] if re.fullmatch(r"\{\w+\}", part) and at < len(parts) and parts[at] else part
        for at, part in enumerate(template.split("/"))
    )


def _fields(document: Document, schema: Document) -> Iterator[str]:
    """Return the names of all fields of a schema and of those that it refers to."""
    if isinstance(schema, list):
        for each in schema:
            yield from _fields(document, each)
    elif isinstance(schema, dict):
        yield from schema.get("properties", {})
        reference = schema.get("$ref")
        if reference:
            name = reference.rpartition("/")[2]
            yield from _fields(document, document["components"]["schemas"].get(name, {}))
        for each in schema.values():
            yield from _fields(document, each)
