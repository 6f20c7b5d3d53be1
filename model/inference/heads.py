"""Heads of different kinds and widths, scored together for the rows of one batch."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
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
from peterrec.model.inference.steps import Steps, finish, moved
from peterrec.model.inference.top_k import (
    CatalogRanking,
    CatalogWeights,
    Rankings,
    RowScores,
    Selection,
)
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.kinds import KINDS
from peterrec.model.network.collate import PackedHistories, Tokens
from peterrec.model.network.item_table import ItemTable
from peterrec.model.spec import FIRST_ITEM, HeadSpec, TableSpec

__all__ = ["HeadRef", "MixedHeads", "RowScores", "Selection"]

FLOAT_BYTES = 4

ROWS_PREPARED = (1, 2, 3, 4, 8, 16, 17, 32, 64, 99, 128, 200, 256)
"""Numbers of rows that each form of a head is run with before it serves on a GPU."""


PRODUCTS_AT_ONCE = 1 << 20
"""Products of a head's weights that are in memory at a time: 4 MiB, which stay in the cache."""


class HeadBytes(NamedTuple):
    """Bytes that a head takes on the device: of the part that stays there, and of the large one."""

    pooled: int
    large: int = 0


def head_bytes(spec: HeadSpec, channels: int, table: ItemTable | None = None) -> HeadBytes:
    """Return the bytes that a head takes on the device, where every head has a bias."""
    own = FLOAT_BYTES * spec.outputs * (channels + 1)
    added = 0 if table is None else table_bytes(table)
    return HeadBytes(0, own + added) if _has_catalog(spec) else HeadBytes(own, added)


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


class PreparedHead(NamedTuple):
    """A head's tensors as they are kept, and its table's buffer, on the CPU.

    Any thread may make it. ``tensors`` are ``head.weight`` and ``head.bias``.
    """

    spec: HeadSpec
    tensors: Mapping[str, Tensor]
    table: Tensor | None

    @classmethod
    def of(
        cls,
        spec: HeadSpec,
        tensors: Mapping[str, Tensor],
        temperature: float,
        table: ItemTable | None,
    ) -> "PreparedHead":
        """Fold the temperature into a head and its table, and pack the table."""
        packed = None
        if table is not None:
            packed = packed_table(table, 1.0 if _has_catalog(spec) else temperature)
        return cls(spec, _tempered(spec, tensors, temperature), packed)


class MixedHeads:
    """All resident heads. Used by one thread, the device's owner.

    ``token_count`` is the number of the backbone's token ids.
    """

    def __init__(self, channels: int, device: torch.device, token_count: int = 0) -> None:
        self._channels = channels
        self._device = device
        self._token_count = token_count
        self._pools: dict[int, WeightPool] = {}
        self._prepared: set[tuple[HeadSpec, bool]] = set()
        self._ranking = CatalogRanking(device)
        self._tables = table_forward(device, token_count)

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
        return finish(self.add_steps(PreparedHead.of(spec, tensors, temperature, table)))

    def add_steps(self, head: "PreparedHead") -> Steps[HeadRef]:
        """``add`` in steps, for a head that was prepared."""
        spec, table = head.spec, None
        if head.table is not None:
            table = TableWeights(head.table.numel())
            table.put((yield from moved(head.table, self._device)))
        if not _has_catalog(spec):
            pool = self._pool(spec.outputs)
            return HeadRef(spec, pool, (yield from pool.write_steps(head.tensors)), None, table)
        own = FLOAT_BYTES * spec.outputs * (self._channels + 1)
        catalog = CatalogWeights(own + (table.size_bytes if table else 0), table=table)
        catalog.weight = yield from moved(head.tensors["head.weight"], self._device)
        catalog.bias = head.tensors["head.bias"].to(self._device)
        return HeadRef(spec, None, 0, catalog, table)

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
        """Score with small heads of all kinds and a table, so that no request need compile."""
        items, codes = torch.tensor([FIRST_ITEM]), torch.zeros(1, 1, dtype=torch.int8)
        table = ItemTable(TableSpec(1), items, codes, torch.zeros(1))
        widths = {kind: 1 if each.outputs == "number" else 2 for kind, each in KINDS.items()}
        weights = {n: {"head.weight": torch.zeros(n, self._channels)} for n in widths.values()}
        refs = [self.add(HeadSpec(kind, n), weights[n]) for kind, n in widths.items()]
        refs.append(self.add(HeadSpec("value", 1), weights[1], 1.0, table))
        for chosen in (*([ref] for ref in refs), refs):
            for rows in (1, 2):
                self._score_zeros(list(chosen) * rows)
        for ref in refs:
            self.remove(ref)

    def prepare(self, ref: HeadRef) -> Iterator[None]:
        """Score batches of each size with a head that is loaded, in steps of milliseconds.

        A GPU's libraries load code when an operation meets a new size. Used once for each form.
        """
        form = (ref.spec, ref.catalog is not None and ref.table is not None)
        if self._device.type != "cuda" or form in self._prepared:
            return
        self._prepared.add(form)
        for rows in ROWS_PREPARED:
            if ref.is_here:  # it may have been evicted between two steps
                self._score_zeros([ref] * rows)
            yield

    def _score_zeros(self, refs: Sequence[HeadRef]) -> None:
        """Score rows that nobody asked for, in each way that a request may."""
        users = torch.zeros(len(refs), self._channels, device=self._device)
        histories = [[FIRST_ITEM]] * len(refs)
        first = np.zeros(1, np.int64)
        for selection in (
            Selection(top_k=1),
            Selection(top_k=1, excluded=first),
            Selection(top_k=1, candidates=first),
            Selection(is_raw=True),
        ):
            raw = Selection(is_raw=selection.is_raw)
            each = [raw if ref.catalog is None else selection for ref in refs]
            self.scores(users, refs, each, histories)

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
            chosen = users if is_all else users[sent(rows, users.device)]  # [b, C]
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
    def scores_of_all(
        self, users: Tensor, ref: HeadRef, histories: Sequence[Tokens] = ()
    ) -> Tensor:
        """Scores [B, K] of one head without a catalog for many user vectors [B, C].

        They stay on the device, and equal those that ``scores`` gives each row, to the bit.
        """
        assert ref.pool is not None
        ref.pool.await_writes()
        tensors = ref.pool.tensors
        weight = tensors["head.weight"][ref.slot].unsqueeze(0)  # [1, K, C]
        bias = tensors["head.bias"][ref.slot]  # [K]
        at_once = max(1, PRODUCTS_AT_ONCE // weight.numel())
        parts = [
            weight.mul(users[start : start + at_once].unsqueeze(1)).sum(2).add_(bias)  # [b, K]
            for start in range(0, len(users), at_once)
        ]
        logits = torch.cat(parts) if len(parts) > 1 else parts[0]  # [B, K]
        if ref.table is not None:
            self._batch_tables([ref] * len(users), histories).add(logits)
        return KINDS[ref.spec.kind].scores(logits)

    @torch.inference_mode()
    def top_of_all(
        self,
        users: Tensor,
        ref: HeadRef,
        top_k: int,
        excluded: PackedHistories,
        allowed: bytes | None = None,
        histories: Sequence[Tokens] = (),
    ) -> Rankings:
        """The ``top_k`` best items of one ranking head for user vectors [B, C], row by row.

        ``excluded`` are catalog indices by user, ``allowed`` bits as in ``Selection``. A row's bits
        do not depend on the other rows, nor on how many these are.
        """
        assert ref.catalog is not None
        if ref.table is not None:
            users = _copied(users)
            self._batch_tables([ref] * len(users), histories).add(users)
        return self._ranking.top_of_all(users, ref.catalog, top_k, excluded, allowed)

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


def sent(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Numbers int64 on the device. Nobody waits for the copy, nor for the work before it."""
    here = torch.tensor(numbers)
    return here if device.type == "cpu" else here.pin_memory().to(device, non_blocking=True)


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
    weights, biases = pool.tensors["head.weight"], pool.tensors["head.bias"]
    # A batched product rounds differently for other numbers of rows; this gives equal bits always.
    if len(refs) == 1:  # nothing is gathered, and no number is sent to the device
        own = slice(refs[0].slot, refs[0].slot + 1)
        product = weights[own].mul(users.unsqueeze(1))  # [1, K, C]
        return product.sum(2).add_(biases[own])  # [1, K]
    slots = sent([ref.slot for ref in refs], users.device)
    products = weights[slots].mul_(users.unsqueeze(1))  # [b, K, C]
    return products.sum(2).add_(biases[slots])  # [b, K]


def _scores(kind: str, logits: Tensor, are_raw: Sequence[bool]) -> Tensor:
    """Scores [b, K] of a kind from logits [b, K], which stay as they are where a row is raw."""
    scores = KINDS[kind].scores(logits)
    if not any(are_raw):
        return scores
    is_raw = torch.tensor(are_raw, device=logits.device).unsqueeze(1)  # [b, 1]
    return torch.where(is_raw, logits, scores)
