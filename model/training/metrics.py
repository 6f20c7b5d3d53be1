"""Ranks, areas and counts: the arithmetic that the metrics of several kinds share."""

import torch
from torch import Tensor


def ranks_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Rank (0 = best) of each row's target in logits [B, K]; of equal scores the target is last.

    NaN counts as equal, so a broken row ranks its target last.
    """
    own = logits.gather(1, targets.unsqueeze(1))  # [B, 1]
    return (~(logits < own)).sum(1) - 1


def rank_metrics(ranks: Tensor, cutoff: int) -> dict[str, float]:
    """Mean reciprocal rank, hit rate and NDCG at ``cutoff`` of ranks [B] of the one right item."""
    hit = (ranks < cutoff).double()
    place = ranks.double() + 1
    return {
        f"mrr@{cutoff}": (hit / place).mean().item(),
        f"hr@{cutoff}": hit.mean().item(),
        f"ndcg@{cutoff}": (hit / torch.log2(place + 1)).mean().item(),
    }


def area_under_roc(scores: Tensor, is_positive: Tensor) -> float:
    """Share of (positive, negative) pairs in the right order, ties counting half; NaN if none."""
    positives, negatives = is_positive.sum().item(), (~is_positive).sum().item()
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    mean_rank = ends - (counts.double() - 1) / 2  # of each distinct score, ranks from 1
    rank_sum = mean_rank[inverse][is_positive].sum().item()
    area: float = (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
    return area


def macro_f1(predicted: Tensor, targets: Tensor, classes: int) -> float:
    """Mean F1 over the classes that occur among the predictions or the targets, both int64 [B]."""
    hits = torch.bincount(targets[predicted == targets], minlength=classes).double()
    chosen = torch.bincount(predicted, minlength=classes).double()
    present = torch.bincount(targets, minlength=classes).double()
    f1 = 2 * hits / (chosen + present).clamp(min=1)
    return f1[(chosen + present) > 0].mean().item()
