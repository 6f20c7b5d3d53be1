"""The kinds of head by name. Each is a module of this folder; ``docs/extending.md`` adds one."""

from collections.abc import Mapping

from peterrec.model.kinds.descriptor import Kind, kinds_in

__all__ = ["KINDS", "Kind", "kinds_in"]

KINDS: Mapping[str, Kind] = kinds_in(__name__, __path__)
"""Every kind of head that a backbone can carry, in alphabetical order."""
