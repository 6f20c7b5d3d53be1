"""Random backbones, patches and heads for tests, with weights large enough to reveal mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peterrec.model.network.backbone import Backbone, new_patch
from peterrec.model.network.collate import PackedHistories, frame_histories
from peterrec.model.network.heads import Head
from peterrec.model.network.item_table import ItemTable, logits_of
from peterrec.model.network.patch import PatchWeights
from peterrec.model.spec import FIRST_ITEM, BackboneSpec, HeadSpec, PatchGeometry, TableSpec

WEIGHT_STD = 0.3


@dataclass(frozen=True)
class RandomTask:
    """A task's weights, with the reference forward for one history."""

    backbone: Backbone
    patch: PatchWeights
    head: Head
    table: ItemTable | None = None

    def user_vector(self, history: Sequence[int]) -> Tensor:
        """Compute the user vector [C] of one history with the reference."""
        tokens = frame_histories([history], self.backbone.spec)
        with torch.inference_mode():
            return self.backbone.user_vectors(tokens, self.patch)[0]

    def logits(self, history: Sequence[int]) -> Tensor:
        """Compute the logits [K] of one history with the reference."""
        with torch.inference_mode():
            users = self.user_vector(history).unsqueeze(0)
            return logits_of(self.head, users, self.table, [history])[0]


def random_backbone(spec: BackboneSpec, seed: int = 0) -> Backbone:
    """A backbone in evaluation mode with random weights and biases."""
    torch.manual_seed(seed)
    backbone = Backbone(spec).eval().requires_grad_(False)
    for parameter in backbone.parameters():
        parameter.normal_(std=WEIGHT_STD)
    return backbone


def random_task(
    backbone: Backbone, geometry: PatchGeometry, head: HeadSpec, seed: int
) -> RandomTask:
    """A task with random patch and head weights."""
    torch.manual_seed(seed)
    patch = new_patch(backbone, geometry).requires_grad_(False)
    for parameter in patch.parameters():
        parameter.normal_(std=WEIGHT_STD)
    output = Head(head, backbone.spec.channels).requires_grad_(False)
    for parameter in output.parameters():
        parameter.normal_(std=WEIGHT_STD)
    return RandomTask(backbone, patch.weights(), output)


def random_table(
    spec: BackboneSpec, outputs: int, seed: int, form: TableSpec | None = None, share: float = 0.7
) -> ItemTable:
    """An item table of a form; about ``share`` of the items have a row, whatever the form says."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(spec.item_count, outputs, generator=generator)
    weight[torch.rand(spec.item_count, generator=generator) > share] = 0
    return ItemTable.quantized(weight, form or TableSpec(spec.item_count))


def random_history(spec: BackboneSpec, length: int, seed: int) -> list[int]:
    """Token ids of ``length`` random items."""
    items = np.random.default_rng(seed).integers(FIRST_ITEM, spec.token_count, length)
    return [int(item) for item in items]


def packed(histories: Sequence[Sequence[int]], before: int = 2) -> PackedHistories:
    """Histories in one array, behind some tokens that belong to none of them."""
    tokens = [FIRST_ITEM] * before + [token for own in histories for token in own]
    stops = before + np.cumsum([len(own) for own in histories])
    starts = stops - [len(own) for own in histories]
    return PackedHistories(np.array(tokens, np.int32), starts, stops)
