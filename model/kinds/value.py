"""The value kind: one number."""

from typing import TYPE_CHECKING

from peterrec.model.kinds.descriptor import Kind

if TYPE_CHECKING:
    from torch import Tensor


def _scores(logits: "Tensor") -> "Tensor":
    """The logits, which are the predicted numbers themselves."""
    return logits


KIND = Kind(outputs="number", answers="number", scores=_scores)
