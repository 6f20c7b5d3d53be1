"""From histories to token rows: truncation, [CLS] and padding.

The only place that knows how a backbone pads (``BackboneSpec.padding``). With ``embedded`` padding,
which the published checkpoints need, a history is filled with PAD tokens to the fixed length; from
there on it is a full history like any other, and no forward treats it differently.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from peterrec.model.spec import CLS, PAD, BackboneSpec

Tokens = Sequence[int] | np.ndarray
"""Token ids of a history, oldest first."""


def filled(histories: Sequence[Tokens], spec: BackboneSpec) -> Sequence[Tokens]:
    """Histories as the network's blocks read them.

    With ``exact`` padding they are returned as they are. With ``embedded`` padding each is an array
    of ``max_len`` tokens: its newest items behind as many PAD tokens as it lacks.
    """
    if spec.padding == "exact":
        return histories
    rows = np.full((len(histories), spec.max_len), PAD, dtype=np.int32)
    for row, history in zip(rows, histories, strict=True):
        newest = history[-spec.max_len :]
        row[spec.max_len - len(newest) :] = newest
    return list(rows)


def items_of(history: np.ndarray) -> np.ndarray:
    """The items of a filled history [T]: what a reader sees, without the PAD tokens in front."""
    is_filled = len(history) > 0 and history[0] == PAD
    return history[history != PAD] if is_filled else history


def frame_histories(histories: Sequence[Tokens], spec: BackboneSpec) -> Tensor:
    """Token ids int64 [B, T] of a batch of histories (token ids, oldest first).

    The newest ``max_len`` items are kept; ``[CLS]`` follows them and, if the backbone is
    non-causal, also precedes them; PAD fills the left up to the longest row. With ``embedded``
    padding all rows are ``max_input_len`` long, and the first ``[CLS]`` of a non-causal row is
    in front of the padding, as in the published code.
    """
    newest = [history[-spec.max_len :] for history in filled(histories, spec)]
    width = spec.input_len(max((len(items) for items in newest), default=0))
    tokens = np.full((len(newest), width), PAD, dtype=np.int64)  # [B, T]
    tokens[:, -1] = CLS
    for row, items in zip(tokens, newest, strict=True):
        row[width - 1 - len(items) : width - 1] = items
        if not spec.is_causal:
            row[width - 2 - len(items)] = CLS
    return torch.from_numpy(tokens)


def positions_read(tokens: Tensor, spec: BackboneSpec) -> Tensor:
    """Which positions of collated tokens [B, T] belong to a row, bool [B, T]; others are zero."""
    return tokens != PAD if spec.padding == "exact" else torch.ones_like(tokens, dtype=torch.bool)
