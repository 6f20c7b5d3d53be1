"""The answers of each kind of task: one module per kind, found by listing this folder."""

from collections.abc import Mapping
from functools import reduce
from importlib import import_module
from operator import or_
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from peterrec_client.kinds.prediction import ItemId, Prediction

__all__ = ["KINDS", "AnyPrediction", "ItemId", "Prediction"]


def _found() -> dict[str, type[Prediction]]:
    """The ``KIND`` of every module of this folder that has one, by the module's name."""
    names = sorted(module.name for module in iter_modules(__path__))
    modules = {name: import_module(f"{__name__}.{name}") for name in names}
    return {name: module.KIND for name, module in modules.items() if hasattr(module, "KIND")}


KINDS: Mapping[str, type[Prediction]] = _found()
"""The class of an answer by the kind of its task."""

if TYPE_CHECKING:
    AnyPrediction = Prediction
else:
    AnyPrediction = reduce(or_, KINDS.values())
"""The union of the answers of all kinds, which their tags distinguish.

It is known only at run time, since every file of this folder adds a kind to it.
"""
