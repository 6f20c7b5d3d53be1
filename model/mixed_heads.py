"""Heads of different kinds and widths, scored together for the rows of one batch."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.heads import HEAD_KINDS
from model.slab import Slab
from model.spec import HeadSpec

LOGITS_AT_ONCE = 1 << 24
"""Ranking logits held at a time (64 MiB), whatever the catalog and the batch."""


@dataclass(frozen=True, slots=True)
class HeadRef:
    """Where a head lies: a slot of a slab, or its own tensors if it ranks a catalog."""

    spec: HeadSpec
    slab: Slab | None
    slot: int
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes on the device."""
        own = sum(t.numel() * t.element_size() for t in (self.weight, self.bias) if t is not None)
        return own if self.slab is None else self.slab.slot_bytes


@dataclass(frozen=True, slots=True)
class Selection:
    """What a ranking row asks for: catalog indices int64; candidates None means the whole."""

    top_k: int = 0
    excluded: np.ndarray | None = None
    candidates: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class RowScores:
    """One row's scores float32: one per output, or the top-k's with their catalog indices."""

    values: np.ndarray
    indices: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


class MixedHeads:
    """All resident heads. Used by one thread, the device's owner."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self._channels = channels
        self._device = device
        self._slabs: dict[int, Slab] = {}

    def add(
        self, spec: HeadSpec, tensors: Mapping[str, Tensor], temperature: float = 1.0
    ) -> HeadRef:
        """Store ``head.weight`` and ``head.bias``; a temperature is folded into them."""
        weight = tensors["head.weight"].to(self._device) / temperature
        bias = tensors.get("head.bias", torch.zeros(spec.outputs)).to(self._device) / temperature
        if spec.kind == "ranking":
            return HeadRef(spec, None, 0, weight, bias)
        slab = self._slab(spec.outputs)
        return HeadRef(spec, slab, slab.write({"head.weight": weight, "head.bias": bias}))

    def remove(self, ref: HeadRef) -> None:
        """Give the head's memory back; no row may be waiting for it."""
        if ref.slab is not None:
            ref.slab.release(ref.slot)

    @torch.inference_mode()
    def logits(self, users: Tensor, ref: HeadRef) -> Tensor:
        """Logits [B, K] of one head for user vectors [B, C]."""
        if ref.slab is None:
            assert ref.weight is not None
            assert ref.bias is not None
            return torch.addmm(ref.bias, users, ref.weight.T)
        weight, bias = ref.slab.tensors["head.weight"], ref.slab.tensors["head.bias"]
        return torch.addmm(bias[ref.slot], users, weight[ref.slot].T)

    @torch.inference_mode()
    def scores(
        self, users: Tensor, refs: Sequence[HeadRef], selections: Sequence[Selection]
    ) -> list[RowScores]:
        """Each row's scores: user vectors [B, C], row i by head i."""
        out: list[RowScores | None] = [None] * len(refs)
        for rows in _grouped(range(len(refs)), refs):
            chosen = users[torch.tensor(rows, device=users.device)]  # [b, C]
            if refs[rows[0]].slab is None:
                found = self._ranked(chosen, refs[rows[0]], [selections[row] for row in rows])
            else:
                found = _small(chosen, [refs[row] for row in rows])
            for row, scores in zip(rows, found, strict=True):
                out[row] = scores
        return [scores for scores in out if scores is not None]

    def _slab(self, outputs: int) -> Slab:
        if outputs not in self._slabs:
            shapes = {"head.weight": (outputs, self._channels), "head.bias": (outputs,)}
            self._slabs[outputs] = Slab(shapes, self._device)
        return self._slabs[outputs]

    def _ranked(
        self, users: Tensor, ref: HeadRef, selections: Sequence[Selection]
    ) -> Iterable[RowScores]:
        at_once = max(1, LOGITS_AT_ONCE // ref.spec.outputs)
        for start in range(0, len(users), at_once):
            logits = self.logits(users[start : start + at_once], ref)  # [b, N]
            yield from _top_k(logits, selections[start : start + at_once])


def _grouped(rows: Iterable[int], refs: Sequence[HeadRef]) -> list[list[int]]:
    """Rows that can be scored together: equal kind and slab, or the same ranking head."""
    groups: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for row in rows:
        ref = refs[row]
        groups[ref.spec.kind, id(ref.weight if ref.slab is None else ref.slab)].append(row)
    return list(groups.values())


def _small(users: Tensor, refs: Sequence[HeadRef]) -> list[RowScores]:
    slab, kind = refs[0].slab, refs[0].spec.kind
    assert slab is not None
    slots = torch.tensor([ref.slot for ref in refs], device=users.device)
    weight, bias = slab.tensors["head.weight"][slots], slab.tensors["head.bias"][slots]
    logits = torch.baddbmm(bias.unsqueeze(2), weight, users.unsqueeze(2)).squeeze(2)  # [b, K]
    return [RowScores(row) for row in HEAD_KINDS[kind].scores(logits).cpu().numpy()]


def _top_k(logits: Tensor, selections: Sequence[Selection]) -> Iterable[RowScores]:
    """Top items of logits [b, N]; excluded and unselected items are never returned."""
    for row, selection in zip(logits, selections, strict=True):
        if selection.excluded is not None and len(selection.excluded):
            row[torch.tensor(selection.excluded, device=row.device)] = -torch.inf
    largest = min(max((s.top_k for s in selections), default=0), logits.shape[1])
    values, indices = (t.cpu().numpy() for t in torch.topk(logits, largest, dim=1))
    for at, (row, selection) in enumerate(zip(logits, selections, strict=True)):
        if selection.candidates is not None:
            yield _top_candidates(row, selection)
            continue
        kept = np.isfinite(values[at, : selection.top_k])
        top = slice(0, selection.top_k)
        yield RowScores(values[at, top][kept], indices[at, top][kept])


def _top_candidates(logits: Tensor, selection: Selection) -> RowScores:
    assert selection.candidates is not None
    candidates = torch.from_numpy(np.unique(selection.candidates)).to(logits.device)
    values, at = torch.topk(logits[candidates], min(selection.top_k, len(candidates)))
    kept = torch.isfinite(values)
    return RowScores(values[kept].cpu().numpy(), candidates[at[kept]].cpu().numpy())
