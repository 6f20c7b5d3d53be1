"""Options of commands that may run on a Ray cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from peterrec.service.errors import RayMissing

ON_RAY = "On Ray"

RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Run on this Ray cluster: HOST:PORT, auto for the one of this machine, or local to "
        "start one. Paths must be the same on all of its machines.",
        rich_help_panel=ON_RAY,
    ),
]


@contextmanager
def needing_ray() -> Iterator[None]:
    """Turn an import that fails within the block into RayMissing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise RayMissing(error.name) from error
