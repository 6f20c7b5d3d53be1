"""Training of the item table of a ranking, on top of a trained network.

Its rows are added to the user vector, before the head (``model/network/item_table.py``): the loss
is not convex in them. So the network's user vectors stay as they are, and the table is learned from
zeros by Adam with item dropout, while the head goes on at its own rate. Few epochs at a high rate
lose less than many at a low one (decision 0113 has the figures).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from peterrec.model.network.backbone import Backbone
from peterrec.model.network.heads import Head
from peterrec.model.network.item_table import ItemTable, counted_items, normalization
from peterrec.model.progress import OnProgress, no_progress
from peterrec.model.spec import FIRST_ITEM, MAX_HISTORY_ITEMS, TableSpec
from peterrec.model.training.batches import TokenRow
from peterrec.model.training.finetune.encoders import PatchedBackbone, UserRows
from peterrec.model.training.finetune.networks import TrainedNetwork, vectors_of
from peterrec.model.training.finetune.objective_of_head import HeadObjective
from peterrec.model.training.finetune.run import FinetuneRun
from peterrec.model.training.finetune.task_rows import TaskUsers

RATE = 0.1
"""Adam's learning rate for the table; it falls linearly to 0."""

EPOCHS = 4
"""Most passes over the training users."""


@dataclass(frozen=True, slots=True)
class FittedUserTable:
    """A quantised table and the head that was trained with it, for one network's user vectors."""

    table: ItemTable
    head: Head

    @torch.no_grad()
    def vectors(self, users: Tensor, histories: Sequence[TokenRow]) -> Tensor:
        """The user vectors [B, C] of a network, with the table added."""
        return users + self.table.logits(histories).to(users.device)


def fit_user_table(
    backbone: Backbone,
    task: TaskUsers,
    network: TrainedNetwork,
    on_progress: OnProgress = no_progress,
) -> FittedUserTable:
    """Train a table for a network; the epoch with the lowest validation loss is kept."""
    device = backbone.embedding.weight.device
    users = _users(backbone, task, network).to(device)
    spec = TableSpec(len(task.examples.items))
    encoder = _UsersAndTable(users, spec)
    head = _ContinuedHead.of(network.network.head_objective, users.shape[1])
    settings = replace(task.settings, learning_rate=RATE, epochs=min(EPOCHS, task.settings.epochs))
    FinetuneRun(encoder, head, task.examples, task.split, settings).train(on_progress)
    weight = encoder.table.weight.detach().cpu()
    return FittedUserTable(ItemTable.quantized(weight, spec), head.head)


def _users(backbone: Backbone, task: TaskUsers, network: TrainedNetwork) -> Tensor:
    """User vectors [examples, C] of all users of the split."""
    encoder, split = PatchedBackbone(backbone, network.network.patch), task.split
    users = torch.zeros(len(task.examples.rows), encoder.channels)
    users[torch.from_numpy(split.validation)] = network.vectors
    users[torch.from_numpy(split.test)] = network.test_vectors
    train = torch.from_numpy(split.train)
    users[train] = vectors_of(encoder, task, train)
    return users


class _ContinuedHead(HeadObjective):
    """A head that was trained already: it does not start at the prior."""

    @classmethod
    def of(cls, trained: HeadObjective, channels: int) -> "_ContinuedHead":
        """A copy of a trained head."""
        found = cls(trained.objective, channels)
        found.head.load_state_dict(trained.head.state_dict())
        return found

    def prepare(self, rows: Tensor) -> None:
        self.restrain(rows)


class _UsersAndTable:
    """An ``Encoder``: fixed user vectors [examples, C], and a table that is added to them."""

    max_len = MAX_HISTORY_ITEMS

    def __init__(self, users: Tensor, spec: TableSpec) -> None:
        self._users, self._spec = users, spec
        self.channels, self.device = users.shape[1], users.device
        self.table = nn.Embedding(spec.items, self.channels, device=self.device)
        nn.init.zeros_(self.table.weight)

    @property
    def trained(self) -> nn.Module:
        return self.table

    def user_vectors(self, users: UserRows) -> Tensor:
        items = [counted_items(row, self._spec) for row in users.rows]
        counts = torch.tensor([len(own) for own in items])
        sums = embedding_bag(
            torch.cat(items).to(self.device) - FIRST_ITEM,
            self.table.weight,
            (counts.cumsum(0) - counts).to(self.device),
            mode="sum",
        )  # [B, C]
        factor = normalization(counts, self._spec.exponent).to(self.device)
        return self._users[users.examples.to(self.device)] + factor.unsqueeze(1) * sums
