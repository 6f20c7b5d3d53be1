"""Self-supervised examples: the next item (causal), or hidden items (non-causal, as in GRec)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peterrec.model.network.collate import frame_histories
from peterrec.model.spec import FIRST_ITEM, MASK, BackboneSpec
from peterrec.model.training.batches import drop_items
from peterrec.model.training.next_items import UNKNOWN, HeldOutItems

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


MakeBatch = Callable[[Sequence[TokenRow], BackboneSpec, torch.Generator], ExampleBatch]


def cut_windows(
    rows: Sequence[TokenRow], max_len: int, generator: torch.Generator | None = None
) -> Windows:
    """Cut each history, from its newest end, into windows of ``max_len`` inputs and one target.

    Neighbours share one item, the last target of one and the first input of the other, so each item
    except a history's first is a target once. Histories of a single item give no window.

    Only the oldest window of a history is shorter. With a generator the newest one is shortened in
    its favour, by a random number of targets, so that the cuts of a long history differ from epoch
    to epoch; there are as many windows as without.
    """
    draws = np.zeros(len(rows))
    if generator is not None:
        draws = torch.rand(len(rows), generator=generator, dtype=torch.float64).numpy()
    windows = [
        (user, max(0, end - targets - 1), end)
        for user, (row, draw) in enumerate(zip(rows, draws.tolist(), strict=True))
        for end, targets in _window_ends(len(row), max_len, draw)
    ]
    return np.array(windows, dtype=np.int64).reshape(-1, 3)


def _window_ends(length: int, max_len: int, draw: float) -> Iterator[tuple[int, int]]:
    """Ends of a history's windows, newest first, and how many targets each has at most."""
    if length < 2:
        return
    missing = (1 - length) % max_len if length - 1 > max_len else 0  # in the oldest window
    newest = max_len - int(draw * (missing + 1))
    yield length, newest
    for end in range(length - newest, 1, -max_len):
        yield end, max_len


def newest_items(held_out: HeldOutItems) -> list[TokenRow]:
    """Histories of token ids that end with the item to predict.

    Users whose next item is unknown, or who have no item before it, are left out.
    """
    return [
        np.append(row, target + FIRST_ITEM)
        for row, target in zip(held_out.rows, held_out.targets.tolist(), strict=True)
        if target != UNKNOWN and len(row)
    ]


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


def newest_item_batch(
    windows: Sequence[TokenRow], spec: BackboneSpec, generator: torch.Generator
) -> ExampleBatch:
    """Only each window's last item is predicted, from the state that predicts it when it is asked.

    That is the newest item's state, or of a non-causal backbone a mask in the next item's place.
    """
    behind = np.array([] if spec.is_causal else [MASK], dtype=np.int64)
    tokens = frame_histories([np.append(window[:-1], behind) for window in windows], spec)
    targets = torch.full_like(tokens, NO_TARGET)  # [B, T]
    targets[:, -2] = torch.tensor([int(window[-1]) - FIRST_ITEM for window in windows])
    return ExampleBatch(tokens, targets)


def shorten(
    windows: Sequence[TokenRow], mean_share: float, generator: torch.Generator
) -> list[TokenRow]:
    """Leave a random share of its items out of each window that keeps two items or more."""
    kept = drop_items(windows, mean_share, generator)
    return [own if len(own) > 1 else window for own, window in zip(kept, windows, strict=True)]


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
