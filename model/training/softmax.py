"""Softmax cross-entropy over very many items: exact in chunks, or against sampled negatives.

All rows of a step share the sampled negatives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.options import LossName
from peterrec.model.training.products import biased_product, chunk_rows, product

NEGATIVES = 4096
"""Negatives drawn per step; one that is drawn twice counts once. On MovieLens 1M with four epochs,
4,096 reach the exact loss's ranks (MRR@5 0.0581 against 0.0583, HR@5 0.122 against 0.121); with
2,048 they are 1 % worse."""


@dataclass(frozen=True, slots=True)
class Draw:
    """The items of one step's loss: its targets and its negatives, each once.

    ``items`` int64 [R] are their indices; ``own`` int64 [M] and ``negatives`` int64 [S] are the
    places of the rows' targets and of the negatives among them. ``log_chance`` [S] is the logarithm
    of each negative's chance to be drawn. ``hits`` int64 [M] is the column of a row's own target
    among the negatives, or S if it is not one of them.
    """

    items: Tensor
    own: Tensor
    negatives: Tensor
    log_chance: Tensor
    hits: Tensor

    def of_targets(self, targets: Tensor) -> "Draw":
        """Replace the rows: their targets int64 [M'] must be among the items; negatives stay."""
        own = torch.searchsorted(self.items, targets)
        column_of = torch.full_like(self.items, len(self.negatives))  # [R]
        column_of[self.negatives] = torch.arange(len(self.negatives), device=targets.device)
        return replace(self, own=own, hits=column_of[own])


def draw_negatives(targets: Tensor, items: int, generator: torch.Generator) -> Draw:
    """Draw negatives for targets int64 [M] among items ordered by descending frequency."""
    drawn = torch.unique(draw_log_uniform(items, NEGATIVES, generator)).to(targets.device)  # [S]
    items_met = torch.unique(torch.cat([targets, drawn]))  # [R], ascending
    negatives = torch.searchsorted(items_met, drawn)
    none = targets[:0]
    return Draw(items_met, none, negatives, _log_chance(drawn, items), none).of_targets(targets)


def draw_log_uniform(items: int, count: int, generator: torch.Generator) -> Tensor:
    """Item indices int64 [count], with P(k) = log((k + 2) / (k + 1)) / log(items + 1)."""
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    return ((uniform * math.log(items + 1)).exp().long() - 1).clamp_(0, items - 1)


def _log_chance(indices: Tensor, items: int) -> Tensor:
    """Logarithm of each item's chance to be among ``NEGATIVES`` draws, ``1 - (1 - p)^n``."""
    share = torch.log1p(1 / (indices.double() + 1)) / math.log(items + 1)
    return (-torch.expm1(NEGATIVES * torch.log1p(-share))).log().float()


def sampled_softmax(
    hidden: Tensor, weight: Tensor, bias: Tensor, draw: Draw, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Mean cross-entropy of hidden [M, C] over the draw's items: weight [R, C], bias [R].

    Each negative's share is divided by its chance to be drawn, so the sum over negatives is an
    unbiased estimate of the sum over all items. A negative that is a row's own target is left out.
    Products are computed in ``dtype``.
    """
    loss: Tensor = _SampledSoftmax.apply(  # type: ignore[no-untyped-call]  # torch's
        hidden, weight, bias, draw, dtype
    )
    return loss


def sampled_softmax_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean sampled cross-entropy of hidden [M, C] against targets int64 [M].

    Rows of weight [K, C] must be ordered by descending frequency.
    """
    draw = draw_negatives(targets, len(weight), generator)
    rows = functional.embedding(draw.items, weight)  # [K, C] -> [R, C]
    return sampled_softmax(hidden, rows, bias[draw.items], draw)


class _SampledSoftmax(Function):
    """Sampled softmax; its gradient is computed with the loss, in chunks that fit into a cache."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        draw: Draw,
        dtype: torch.dtype,
    ) -> Tensor:
        shifted = bias[draw.negatives] - draw.log_chance
        work = _Chunk(weight[draw.negatives].to(dtype), shifted, max(1, len(hidden)))
        positive = weight[draw.own]  # [R, C] -> [M, C]
        right = (hidden * positive).sum(1, keepdim=True) + bias[draw.own].unsqueeze(1)  # [M, 1]
        grad_hidden, grad_right = torch.empty_like(hidden), torch.empty_like(right)
        losses = [hidden.new_zeros(())]
        size = chunk_rows(len(draw.negatives), hidden.device)
        for part in range(0, len(hidden), size):
            rows = slice(part, part + size)
            loss, grad_hidden[rows], grad_right[rows] = work.run(
                hidden[rows], right[rows], draw.hits[rows]
            )
            losses.append(loss)
        grad_hidden += grad_right * positive
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        grad_weight.index_add_(0, draw.own, grad_right * hidden)
        grad_bias.index_add_(0, draw.own, grad_right.squeeze(1))
        grad_weight.index_add_(0, draw.negatives, work.grad_weight)
        grad_bias.index_add_(0, draw.negatives, work.grad_bias)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: FunctionCtx, scale: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grad * scale for grad in ctx.saved_tensors), None, None)  # type: ignore[attr-defined]  # set by torch


class _Chunk:
    """Losses and gradients of some rows against the negatives weight [S, C] and bias [S]."""

    def __init__(self, weight: Tensor, bias: Tensor, count: int) -> None:
        self.grad_weight = torch.zeros_like(weight, dtype=bias.dtype)
        self.grad_bias = torch.zeros_like(bias)
        self._weight, self._bias, self._count = weight, bias, count
        self._transposed = weight.t().contiguous()  # [S, C] -> [C, S]

    def run(self, hidden: Tensor, right: Tensor, hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Summed loss / count, and the gradients of hidden [m, C] and of right [m, 1].

        That of hidden lacks the part of the rows' own targets.
        """
        rows = hidden.to(self._weight.dtype)
        logits = biased_product(rows, self._weight, self._bias)  # [m, C] -> [m, S]
        is_hit = hits < logits.shape[1]
        at = is_hit.nonzero().squeeze(1)
        logits[at, hits[at]] = -math.inf
        top = torch.maximum(logits.amax(1, keepdim=True), right)
        exps = logits.sub_(top).exp_()
        own = (right - top).exp()
        total = exps.sum(1, keepdim=True) + own
        gradient = exps.mul_(1 / (total * self._count))
        self.grad_bias += gradient.sum(0)
        gradient = gradient.to(rows.dtype)
        self.grad_weight += product(gradient.t(), rows.t())  # [S, m] @ [m, C]
        loss = (total.log() + top - right).sum() / self._count
        return loss, product(gradient, self._transposed), (own / total - 1) / self._count


FULL_SOFTMAX_LIMIT = 20_000
"""Most items for which fine-tuning uses the exact loss by default: each user predicts few times."""

PRETRAINING_LIMIT = 5_000
"""Most items for which pretraining uses the exact loss by default. There every position predicts:
at 10,000 items the exact loss takes three times as long as the network, the sampled one half as
long."""


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

    Sampled losses rarely update a rare item, so its bias would take epochs to get there. MovieLens
    1M after four epochs: loss 5.58 instead of 5.60, and 5.548 instead of 5.553 with the exact loss.
    """
    tokens = torch.from_numpy(np.concatenate(rows))
    counts = torch.bincount(tokens - FIRST_ITEM, minlength=len(output.bias))
    output.bias.copy_(torch.log_softmax((counts + 0.5).log(), 0))


class _ChunkedCrossEntropy(Function):
    """Mean cross-entropy of ``hidden W^T + b``, its gradient computed with the loss in chunks.

    The logits of all rows never exist together, and each chunk is read while it is in the cache.
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
        transposed = weight.t().contiguous()  # [K, C] -> [C, K]
        losses = [hidden.new_zeros(1, 1)]
        size = chunk_rows(len(weight), hidden.device)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            rows = hidden[part].to(dtype)
            logits = biased_product(rows, weight, bias)  # [M, C] -> [M, K]
            loss, gradient = _loss_and_gradient(logits, targets[part], len(hidden))
            grads[2].add_(gradient.sum(0))
            gradient = gradient.to(dtype)
            grads[0][part] = product(gradient, transposed)  # [M, K] @ [K, C] -> [M, C]
            grads[1].add_(product(gradient.t(), rows.t()))  # [K, M] @ [M, C] -> [K, C]
            losses.append(loss)
        ctx.save_for_backward(*grads)
        return torch.cat(losses).sum() / max(1, len(hidden))

    @staticmethod
    def backward(ctx: FunctionCtx, scale: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grad * scale for grad in ctx.saved_tensors), None, None)  # type: ignore[attr-defined]  # set by torch


def _loss_and_gradient(logits: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Losses [M, 1] of logits [M, K], and gradients / count [M, K] that overwrite the logits."""
    own = targets.unsqueeze(1)  # [M] -> [M, 1]
    top = logits.amax(1, keepdim=True)
    right = logits.gather(1, own)
    exps = logits.sub_(top).exp_()
    total = exps.sum(1, keepdim=True)
    loss = total.log() + top - right
    gradient = exps.mul_(1 / (total * count))
    gradient.scatter_add_(1, own, torch.full_like(total, -1 / count))
    return loss, gradient


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
