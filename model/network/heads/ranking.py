"""The best items of a catalog: full softmax over the catalog, top-k."""

import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.network.heads.ranks import rank_metrics, ranks_of


class Ranking:
    """Targets are catalog indices int64 [B]."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over the whole catalog."""
        return functional.cross_entropy(logits, targets)

    def scores(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """The logits: scores to rank by, not probabilities."""
        return logits

    def metrics(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """MRR, hit rate and NDCG over all items, at 5 and 20."""
        ranks = ranks_of(logits, targets)
        return {**rank_metrics(ranks, 5), **rank_metrics(ranks, 20)}


def top_items(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scores and catalog indices [B, count] of the best items; of equal scores the lower index."""
    order = torch.sort(logits, dim=1, descending=True, stable=True)
    return order.values[:, :count], order.indices[:, :count]
