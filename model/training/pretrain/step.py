"""One step of pretraining: rows without padding through the network, their losses, Adam.

The contrastive loss pulls the user vectors of one user's two views together and pushes those of
different users apart (CLUE, 2021).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.spec import PAD, BackboneSpec
from peterrec.model.training.data_parallel import ALONE, Workers
from peterrec.model.training.loop import current_rate, require_finite
from peterrec.model.training.options import LossName
from peterrec.model.training.pretrain.examples import NO_TARGET, ExampleBatch
from peterrec.model.training.pretrain.lazy_rows import LazyRows
from peterrec.model.training.pretrain.packed_blocks import (
    NO_DROPOUT,
    ZERO_ROW,
    Dropout,
    Packing,
    pack,
    packed_states,
    sent,
)
from peterrec.model.training.pretrain.state import PretrainingState
from peterrec.model.training.softmax import (
    draw_negatives,
    full_softmax_loss,
    sampled_softmax,
)

TEMPERATURE = 0.1
"""Divides the cosine similarities of the contrastive loss."""


def contrastive_loss(first: Tensor, second: Tensor, users: Tensor) -> Tensor:
    """InfoNCE over a batch: row i of first [B, C] belongs to row i of second [B, C].

    ``users`` int64 [B] are the rows' users: other rows of the same user do not count as negatives.
    """
    similarity = functional.normalize(first) @ functional.normalize(second).t()  # [B, B]
    is_own = torch.eye(len(users), dtype=torch.bool, device=users.device)
    is_negative = users.unsqueeze(1) != users.unsqueeze(0)  # [B, B]
    similarity = (similarity / TEMPERATURE).masked_fill(~(is_negative | is_own), float("-inf"))
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
class StepContext:
    """The number of a step in the whole run, from 0, and where and how it computes.

    ``dropout`` is that of the network's activations.
    """

    step: int
    generator: torch.Generator
    dropout: Dropout = NO_DROPOUT
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
    context: StepContext,
) -> StepLoss:
    """Make one step of Adam; with the sampled loss only the rows of items that it reads change."""
    everyone = batch if views is None else _stacked(batch, views.tokens)
    own = _share(everyone, len(batch.tokens), context.workers)
    packing = pack(own.tokens, state.backbone.spec, state.device)
    tokens = sent(own.tokens.flatten()[packing.places], state.device)  # [B, T] -> [N]
    embedded, tables = _embedded(state, tokens, everyone.tokens, loss)
    states = packed_states(
        state.backbone, embedded, packing, context.dtype, context.dropout
    )  # [1 + N, C]
    hidden, targets = predicting(states, own, packing)
    total = batch.targets[batch.targets != NO_TARGET]  # [M] of all workers
    predicted = _Predicted(hidden, targets, sent(total, state.device))
    if loss == "sampled":
        items_loss, scores = _sampled_loss(state, predicted, context)
        tables += scores
    else:
        weight, bias = state.output.weight, state.output.bias
        items_loss = full_softmax_loss(hidden, weight, bias, targets, context.dtype)
    items_loss = items_loss * (len(targets) / len(total))  # workers' parts add up to the mean
    objective = items_loss
    if views is not None:
        users = packed_users(states, packing, state.backbone.spec)  # [2·B', C]
        first, second = (
            context.workers.joined(half, len(views.users)) for half in torch.chunk(users, 2)
        )
        own_users = sent(views.users, state.device)
        objective = items_loss + views.weight * contrastive_loss(first, second, own_users)
    state.backward(objective, tables, context.workers)
    values = torch.stack([items_loss.detach(), objective.detach()])
    context.workers.add_up([values])
    require_finite(values[1], context.step, current_rate(state.optimizer))
    state.step(tables)
    return StepLoss(float(values[0]), len(total))


@dataclass(frozen=True, slots=True)
class _Predicted:
    """This worker's predicting states [M, C], their targets [M], and those of all workers."""

    hidden: Tensor
    targets: Tensor
    all_targets: Tensor


def _embedded(
    state: PretrainingState, tokens: Tensor, everyone: Tensor, loss: LossName
) -> tuple[Tensor, list[LazyRows]]:
    """Embeddings [N, C] of this worker's tokens [N].

    With the sampled loss, only the embedding rows of all workers' tokens get gradients.
    """
    if loss == "full":
        return state.backbone.embedding(tokens), []
    read = sent(torch.unique(everyone), state.device)
    rows = LazyRows(state.backbone.embedding.weight, read)
    return rows.read(tokens), [rows]


def _sampled_loss(
    state: PretrainingState, predicted: _Predicted, context: StepContext
) -> tuple[Tensor, list[LazyRows]]:
    """Sampled softmax of the predicting states, and the output rows that it reads."""
    output = state.output
    draw = draw_negatives(predicted.all_targets, len(output.bias), context.generator)
    scores = [LazyRows(table, draw.items) for table in (output.weight, output.bias)]
    draw = draw.of_targets(predicted.targets)
    weight, bias = (table.weight for table in scores)
    return sampled_softmax(predicted.hidden, weight, bias, draw, context.dtype), scores


def _share(everyone: ExampleBatch, rows: int, workers: Workers) -> ExampleBatch:
    """This worker's rows of a batch, and of the views that follow it."""
    part = workers.share(rows)
    behind = slice(rows + part.start, rows + part.stop)  # empty without views
    return ExampleBatch(
        *(torch.cat([x[part], x[behind]]) for x in (everyone.tokens, everyone.targets))
    )


def predicting(states: Tensor, batch: ExampleBatch, packing: Packing) -> tuple[Tensor, Tensor]:
    """The packed states [M, C] that predict an item, of all [1 + N, C], and their targets [M]."""
    targets = batch.targets.flatten()[packing.places]  # [B, T] -> [N]
    at = (targets != NO_TARGET).nonzero().squeeze(1)  # [M]
    return states[sent(ZERO_ROW + at, states.device)], sent(targets[at], states.device)


def packed_users(states: Tensor, packing: Packing, spec: BackboneSpec) -> Tensor:
    """User vectors [B, C] of packed states [1 + N, C]; equal to those of ``backbone.pool``."""
    last = states[packing.last]
    return last if spec.is_causal else last + states[packing.first]


def _stacked(batch: ExampleBatch, views: Tensor) -> ExampleBatch:
    """Append the views as rows without targets: tokens and targets [2B, T]."""
    width = max(batch.tokens.shape[1], views.shape[1])
    tokens = [functional.pad(t, (width - t.shape[1], 0), value=PAD) for t in (batch.tokens, views)]
    targets = functional.pad(
        batch.targets, (width - batch.targets.shape[1], 0, 0, len(views)), value=NO_TARGET
    )
    return ExampleBatch(torch.cat(tokens), targets)
