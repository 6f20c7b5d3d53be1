"""From histories to token rows: what the network reads for a user."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from peterrec.model.spec import CLS, PAD, BackboneSpec

Tokens = Sequence[int] | np.ndarray


def frame_histories(histories: Sequence[Tokens], spec: BackboneSpec) -> Tensor:
    """Token ids int64 [B, T] of a batch of histories (token ids, oldest first).

    The newest ``max_len`` items are kept; ``[CLS]`` follows them and, if the backbone is
    non-causal, also precedes them; PAD fills the left. T is the longest row's length, or the
    fixed ``frame_len`` if padding is embedded. In an embedded non-causal row the first ``[CLS]``
    stands at position 0, before the padding, as in the published code.
    """
    newest = [history[-spec.max_len :] for history in histories]
    longest = spec.framed_len(max((len(items) for items in newest), default=0))
    width = spec.frame_len if spec.padding == "embedded" else longest
    tokens = np.full((len(newest), width), PAD, dtype=np.int64)  # [B, T]
    tokens[:, -1] = CLS
    for row, items in zip(tokens, newest, strict=True):
        row[width - 1 - len(items) : width - 1] = items
        if not spec.is_causal:
            row[0 if spec.padding == "embedded" else width - 2 - len(items)] = CLS
    return torch.from_numpy(tokens)
