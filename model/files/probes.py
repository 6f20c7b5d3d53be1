"""Probes: a few histories with the logits that the trainer's reference forward gives."""

from collections.abc import Sequence

import numpy as np
import torch

from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import Tokens, frame_histories
from peterrec.model.network.heads import Head
from peterrec.model.network.item_table import ItemTable, logits_of
from peterrec.model.network.patch import PatchWeights
from peterrec.model.spec import PAD

MAX_COLUMNS = 64
"""Most outputs of a head that probes record."""


@torch.no_grad()
def probe_tensors(
    backbone: Backbone,
    patch: PatchWeights,
    head: Head,
    histories: Sequence[Tokens],
    table: ItemTable | None = None,
) -> dict[str, np.ndarray]:
    """The ``probe.`` tensors of a bundle: histories int32 [n, length], columns, logits [n, m].

    The length is ``max_len``, or with an item table that of the longest history, which must be
    longer. Columns are spread evenly over the outputs. Include an empty history, the cold start.
    """
    length = max(map(len, histories)) if table else backbone.spec.max_len
    packed = np.full((len(histories), length), PAD, dtype=np.int32)
    for row, history in zip(packed, histories, strict=True):
        newest = history[-length:]
        row[length - len(newest) :] = newest
    outputs = head.spec.outputs
    columns = np.unique(np.linspace(0, outputs - 1, min(outputs, MAX_COLUMNS)).astype(np.int64))
    device = backbone.embedding.weight.device
    tokens = frame_histories(histories, backbone.spec).to(device)
    users = backbone.user_vectors(tokens, patch)
    logits = logits_of(head, users, table, histories).cpu()  # [n, K]
    return {
        "probe.histories": packed,
        "probe.columns": columns,
        "probe.logits": np.ascontiguousarray(logits.numpy()[:, columns], dtype=np.float32),
    }
