"""The value kind: one number."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from peterrec.model.kinds.descriptor import Kind

if TYPE_CHECKING:
    from torch import Tensor

Number = TypeVar("Number", float, "Tensor")


LARGEST = 1e250
"""Largest scale and shift: with them, the answer of any float32 logit is a finite float64."""


@dataclass(frozen=True, slots=True)
class ValueScale:
    """The line from a head's logit to the number that a value task answers with.

    A head computes in float32 near 0, and the line is applied in float64, so that numbers which
    float32 cannot tell apart are answered exactly. The standard line changes nothing.
    """

    scale: float = 1.0
    shift: float = 0.0

    def apply(self, logit: Number) -> Number:
        """``scale · logit + shift``, in two roundings, of a float or of float64 [...]."""
        return logit * self.scale + self.shift


def _scores(logits: "Tensor") -> "Tensor":
    """The logits, from which the task's ``ValueScale`` makes the predicted numbers."""
    return logits


KIND = Kind(outputs="number", answers="number", scores=_scores)
