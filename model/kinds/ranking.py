"""The ranking kind: the best items of a catalog."""

from typing import TYPE_CHECKING

from peterrec.model.kinds.descriptor import Kind

if TYPE_CHECKING:
    from torch import Tensor


def _scores(logits: "Tensor") -> "Tensor":
    """The logits: scores to rank by, not probabilities."""
    return logits


KIND = Kind(outputs="catalog", answers="items", scores=_scores)
