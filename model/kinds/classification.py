"""The classification kind: one label of several."""

from typing import TYPE_CHECKING

from peterrec.model.kinds.descriptor import Kind

if TYPE_CHECKING:
    from torch import Tensor


def _scores(logits: "Tensor") -> "Tensor":
    """Probability of each class: a softmax over all of them."""
    return logits.softmax(-1)


KIND = Kind(outputs="labels", answers="label", scores=_scores)
