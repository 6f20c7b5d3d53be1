"""The tags kind: any number of labels, each independent of the others."""

from typing import TYPE_CHECKING

from peterrec.model.kinds.descriptor import Kind

if TYPE_CHECKING:
    from torch import Tensor


def _scores(logits: "Tensor") -> "Tensor":
    """Probability of each tag: a sigmoid for each, computed in float64.

    In float32, PyTorch rounds the last few numbers of a tensor otherwise than those before them,
    and so an answer would depend on the other rows of its batch.
    """
    return logits.double().sigmoid().to(logits.dtype)


KIND = Kind(outputs="labels", answers="tags", scores=_scores, has_threshold=True)
