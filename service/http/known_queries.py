"""Refuses query parameters that a route does not have, as bodies refuse unknown fields.

A misspelt ``validate_only`` would register a bundle that somebody only wanted to check.
"""

from collections.abc import Iterator
from difflib import get_close_matches

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from peterrec.service.errors import MalformedRequest


async def refuse_unknown_queries(request: Request) -> None:
    """Raise MalformedRequest, with the nearest name, for a query parameter that is not declared."""
    route = request.scope.get("route")
    if not request.query_params or not isinstance(route, APIRoute):
        return
    known = sorted(_declared(route.dependant))
    for name in request.query_params:
        if name not in known:
            raise MalformedRequest(
                f"{request.method} {route.path} has no query parameter {name[:60]!r}.",
                hint=_hint(name, known),
            )


def _declared(dependant: Dependant) -> Iterator[str]:
    """Return the query parameters of a route and of what it depends on."""
    for field in dependant.query_params:
        yield field.alias
    for each in dependant.dependencies:
        yield from _declared(each)


def _hint(name: str, known: list[str]) -> str:
    if not known:
        return "It has none; /docs shows its body."
    near = get_close_matches(name.replace("-", "_").lower(), known, n=1)
    meant = f"Is {near[0]!r} meant? " if near else ""
    return f"{meant}There are {', '.join(known)}."
