"""How each kind of head answers: one module per kind; ``docs/extending.md`` adds one."""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from peterrec.model.kinds import kinds_in
from peterrec.service.predict.kinds.descriptor import (
    AnswerKind,
    AnswerRole,
    Prediction,
    Ranked,
    Subject,
)

__all__ = [
    "ANSWERS",
    "AnswerKind",
    "AnswerRole",
    "AnyPrediction",
    "Prediction",
    "Ranked",
    "Subject",
    "divergence",
]

ANSWERS: Mapping[str, AnswerKind[Prediction]] = kinds_in(__name__, __path__)
"""How a kind answers, by its name."""

if TYPE_CHECKING:
    AnyPrediction = Prediction
else:
    AnyPrediction = reduce(or_, (kind.prediction for kind in ANSWERS.values()))
"""The union of the answers of all kinds, which their tags distinguish.

It is known only at run time, since every file of this folder adds a kind to it.
"""


def divergence(first: Prediction, second: Prediction) -> float:
    """How far two answers to one history differ, from 0 to 1; 1 if their kinds differ."""
    if type(first) is not type(second):
        return 1.0
    return ANSWERS[str(first.__struct_config__.tag)].divergence(first, second)
