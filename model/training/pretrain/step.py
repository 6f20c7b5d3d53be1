"""Contrastive pretraining: user vectors of one user's two views meet, others' part (CLUE, 2021).

One step of pretraining: rows without padding through the network, their loss, Adam.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.spec import PAD, BackboneSpec
from peterrec.model.training.data_parallel import ALONE, Workers
from peterrec.model.training.loop import require_finite
from peterrec.model.training.options import LossName
from peterrec.model.training.pretrain.examples import NO_TARGET, ExampleBatch
from peterrec.model.training.pretrain.lazy_rows import LazyRows
from peterrec.model.training.pretrain.packed_blocks import ZERO_ROW, Packing, pack, packed_states
from peterrec.model.training.pretrain.state import PretrainingState
from peterrec.model.training.softmax import (
    draw_negatives,
    full_softmax_loss,
    sampled_softmax,
)

TEMPERATURE = 0.1


def contrastive_loss(first: Tensor, second: Tensor, users: Tensor) -> Tensor:
    """InfoNCE over a batch: row i of first [B, C] belongs to row i of second [B, C].

    ``users`` int64 [B] says whose they are: another row of the same user is no rival.
    """
    similarity = functional.normalize(first) @ functional.normalize(second).t()  # [B, B]
    is_own = torch.eye(len(users), dtype=torch.bool, device=users.device)
    is_rival = users.unsqueeze(1) != users.unsqueeze(0)  # [B, B]
    similarity = (similarity / TEMPERATURE).masked_fill(~(is_rival | is_own), float("-inf"))
    return functional.cross_entropy(similarity, torch.arange(len(users), device=users.device))


@dataclass(frozen=True, slots=True)
class Views:
    """A second view of each of a batch's users, for the contrastive loss.

    Framed tokens int64 [B, T], the users int64 [B] they belong to, and the loss's weight.
    """

    tokens: Tensor
    users: Tensor
    weight: float


@dataclass(frozen=True, slots=True)
class Moment:
    """A step of the whole run, from 0: its learning rate, and where and how it computes."""

    step: int
    learning_rate: float
    generator: torch.Generator
    dtype: torch.dtype = torch.float32
    workers: Workers = ALONE


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The mean item loss of a step, and the number of targets behind it."""

    items: float
    targets: int


def train_step(
    state: PretrainingState,
    batch: ExampleBatch,
    views: Views | None,
    loss: LossName,
    at: Moment,
) -> StepLoss:
    """One step of Adam; with the sampled loss only rows of items that were read change."""
    everyone = batch if views is None else _stacked(batch, views.tokens)
    own = _share(everyone, len(batch.tokens), at.workers)
    packing = pack(own.tokens, state.backbone.spec)
    tokens = own.tokens.flatten()[packing.places]  # [B, T] -> [N]
    tables: list[LazyRows] = []
    if loss == "sampled":
        tables.append(LazyRows(state.backbone.embedding.weight, torch.unique(everyone.tokens)))
        embedded = tables[0].read(tokens)
    else:
        embedded = state.backbone.embedding(tokens)  # [N] -> [N, C]
    states = packed_states(state.backbone, embedded, packing, at.dtype)  # [1 + N, C]
    hidden, targets = predicting(states, own, packing)
    total = batch.targets[batch.targets != NO_TARGET]  # [M] of all workers
    if loss == "sampled":
        draw = draw_negatives(total, len(state.output.bias), at.generator)
        scores = [LazyRows(table, draw.items) for table in (state.output.weight, state.output.bias)]
        tables += scores
        draw = draw.of_targets(targets)
        items_loss = sampled_softmax(hidden, scores[0].weight, scores[1].weight, draw, at.dtype)
    else:
        output = state.output
        items_loss = full_softmax_loss(hidden, output.weight, output.bias, targets, at.dtype)
    items_loss = items_loss * (len(targets) / len(total))  # workers' parts add up to the mean
    objective = items_loss
    if views is not None:
        users = packed_users(states, packing, state.backbone.spec)  # [2·B', C]
        first, second = (
            at.workers.joined(half, len(views.users)) for half in torch.chunk(users, 2)
        )
        objective = items_loss + views.weight * contrastive_loss(first, second, views.users)
    state.backward(objective, tables, at.workers)
    values = torch.stack([items_loss.detach(), objective.detach()])
    at.workers.add_up([values])
    require_finite(values[1], at.step, at.learning_rate)
    state.step(at.learning_rate, tables)
    return StepLoss(float(values[0]), len(total))


def _share(everyone: ExampleBatch, rows: int, workers: Workers) -> ExampleBatch:
    """This worker's rows of a batch, and of the views behind them."""
    part = workers.share(rows)
    behind = slice(rows + part.start, rows + part.stop)  # empty without views
    return ExampleBatch(
        *(torch.cat([x[part], x[behind]]) for x in (everyone.tokens, everyone.targets))
    )


def predicting(states: Tensor, batch: ExampleBatch, packing: Packing) -> tuple[Tensor, Tensor]:
    """Of packed states [1 + N, C], those [M, C] that predict something, and their targets [M]."""
    targets = batch.targets.flatten()[packing.places]  # [B, T] -> [N]
    at = (targets != NO_TARGET).nonzero().squeeze(1)  # [M]
    return states[ZERO_ROW + at], targets[at]


def packed_users(states: Tensor, packing: Packing, spec: BackboneSpec) -> Tensor:
    """User vectors [B, C] of packed states [1 + N, C], as ``backbone.pool`` reads them."""
    last = states[packing.last]
    return last if spec.is_causal else last + states[packing.first]


def _stacked(batch: ExampleBatch, views: Tensor) -> ExampleBatch:
    """The views as further rows that predict nothing: tokens and targets [2B, T]."""
    width = max(batch.tokens.shape[1], views.shape[1])
    tokens = [functional.pad(t, (width - t.shape[1], 0), value=PAD) for t in (batch.tokens, views)]
    targets = functional.pad(
        batch.targets, (width - batch.targets.shape[1], 0, 0, len(views)), value=NO_TARGET
    )
    return ExampleBatch(torch.cat(tokens), targets)
