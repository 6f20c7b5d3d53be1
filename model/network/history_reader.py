"""The item reader of a patch: attention over the history's items, added to the user vector.

The network reads items in their order, and only its last position reaches the head; all that a task
needs to know about the history would have to pass through frozen blocks to this position. A reader
looks at all items directly: each query of the task pools them by attention, and a bottleneck turns
the pooled vectors into a change of the user vector. With items ``v_t`` (their normalised
embeddings) and queries ``q_k``:

``p_k = LN(sum_t softmax_t(v_t q_k) v_t)``,  ``u <- u + gelu([p_1 .. p_K] D + d) U + b``.

It is not in the paper. It costs ``C K + H (K C + C + 1) + C`` numbers per task for any size of
vocabulary, and leaves all blocks to be shared.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from peterrec.model.spec import CLS, PAD

NOWHERE = -1e30
"""Score of a position without an item; finite, so that an empty history gives no NaN."""


@dataclass(frozen=True, slots=True)
class ItemReader:
    """Readers of G tasks: query [G, C, K], down [G, K·C, H], down_bias [G, H], up [G, H, C],
    up_bias [G, C]."""

    query: Tensor
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def __call__(self, embedded: Tensor, is_item: Tensor, eps: float) -> Tensor:
        """Changes of user vectors [G·B, C] from embedded rows [G·B, T, C], B rows of each task.

        ``is_item`` bool [G·B, T] is True where a row has an item; ``eps`` is the backbone's.
        """
        items = functional.layer_norm(embedded, embedded.shape[2:], eps=eps)
        tasks, channels, queries = self.query.shape
        read = items.view(tasks, -1, channels)  # [G·B, T, C] -> [G, B·T, C]
        scores = (read @ self.query).view(*items.shape[:2], queries)  # [G·B, T, K]
        at_item = is_item.unsqueeze(2)  # [G·B, T, 1]
        weights = scores.masked_fill(~at_item, NOWHERE).softmax(1) * at_item
        pooled = weights.transpose(1, 2) @ items  # [G·B, K, T] @ [G·B, T, C] -> [G·B, K, C]
        normal = functional.layer_norm(pooled, pooled.shape[2:], eps=eps)
        narrow = normal.view(tasks, -1, queries * channels) @ self.down  # [G, B, H]
        hidden = functional.gelu(narrow + self.down_bias.unsqueeze(1), approximate="tanh")
        change = hidden @ self.up + self.up_bias.unsqueeze(1)  # [G, B, C]
        return change.view(-1, channels)


def find_items(tokens: Tensor) -> Tensor:
    """True where collated tokens [B, T] are items, known or unknown: bool [B, T]."""
    return (tokens != PAD) & (tokens != CLS)
