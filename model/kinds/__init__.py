"""The kinds of head by name. Each is a module of this folder; ``docs/extending.md`` adds one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from peterrec.model.kinds.descriptor import Kind, kinds_in

__all__ = ["KINDS", "Kind", "KindName", "kinds_in"]

KINDS: Mapping[str, Kind] = kinds_in(__name__, __path__)
"""Every kind of head that a backbone can carry, in alphabetical order."""

if TYPE_CHECKING:
    KindName = str
else:
    KindName = Literal[*KINDS]  # an option lists the names; a type checker cannot read this
