"""Heads of different kinds and widths, scored together for the rows of one batch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from peterrec.model.inference.forward import table_forward
from peterrec.model.inference.item_tables import (
    BatchTables,
    TableWeights,
    packed_table,
    table_bytes,
    without_each,
)
from peterrec.model.inference.top_k import CatalogRanking, CatalogWeights, RowScores, Selection
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.kinds import KINDS
from peterrec.model.network.collate import Tokens
from peterrec.model.network.item_table import ItemTable
from peterrec.model.spec import FIRST_ITEM, HeadSpec, TableSpec

__all__ = ["HeadRef", "MixedHeads", "RowScores", "Selection"]

FLOAT_BYTES = 4


class HeadBytes(NamedTuple):
    """Bytes that a head takes on the device: of the part that stays there, and of the large one."""

    pooled: int
    large: int = 0


class HeadRef(NamedTuple):
    """A resident head: a slot of a pool, or its own tensors if it ranks a catalog.

    Both may have an item table. One that ranks a catalog has it in its catalog weights, too.
    """

    spec: HeadSpec
    pool: WeightPool | None
    slot: int
    catalog: CatalogWeights | None = None
    table: TableWeights | None = None

    @property
    def large(self) -> CatalogWeights | TableWeights | None:
        """The part that may be evicted from the device."""
        return self.catalog or self.table

    @property
    def size(self) -> HeadBytes:
        """Bytes that the head takes on the device while it is there."""
        pooled = 0 if self.pool is None else self.pool.slot_bytes
        return HeadBytes(pooled, 0 if self.large is None else self.large.size_bytes)

    @property
    def is_here(self) -> bool:
        """True unless a part of it has been evicted from the device."""
        return self.large is None or self.large.is_here


class MixedHeads:
    """All resident heads. Used by one thread, the device's owner.

    ``token_count`` is the number of the backbone's token ids.
    """

    def __init__(self, channels: int, device: torch.device, token_count: int = 0) -> None:
        self._channels = channels
        self._device = device
        self._token_count = token_count
        self._pools: dict[int, WeightPool] = {}
        self._ranking = CatalogRanking(device)
        self._tables = table_forward(device, token_count)

    def size(self, spec: HeadSpec, table: ItemTable | None = None) -> HeadBytes:
        """Bytes that a head takes on the device, where every head has a bias."""
        own = FLOAT_BYTES * spec.outputs * (self._channels + 1)
        added = 0 if table is None else table_bytes(table)
        return HeadBytes(0, own + added) if _has_catalog(spec) else HeadBytes(own, added)

    def add(
        self,
        spec: HeadSpec,
        tensors: Mapping[str, Tensor],
        temperature: float = 1.0,
        table: ItemTable | None = None,
    ) -> HeadRef:
        """Store ``head.weight`` and ``head.bias``, and a table; a temperature is folded into them.

        A table is added to logits, which are divided by the temperature, or before a head that
        ranks a catalog to user vectors, which are not.
        """
        size = self.size(spec, table)
        weights = None if table is None else TableWeights(table_bytes(table))
        if _has_catalog(spec):
            ref = HeadRef(spec, None, 0, CatalogWeights(size.large, table=weights), weights)
            packed = {} if table is None else {"table": packed_table(table)}
            self.put_back(ref, {**tensors, **packed}, temperature)
            return ref
        if table is not None and weights is not None:
            weights.put(packed_table(table, temperature).to(self._device))
        pool = self._pool(spec.outputs)
        return HeadRef(spec, pool, pool.write(_tempered(spec, tensors, temperature)), None, weights)

    def put_back(
        self, ref: HeadRef, tensors: Mapping[str, Tensor], temperature: float = 1.0
    ) -> None:
        """Store the large part of a head again; tensors on the device already are not copied.

        It is ``head.weight`` and ``head.bias`` of a ranking, and ``table``, the buffer of a table.
        """
        if ref.table is not None:
            ref.table.put(tensors["table"].to(self._device))
        if ref.catalog is not None:
            weights = _tempered(ref.spec, tensors, temperature, self._device)
            ref.catalog.weight, ref.catalog.bias = weights["head.weight"], weights["head.bias"]

    def warm_up(self) -> None:
        """Add one small table, so that the first bundle with one need not compile."""
        items, codes = torch.tensor([FIRST_ITEM]), torch.zeros(1, 1, dtype=torch.int8)
        weights = {"head.weight": torch.zeros(1, self._channels)}
        ref = self.add(
            HeadSpec("value", 1),
            weights,
            1.0,
            ItemTable(TableSpec(1), items, codes, torch.zeros(1)),
        )
        users = torch.zeros(1, self._channels, device=self._device)
        self.scores(users, [ref], [Selection()], [[FIRST_ITEM]])
        self.remove(ref)

    def remove(self, ref: HeadRef) -> None:
        """Free the head's memory; no row may be waiting for it."""
        if ref.pool is not None:
            ref.pool.release(ref.slot)
        if ref.large is not None:
            ref.large.take_off()

    @torch.inference_mode()
    def logits(
        self, users: Tensor, ref: HeadRef, columns: Tensor, histories: Sequence[Tokens] = ()
    ) -> Tensor:
        """Logits [B, m] of one head at int64 columns [m], for user vectors [B, C].

        ``histories`` are the rows' whole histories, which an item table reads.
        """
        if ref.catalog is not None:
            weight, bias = ref.catalog.weight, ref.catalog.bias
            if ref.table is not None:
                users = _copied(users)
                self._batch_tables([ref] * len(users), histories).add(users)
        else:
            assert ref.pool is not None
            ref.pool.await_writes()
            tensors = ref.pool.tensors
            weight, bias = tensors["head.weight"][ref.slot], tensors["head.bias"][ref.slot]
        assert weight is not None
        assert bias is not None
        if ref.table is None or ref.catalog is not None:
            return torch.addmm(bias[columns], users, weight[columns].T)
        logits = torch.addmm(bias, users, weight.T)  # [B, K]
        self._batch_tables([ref] * len(users), histories).add(logits)
        return logits[:, columns]

    @torch.inference_mode()
    def scores(
        self,
        users: Tensor,
        refs: Sequence[HeadRef],
        selections: Sequence[Selection],
        histories: Sequence[Tokens] = (),
    ) -> list[RowScores]:
        """Each row's scores: user vectors [B, C], row i by head i; all heads are on the device.

        ``histories[i]`` is the whole history of row i if its head has an item table. Rows of one
        history should have the same object, whose items are then listed once.
        """
        groups = _grouped(refs)
        read = [
            None if each.is_raw and ref.catalog is None else ref.table
            for ref, each in zip(refs, selections, strict=True)
        ]
        tables = BatchTables(self._tables, read, histories, groups)
        out: list[RowScores | None] = [None] * len(refs)
        for group, rows in enumerate(groups):
            is_all = len(groups) == 1
            chosen = users if is_all else users[torch.tensor(rows, device=users.device)]  # [b, C]
            catalog = refs[rows[0]].catalog
            if catalog is not None:
                if catalog.table is not None:
                    chosen = _copied(chosen)
                    tables.add(chosen, group)
                found = self._ranking.top(chosen, catalog, [selections[row] for row in rows])
            else:
                logits = _logits(chosen, [refs[row] for row in rows])
                tables.add(logits, group)
                are_raw = [selections[row].is_raw for row in rows]
                scores = _scores(refs[rows[0]].spec.kind, logits, are_raw)
                found = [RowScores(row) for row in scores.cpu().numpy()]
            for row, each in zip(rows, found, strict=True):
                out[row] = each
        return [scores for scores in out if scores is not None]

    @torch.inference_mode()
    def table_without_each(self, ref: HeadRef, history: Tokens, items: Tokens) -> RowScores:
        """What a head's table adds to the logits, float32 [(1 + items) · K], row after row.

        The first row is of a whole history, the others of it without each of the items (tokens).
        """
        assert ref.table is not None
        assert ref.table.packed is not None
        added = without_each(ref.table.packed, ref.spec.outputs, history, items)
        return RowScores(added.flatten().numpy())

    def _batch_tables(self, refs: Sequence[HeadRef], histories: Sequence[Tokens]) -> BatchTables:
        return BatchTables(self._tables, [ref.table for ref in refs], histories)

    def _pool(self, outputs: int) -> WeightPool:
        if outputs not in self._pools:
            shapes = {"head.weight": (outputs, self._channels), "head.bias": (outputs,)}
            self._pools[outputs] = WeightPool(shapes, self._device)
        return self._pools[outputs]


def _has_catalog(spec: HeadSpec) -> bool:
    return KINDS[spec.kind].has_catalog


def _copied(users: Tensor) -> Tensor:
    """User vectors [B, C] that a table may be added to in place."""
    return users.clone(memory_format=torch.contiguous_format)


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


def _logits(users: Tensor, refs: Sequence[HeadRef]) -> Tensor:
    """Logits [b, K] of heads of one pool, without their tables."""
    pool = refs[0].pool
    assert pool is not None
    pool.await_writes()
    slots = torch.tensor([ref.slot for ref in refs], device=users.device)
    weight, bias = pool.tensors["head.weight"][slots], pool.tensors["head.bias"][slots]
    # A batched product rounds differently for other numbers of rows; this gives equal bits always.
    return weight.mul_(users.unsqueeze(1)).sum(2).add_(bias)  # [b, K, C] -> [b, K]


def _scores(kind: str, logits: Tensor, are_raw: Sequence[bool]) -> Tensor:
    """Scores [b, K] of a kind from logits [b, K], which stay as they are where a row is raw."""
    scores = KINDS[kind].scores(logits)
    if not any(are_raw):
        return scores
    is_raw = torch.tensor(are_raw, device=logits.device).unsqueeze(1)  # [b, 1]
    return torch.where(is_raw, logits, scores)
