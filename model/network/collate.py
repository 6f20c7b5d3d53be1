"""From histories to token rows: truncation, [CLS] and padding.

The only place that knows how a backbone pads (``BackboneSpec.padding``). With ``embedded`` padding,
which the published checkpoints need, a history is filled with PAD tokens to the fixed length; from
there on it is a full history like any other, and no forward treats it differently.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peterrec.model.spec import CLS, PAD, BackboneSpec

Tokens = Sequence[int] | np.ndarray
"""Token ids of a history, oldest first."""


@dataclass(frozen=True, slots=True)
class PackedHistories:
    """Histories one after the other in one array, so that none of them is an object.

    History i is ``tokens[starts[i]:stops[i]]``, oldest first; ``tokens`` are int32 [N].
    """

    tokens: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """How many tokens each history has [B]."""
        return self.stops - self.starts

    def listed(self) -> list[Tokens]:
        """Each history as an array of its own, which shows a part of ``tokens``."""
        bounds = zip(self.starts.tolist(), self.stops.tolist(), strict=True)
        return [self.tokens[start:stop] for start, stop in bounds]

    def part(self, rows: slice) -> "PackedHistories":
        """Some neighbours."""
        return PackedHistories(self.tokens, self.starts[rows], self.stops[rows])

    def newest(self, most: int) -> "PackedHistories":
        """The newest ``most`` tokens of each history."""
        return PackedHistories(self.tokens, np.maximum(self.starts, self.stops - most), self.stops)

    def joined(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """The tokens of some histories, one history after the other."""
        if not len(rows):
            return self.tokens[:0]
        starts, stops = self.starts[rows], self.stops[rows]
        if np.array_equal(starts[1:], stops[:-1]):  # neighbours, without a gap
            return self.tokens[starts[0] : stops[-1]]
        lengths = stops - starts
        before = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
        joined: npt.NDArray[np.int32] = self.tokens.take(places)
        return joined


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


def filled_packed(histories: PackedHistories, spec: BackboneSpec) -> PackedHistories:
    """The newest tokens of packed histories as the network reads them, see ``filled``."""
    newest = histories.newest(spec.max_len)
    if spec.padding == "exact":
        return newest
    rows = np.full((len(newest), spec.max_len), PAD, dtype=np.int32)
    is_item = np.arange(spec.max_len) >= spec.max_len - newest.lengths[:, None]  # [B, T]
    rows[is_item] = newest.joined(np.arange(len(newest), dtype=np.int32))
    starts = np.arange(len(newest), dtype=np.int64) * spec.max_len
    return PackedHistories(rows.reshape(-1), starts, starts + spec.max_len)


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
