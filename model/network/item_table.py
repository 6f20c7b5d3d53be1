"""The item table of a task: one weight per item and output over the whole history.

The network reads the newest ``max_len`` items through a frozen embedding of C channels, so all that
it can say about an item passes through C numbers. A table says it directly. With a history H of any
length, an item's weights ``q_i`` (K integers), one scale ``s_k`` per output, and the user vector
``u`` that blocks and reader give, a task's logits are

``z_k = u · W_k + b_k + s_k n^-p Σ_{i in H} q_ik``.

The head's temperature divides z as ever: there is one bias and one calibration for all parts. n is
the number of items that are counted: those of the backbone's vocabulary, each once (``presence``)
or as often as it occurs (``count``). Items without a row add nothing to the sum, but count. Unknown
items and special tokens do neither. A history without counted items adds nothing.

With ``p = 1/2`` and presence this is a linear model on the normalised set of items. An IDF
weighting of the items is a factor of their weights: it matters to the regularisation in training
alone, and is part of ``q`` here.

The integers are at most 127 and a history has at most 10,000 items, so a sum stays below 2^24. It
is exact in int32 and in float32, in any order: every forward gives equal bits, and an item's
summand ``s_k n^-p q_ik`` is exactly what it adds.

A head that ranks a catalog has too many outputs for a weight each. There K is C, and the table is
added to the user vector, before the head: ``z = (u + s n^-p Σ q_i) W^T + b``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from peterrec.model.kinds import KINDS
from peterrec.model.network.collate import Tokens
from peterrec.model.network.heads import Head
from peterrec.model.network.item_gaps import pack_gaps
from peterrec.model.spec import FIRST_ITEM, TableSpec

CLIPS = 13
"""Number of candidates for a scale of four bits, from 0.4 to 1 times that of the largest weight."""

NO_ROW = -1


@dataclass(frozen=True, slots=True)
class ItemTable:
    """Tables of one task: items int64 [N] ascending, codes int8 [N, K], scale float32 [K]."""

    spec: TableSpec
    items: Tensor
    codes: Tensor
    scale: Tensor

    @classmethod
    def quantized(cls, weight: Tensor, spec: TableSpec, tokens: Tensor | None = None) -> Self:
        """Round float32 weights [V, K] of the items with these tokens int64 [V], ascending.

        None are the vocabulary's first V items. Rows that are nothing are left out, and
        ``spec.items`` becomes the number of the others. At least one row stays.
        """
        scale = quantization_scale(weight, spec)
        codes = rounded(weight, scale, spec)  # [V, K]
        kept = codes.any(1).nonzero().flatten()  # [N]
        if not len(kept):
            kept = torch.zeros(1, dtype=torch.int64)
        found = TableSpec(len(kept), spec.bits, spec.counting, spec.exponent)
        own = kept + FIRST_ITEM if tokens is None else tokens[kept]
        return cls(found, own, codes[kept], scale)

    @property
    def size_bytes(self) -> int:
        """Size of its tensors in a bundle."""
        outputs = self.codes.shape[1]
        listed = len(pack_gaps(self.items.numpy()))
        return listed + self.spec.items * self.spec.row_bytes(outputs) + 4 * outputs

    def times(self, factor: float) -> Self:
        """The table whose logits are this one's times a factor that is not negative."""
        return replace(self, scale=self.scale * factor)

    def weights(self) -> Tensor:
        """The weights that the integers stand for, float32 [N, K]."""
        return self.codes * self.scale

    def sums(self, histories: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Sums of integers int32 [B, K], and numbers of counted items int64 [B]."""
        rows = [counted_items(history, self.spec) for history in histories]
        outputs = self.codes.shape[1]
        sums = torch.zeros(len(rows), outputs, dtype=torch.int32)  # [B, K]
        for row, items in enumerate(rows):
            at = self._rows_of(items)
            sums[row] = self.codes[at[at != NO_ROW]].sum(0, dtype=torch.int32)  # [n, K] -> [K]
        return sums, torch.tensor([len(items) for items in rows])

    def logits(self, histories: Sequence[Tokens]) -> Tensor:
        """What the table adds: float32 [B, K] of whole histories, oldest first."""
        sums, counts = self.sums(histories)
        factor = normalization(counts, self.spec.exponent)  # [B]
        return factor.unsqueeze(1) * self.scale * sums  # [B, 1] * [K] * [B, K] -> [B, K]

    def _rows_of(self, items: Tensor) -> Tensor:
        """Row of each item, ``NO_ROW`` where it has none: [n] -> [n]."""
        at = torch.searchsorted(self.items, items).clamp_(max=len(self.items) - 1)
        return torch.where(self.items[at] == items, at, NO_ROW)


def logits_of(
    head: Head, users: Tensor, table: ItemTable | None, histories: Sequence[Tokens]
) -> Tensor:
    """Logits [B, outputs] of user vectors [B, C] and whole histories, by a head and its table."""
    if table is None:
        return head.logits(users)
    added = table.logits(histories).to(users.device)
    if KINDS[head.spec.kind].has_catalog:
        return head.logits(users + added)
    return head.logits(users) + added


def counted_items(history: Tokens, spec: TableSpec) -> Tensor:
    """The tokens int64 [n] of a history that count."""
    tokens = torch.from_numpy(np.array(history, dtype=np.int64))
    items = tokens[tokens >= FIRST_ITEM]
    return torch.unique(items) if spec.counting == "presence" else items


def normalization(counts: Tensor, exponent: float) -> Tensor:
    """``n^-p`` float32 [B] of numbers of items [B], rounded once from float64; 1 for no items."""
    return counts.clamp(min=1).to(torch.float64).pow(-exponent).to(torch.float32)


def quantization_scale(weight: Tensor, spec: TableSpec) -> Tensor:
    """One scale per output, float32 [K], for weights [V, K]; 0 for an output of zeros.

    Eight bits cover the largest weight. Four bits have so few steps that cutting the largest off
    can round the others better: the candidate with the smallest squared error is taken.
    """
    full = weight.abs().amax(0) / spec.largest  # [K]
    if spec.bits == 8:
        return full
    candidates = torch.linspace(0.4, 1.0, CLIPS).unsqueeze(1) * full  # [CLIPS, K]
    errors = [(rounded(weight, s, spec) * s - weight).square().sum(0) for s in candidates]
    best = torch.stack(errors).argmin(0, keepdim=True)  # [CLIPS, K] -> [1, K]
    return candidates.gather(0, best)[0]


def rounded(weight: Tensor, scale: Tensor, spec: TableSpec) -> Tensor:
    """The nearest integers int8 [V, K] of weights [V, K] with scales [K]."""
    steps = weight / torch.where(scale > 0, scale, 1.0)
    return steps.round().clamp(-spec.largest, spec.largest).to(torch.int8)
