"""Self-supervised examples: the next item (causal), or hidden items (non-causal, as in GRec)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peterrec.model.network.collate import frame_histories
from peterrec.model.spec import FIRST_ITEM, MASK, BackboneSpec

MASKED_SHARE = 0.3
"""Share of items that a non-causal backbone must predict, as in the published code."""

VIEW_SHARES = (0.3, 0.7)
"""Shortest and longest second view of a user, as shares of the history."""

NO_TARGET = -1
"""Marks positions at which nothing is predicted."""

TokenRow = npt.NDArray[np.int64]
Windows = npt.NDArray[np.int64]
"""int64 [W, 3]: index of the user's row, first and one past the last position."""


@dataclass(frozen=True, slots=True)
class ExampleBatch:
    """Framed tokens int64 [B, T] and, at each position, the item index to predict or NO_TARGET."""

    tokens: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "ExampleBatch":
        """Copy the batch to a device."""
        return ExampleBatch(self.tokens.to(device), self.targets.to(device))


MakeBatch = Callable[[Sequence[TokenRow], BackboneSpec, torch.Generator], ExampleBatch]


def cut_windows(rows: Sequence[TokenRow], max_len: int) -> Windows:
    """Cut each history, from its newest end, into windows of ``max_len`` inputs and one target.

    Neighbours share one item, the last target of one and the first input of the other, so each item
    except a history's first is a target once. Histories of a single item give no window.
    """
    windows = [
        (user, max(0, end - max_len - 1), end)
        for user, row in enumerate(rows)
        for end in range(len(row), 1, -max_len)
    ]
    return np.array(windows, dtype=np.int64).reshape(-1, 3)


def next_item_batch(
    windows: Sequence[TokenRow], spec: BackboneSpec, generator: torch.Generator
) -> ExampleBatch:
    """Each position predicts the item that follows; ``[CLS]`` predicts the window's last one.

    ``[CLS]`` is in the loss so that its embedding, which every task reads from, is trained too
    (in the published code it keeps its random start).
    """
    tokens = frame_histories([window[:-1] for window in windows], spec)  # [B, T]
    targets = np.full(tuple(tokens.shape), NO_TARGET, dtype=np.int64)
    for row, window in zip(targets, windows, strict=True):
        row[-len(window) : -1] = window[1:] - FIRST_ITEM
        row[-1] = window[-1] - FIRST_ITEM
    return ExampleBatch(tokens, torch.from_numpy(targets))


def cloze_batch(
    windows: Sequence[TokenRow], spec: BackboneSpec, generator: torch.Generator
) -> ExampleBatch:
    """Replace 30 % of the items, at least one per row, by MASK; only these are predicted."""
    tokens = frame_histories(windows, spec)  # [B, T]
    draws = torch.rand(tokens.shape, generator=generator).masked_fill(tokens < FIRST_ITEM, 2.0)
    is_hidden = (draws < MASKED_SHARE) | (draws == draws.amin(1, keepdim=True))
    targets = torch.where(is_hidden, tokens - FIRST_ITEM, NO_TARGET)
    return ExampleBatch(tokens.masked_fill(is_hidden, MASK), targets)


def batch_maker(spec: BackboneSpec) -> MakeBatch:
    """The self-supervised task of a causal or a non-causal backbone."""
    return next_item_batch if spec.is_causal else cloze_batch


def second_views(
    rows: Sequence[TokenRow], spec: BackboneSpec, generator: torch.Generator
) -> Tensor:
    """Framed tokens int64 [B, T] of a random stretch of each whole history."""
    low, high = VIEW_SHARES
    share, place = torch.rand(2, len(rows), generator=generator).tolist()
    views = []
    for row, s, p in zip(rows, share, place, strict=True):
        length = min(spec.max_len, max(1, round(len(row) * (low + s * (high - low)))))
        start = int(p * (len(row) - length + 1))
        views.append(row[start : start + length])
    return frame_histories(views, spec)
