"""From histories to token rows: what the network reads for a user."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.spec import CLS, PAD, BackboneSpec

Tokens = Sequence[int] | np.ndarray


def frame_histories(histories: Sequence[Tokens], spec: BackboneSpec) -> Tensor:
    """Token ids int64 [B, T] of a batch of histories (token ids, oldest first).

    The newest ``max_len`` items are kept; ``[CLS]`` follows them and, if the backbone is
    non-causal, also precedes them; PAD fills the left. T is the longest row's length, or the
    fixed ``frame_len`` if padding is embedded. In an embedded non-causal row the first ``[CLS]``
    stands at position 0, before the padding, as in the published code.
    """
    frames = [_frame(history, spec) for history in histories]
    longest = max((len(frame) for frame in frames), default=1)
    width = spec.frame_len if spec.padding == "embedded" else longest
    tokens = np.full((len(frames), width), PAD, dtype=np.int64)  # [B, T]
    for row, frame in zip(tokens, frames, strict=True):
        row[width - len(frame) :] = frame
        if spec.padding == "embedded" and not spec.is_causal:
            row[width - len(frame)] = PAD
            row[0] = CLS
    return torch.from_numpy(tokens)


def _frame(history: Tokens, spec: BackboneSpec) -> list[int]:
    newest = [int(token) for token in history[-spec.max_len :]]
    return [*newest, CLS] if spec.is_causal else [CLS, *newest, CLS]
