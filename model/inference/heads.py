"""Heads of different kinds and widths, scored together for the rows of one batch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from peterrec.model.inference.top_k import CatalogRanking, CatalogWeights, RowScores, Selection
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.kinds import KINDS
from peterrec.model.spec import HeadSpec

__all__ = ["HeadRef", "MixedHeads", "RowScores", "Selection"]

FLOAT_BYTES = 4


class HeadRef(NamedTuple):
    """A resident head: a slot of a pool, or its own tensors if it ranks a catalog."""

    spec: HeadSpec
    pool: WeightPool | None
    slot: int
    catalog: CatalogWeights | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes that the head takes on the device while it is there."""
        if self.catalog is not None:
            return self.catalog.size_bytes
        return self.pool.slot_bytes if self.pool is not None else 0

    @property
    def is_here(self) -> bool:
        """True unless it is a ranking head whose weights have been evicted from the device."""
        return self.catalog is None or self.catalog.is_here


class MixedHeads:
    """All resident heads. Used by one thread, the device's owner."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self._channels = channels
        self._device = device
        self._pools: dict[int, WeightPool] = {}
        self._ranking = CatalogRanking(device)

    def size_bytes(self, spec: HeadSpec) -> int:
        """Bytes that a head takes on the device, where every head has a bias."""
        return FLOAT_BYTES * spec.outputs * (self._channels + 1)

    def add(
        self, spec: HeadSpec, tensors: Mapping[str, Tensor], temperature: float = 1.0
    ) -> HeadRef:
        """Store ``head.weight`` and ``head.bias``; a temperature is folded into them."""
        if KINDS[spec.kind].has_catalog:
            ref = HeadRef(spec, None, 0, CatalogWeights(self.size_bytes(spec)))
            self.put_back(ref, tensors, temperature)
            return ref
        pool = self._pool(spec.outputs)
        return HeadRef(spec, pool, pool.write(_tempered(spec, tensors, temperature)))

    def put_back(
        self, ref: HeadRef, tensors: Mapping[str, Tensor], temperature: float = 1.0
    ) -> None:
        """Store a ranking head's tensors; tensors on the device already are not copied."""
        assert ref.catalog is not None
        weights = _tempered(ref.spec, tensors, temperature, self._device)
        ref.catalog.weight, ref.catalog.bias = weights["head.weight"], weights["head.bias"]

    def remove(self, ref: HeadRef) -> None:
        """Free the head's memory; no row may be waiting for it."""
        if ref.pool is not None:
            ref.pool.release(ref.slot)
        elif ref.catalog is not None:
            ref.catalog.take_off()

    @torch.inference_mode()
    def logits(self, users: Tensor, ref: HeadRef, columns: Tensor) -> Tensor:
        """Logits [B, m] of one head at int64 columns [m], for user vectors [B, C]."""
        if ref.catalog is not None:
            weight, bias = ref.catalog.weight, ref.catalog.bias
        else:
            assert ref.pool is not None
            ref.pool.await_writes()
            tensors = ref.pool.tensors
            weight, bias = tensors["head.weight"][ref.slot], tensors["head.bias"][ref.slot]
        assert weight is not None
        assert bias is not None
        return torch.addmm(bias[columns], users, weight[columns].T)

    @torch.inference_mode()
    def scores(
        self, users: Tensor, refs: Sequence[HeadRef], selections: Sequence[Selection]
    ) -> list[RowScores]:
        """Each row's scores: user vectors [B, C], row i by head i; all heads are on the device."""
        groups = _grouped(refs)
        out: list[RowScores | None] = [None] * len(refs)
        for rows in groups:
            is_all = len(groups) == 1
            chosen = users if is_all else users[torch.tensor(rows, device=users.device)]  # [b, C]
            catalog = refs[rows[0]].catalog
            if catalog is not None:
                found = self._ranking.top(chosen, catalog, [selections[row] for row in rows])
            else:
                are_raw = [selections[row].is_raw for row in rows]
                found = _small(chosen, [refs[row] for row in rows], are_raw)
            for row, scores in zip(rows, found, strict=True):
                out[row] = scores
        return [scores for scores in out if scores is not None]

    def _pool(self, outputs: int) -> WeightPool:
        if outputs not in self._pools:
            shapes = {"head.weight": (outputs, self._channels), "head.bias": (outputs,)}
            self._pools[outputs] = WeightPool(shapes, self._device)
        return self._pools[outputs]


def _tempered(
    spec: HeadSpec,
    tensors: Mapping[str, Tensor],
    temperature: float,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """A head's weight and bias divided by its temperature, moved to ``device`` if one is given."""
    weight = tensors["head.weight"].to(device)
    bias = tensors.get("head.bias", torch.zeros(spec.outputs)).to(weight.device)
    if temperature != 1.0:
        weight, bias = weight / temperature, bias / temperature
    return {"head.weight": weight, "head.bias": bias}


def _grouped(refs: Sequence[HeadRef]) -> list[list[int]]:
    """Rows that can be scored together: equal kind and pool, or the same ranking head."""
    groups: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for row, ref in enumerate(refs):
        groups[ref.spec.kind, id(ref.catalog or ref.pool)].append(row)
    return list(groups.values())


def _small(users: Tensor, refs: Sequence[HeadRef], are_raw: Sequence[bool]) -> list[RowScores]:
    pool, kind = refs[0].pool, refs[0].spec.kind
    assert pool is not None
    pool.await_writes()
    slots = torch.tensor([ref.slot for ref in refs], device=users.device)
    weight, bias = pool.tensors["head.weight"][slots], pool.tensors["head.bias"][slots]
    # A batched product rounds differently for other numbers of rows; this gives equal bits always.
    logits = weight.mul_(users.unsqueeze(1)).sum(2).add_(bias)  # [b, K, C] -> [b, K]
    scores = KINDS[kind].scores(logits)
    if any(are_raw):
        is_raw = torch.tensor(are_raw, device=users.device).unsqueeze(1)  # [b, 1]
        scores = torch.where(is_raw, logits, scores)
    return [RowScores(row) for row in scores.cpu().numpy()]
