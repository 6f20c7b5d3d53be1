"""The tags kind: any number of labels, each independent of the others."""

from typing import TYPE_CHECKING

from peterrec.model.kinds.descriptor import Kind

if TYPE_CHECKING:
    from torch import Tensor


def _scores(logits: "Tensor") -> "Tensor":
    """Probability of each tag: a sigmoid for each."""
    return logits.sigmoid()


KIND = Kind(outputs="labels", answers="tags", scores=_scores, has_threshold=True)
