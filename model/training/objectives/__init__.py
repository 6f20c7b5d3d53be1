"""How a head of each kind is trained: one module per kind; ``docs/extending.md`` adds one."""

from collections.abc import Mapping

from peterrec.model.kinds import kinds_in
from peterrec.model.training.objectives.objective import (
    LogitObjective,
    Objective,
    ProbableObjective,
    RestrainedObjective,
    ScaledObjective,
)

__all__ = [
    "OBJECTIVES",
    "LogitObjective",
    "Objective",
    "ProbableObjective",
    "RestrainedObjective",
    "ScaledObjective",
]

OBJECTIVES: Mapping[str, type[Objective]] = kinds_in(__name__, __path__)
"""The objective's class by the name of its kind."""
