"""Cross-entropy over very many items: exact in chunks, or against sampled negatives."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from model.sampled_softmax import draw_log_uniform, sampled_softmax_loss
from model.spec import FIRST_ITEM
from model.training_kernels.products import biased_product, chunk_rows, product

__all__ = [
    "FULL_SOFTMAX_LIMIT",
    "PRETRAINING_LIMIT",
    "LossName",
    "OutputLayer",
    "choose_loss",
    "draw_log_uniform",
    "full_softmax_loss",
    "sampled_softmax_loss",
    "start_at_popularity",
]

LossName = Literal["full", "sampled"]

FULL_SOFTMAX_LIMIT = 20_000
"""Up to so many items the exact loss is the default, where each user predicts a few times."""

PRETRAINING_LIMIT = 5_000
"""The same in pretraining, where every position predicts: at 10,000 items the exact loss costs
three times as much as the whole network, the sampled one half of it."""


class OutputLayer(nn.Module):
    """Scores of every item: one row of weight and one bias each; not tied to the embedding."""

    def __init__(self, items: int, channels: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(items, channels))
        self.bias = nn.Parameter(torch.zeros(items))
        nn.init.normal_(self.weight, std=0.02, generator=generator)


@torch.no_grad()
def start_at_popularity(output: OutputLayer, rows: Sequence[npt.NDArray[np.int64]]) -> None:
    """Set the biases to each item's log share of the token rows, smoothed by one half.

    Sampled losses rarely touch a rare item, so its bias would take epochs to get there (MovieLens
    1M after four: loss 5.58 instead of 5.60; the exact one 5.548 instead of 5.553).
    """
    tokens = torch.from_numpy(np.concatenate(rows))
    counts = torch.bincount(tokens - FIRST_ITEM, minlength=len(output.bias))
    output.bias.copy_(torch.log_softmax((counts + 0.5).log(), 0))


class _ChunkedCrossEntropy(Function):
    """Mean cross-entropy of ``hidden W^T + b``; the gradient is made with the loss, chunk by chunk.

    The logits of all rows never exist at once, and each chunk is read while it is in the cache.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        grads = torch.empty_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
        weight = weight.to(dtype)
        turned = weight.t().contiguous()  # [K, C] -> [C, K]
        losses = [hidden.new_zeros(1, 1)]
        for start in range(0, len(hidden), chunk_rows(len(weight))):
            part = slice(start, start + chunk_rows(len(weight)))
            rows = hidden[part].to(dtype)
            logits = biased_product(rows, weight, bias)  # [M, C] -> [M, K]
            loss, slope = _loss_and_slope(logits, targets[part], len(hidden))
            grads[2].add_(slope.sum(0))
            slope = slope.to(dtype)
            grads[0][part] = product(slope, turned)  # [M, K] @ [K, C] -> [M, C]
            grads[1].add_(product(slope.t(), rows.t()))  # [K, M] @ [M, C] -> [K, C]
            losses.append(loss)
        ctx.save_for_backward(*grads)
        return torch.cat(losses).sum() / max(1, len(hidden))

    @staticmethod
    def backward(ctx: FunctionCtx, scale: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grad * scale for grad in ctx.saved_tensors), None, None)  # type: ignore[attr-defined]  # set by torch


def _loss_and_slope(logits: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Losses [M, 1] of logits [M, K], and their slopes / count [M, K] in the logits' place."""
    own = targets.unsqueeze(1)  # [M] -> [M, 1]
    top = logits.amax(1, keepdim=True)
    right = logits.gather(1, own)
    exps = logits.sub_(top).exp_()
    total = exps.sum(1, keepdim=True)
    loss = total.log() + top - right
    slope = exps.mul_(1 / (total * count))
    slope.scatter_add_(1, own, torch.full_like(total, -1 / count))
    return loss, slope


def full_softmax_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Mean cross-entropy of hidden [M, C] against targets int64 [M] over all K rows of weight.

    Products are computed in ``dtype``.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch's
        hidden, weight, bias, targets, dtype
    )
    return loss


def choose_loss(
    name: LossName | Literal["auto"], items: int, limit: int = FULL_SOFTMAX_LIMIT
) -> LossName:
    """The named loss; ``auto`` is exact up to ``limit`` items."""
    if name != "auto":
        return name
    return "full" if items <= limit else "sampled"
