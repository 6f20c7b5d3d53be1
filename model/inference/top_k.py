"""The best items of large catalogs, exactly and within bounded memory; ties go to the lower index.

Logits are computed for a part of the catalog at a time, and the maximum of every ``GROUP`` items is
stored while they are in the cache. The k best items are in the k groups with the largest maxima, so
only those groups are searched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from peterrec.model.inference.item_tables import TableWeights
from peterrec.model.network.collate import PackedHistories

LOGITS_AT_ONCE = 1 << 24
"""Upper bound on the logits held at a time (64 MiB); a single row may exceed it."""

GROUP = 64
"""Items per group. A search looks at the maxima of all groups first."""

ROWS_OF_PRODUCT = {"cpu": 64, "cuda": 1024}
"""Rows of each product when many users are ranked, by device: more are no faster."""

LOGITS_PER_PRODUCT = 1 << 18
"""Logits of one product (1 MiB): few enough to be in the cache when their maxima are taken."""


@dataclass(slots=True, eq=False)
class CatalogWeights:
    """A ranking head's weights, which are None while they are not on the device.

    ``weight`` float32 [N, C] and ``bias`` float32 [N] take ``size_bytes`` on the device, together
    with the head's item ``table``, which comes and goes with them.
    """

    size_bytes: int
    weight: Tensor | None = None
    bias: Tensor | None = None
    table: TableWeights | None = None

    @property
    def is_here(self) -> bool:
        """True if the weights are on the device."""
        return self.weight is not None

    def take_off(self) -> None:
        """Free the memory; the weights may be put back later."""
        self.weight = self.bias = None
        if self.table is not None:
            self.table.take_off()


@dataclass(frozen=True, slots=True)
class Selection:
    """What a row asks for. A ranking's catalog indices are int64; no candidates: the whole catalog.

    ``is_raw``: logits, where a kind's scores are something else. ``allowed`` has a bit for each
    item of the catalog, the lowest of the first byte first: only those whose bit is set may be
    returned; None means all. It does not restrict candidates.
    """

    top_k: int = 0
    excluded: np.ndarray | None = None
    candidates: np.ndarray | None = None
    is_raw: bool = False
    allowed: bytes | None = None


NO_INDICES = np.empty(0, np.int64)


class RowScores(NamedTuple):
    """One row's scores float32: one per output, or the top-k's with their catalog indices."""

    values: np.ndarray
    indices: np.ndarray = NO_INDICES


@dataclass(frozen=True, slots=True)
class Rankings:
    """The best items of many users, row by row: scores float32 and catalog indices, both [B, k].

    Row i has ``counts[i]`` of them, as a user may have had nearly all items.
    """

    values: np.ndarray
    indices: np.ndarray
    counts: np.ndarray

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """All values and all indices, one row's behind the other's."""
        is_there = np.arange(self.values.shape[1]) < self.counts[:, None]  # [B, k]
        return self.values[is_there], self.indices[is_there]


class CatalogRanking:
    """Ranks whole catalogs and candidates. Used by one thread, as calls share a buffer."""

    def __init__(self, device: torch.device) -> None:
        self._buffer = torch.empty(0, device=device)

    def top(
        self, users: Tensor, weights: CatalogWeights, selections: Sequence[Selection]
    ) -> list[RowScores]:
        """Return the best items for user vectors [B, C]; selection i says what row i asks for."""
        found: dict[int, RowScores] = {}
        whole: list[int] = []
        for row, selection in enumerate(selections):
            if selection.candidates is None:
                whole.append(row)
            else:
                found[row] = _top_candidates(users[row], weights, selection)
        if whole:
            chosen = users if len(whole) == len(users) else users[whole]
            asked = [selections[row] for row in whole]
            found |= zip(whole, self._top_of_all(chosen, weights, asked), strict=True)
        return [found[row] for row in range(len(selections))]

    def top_of_all(
        self,
        users: Tensor,
        weights: CatalogWeights,
        top_k: int,
        excluded: PackedHistories,
        allowed: bytes | None,
    ) -> Rankings:
        """The best items for user vectors [B, C], in products that all have equally many rows.

        A library's product rounds a row differently when it has other numbers of rows; in those of
        one size it does not. ``excluded`` are each user's as catalog indices.
        """
        assert weights.weight is not None
        items = len(weights.weight)
        at_once = max(1, min(ROWS_OF_PRODUCT[users.device.type], LOGITS_AT_ONCE // items))
        keep, top_k = _mask(allowed, items), min(top_k, items)
        values = np.empty((len(users), top_k), np.float32)
        indices = np.empty((len(users), top_k), np.int64)
        for start in range(0, len(users), at_once):
            part, own = slice(start, start + at_once), users[start : start + at_once]
            lacking = at_once - len(own)
            if lacking:
                own = torch.cat([own, own.new_zeros(lacking, own.shape[1])])
            logits, maxima = self._logits_and_maxima(own, weights, keep)
            _mask_flat(logits, maxima, _flat(excluded.part(part), logits.shape[1]))
            found = _largest(logits, maxima, top_k, items)
            values[part], indices[part] = (t.cpu().numpy()[: at_once - lacking] for t in found)
        return Rankings(values, indices, np.count_nonzero(values != -np.inf, axis=1))

    def _top_of_all(
        self, users: Tensor, weights: CatalogWeights, selections: Sequence[Selection]
    ) -> Iterator[RowScores]:
        assert weights.weight is not None
        rows_per_part = max(1, LOGITS_AT_ONCE // len(weights.weight))
        for start in range(0, len(users), rows_per_part):
            part = slice(start, start + rows_per_part)
            yield from self._top_rows(users[part], weights, selections[part])

    def _top_rows(
        self, users: Tensor, weights: CatalogWeights, selections: Sequence[Selection]
    ) -> Iterator[RowScores]:
        assert weights.weight is not None
        items = len(weights.weight)
        masks = _masks([each.allowed for each in selections], items)
        (first, *more) = masks.values()
        common = None if more else first  # of all rows: then its items' bias is -inf
        logits, maxima = self._logits_and_maxima(users, weights, common)  # [b, G * GROUP], [b, G]
        if more:
            _mask_others(logits, maxima, [masks[each.allowed] for each in selections])
        excluded: list[np.ndarray] = []
        left: list[int] = []
        for selection in selections:
            keep, unique = masks[selection.allowed], _unique(selection.excluded)
            excluded.append(unique if keep is None else unique[keep[unique]])
            allowed = items if keep is None else int(np.count_nonzero(keep))
            left.append(allowed - len(excluded[-1]))
        _mask_excluded(logits, maxima, excluded)
        count = min(items, max(selection.top_k for selection in selections))
        values, indices = (t.cpu().numpy() for t in _largest(logits, maxima, count, items))
        for row, selection in enumerate(selections):
            top = slice(0, min(selection.top_k, left[row]))
            yield RowScores(values[row, top], indices[row, top])

    def _logits_and_maxima(
        self, users: Tensor, weights: CatalogWeights, keep: np.ndarray | None
    ) -> tuple[Tensor, Tensor]:
        """Logits [b, G * GROUP], -inf past the catalog's end, and the groups' maxima [b, G].

        Logits of items that are not to be kept, bool [N], are -inf, too.
        """
        weight, bias = weights.weight, weights.bias
        assert weight is not None
        assert bias is not None
        if keep is not None:
            bias = bias.masked_fill(torch.from_numpy(~keep).to(bias.device), -torch.inf)
        items = len(weight)
        groups = -(-items // GROUP)
        logits = self._storage(len(users), groups * GROUP)
        logits[:, items:] = -torch.inf
        maxima = torch.empty(len(users), groups, device=users.device)
        per_product = GROUP * max(1, LOGITS_PER_PRODUCT // (GROUP * len(users)))
        for start in range(0, items, per_product):
            end = min(start + per_product, items)
            part = logits[:, start:end]
            torch.addmm(bias[start:end], users, weight[start:end].T, out=part)  # [b, n]
            first, last = start // GROUP, -(-end // GROUP)
            grouped = _grouped(logits[:, first * GROUP : last * GROUP])
            torch.amax(grouped, 2, out=maxima[:, first:last])  # [b, g]
        return logits, maxima

    def _storage(self, rows: int, width: int) -> Tensor:
        if self._buffer.numel() < rows * width:
            self._buffer = torch.empty(rows * width, device=self._buffer.device)
        return self._buffer[: rows * width].view(rows, width)


def _grouped(logits: Tensor) -> Tensor:
    """Logits [b, n * GROUP] -> [b, n, GROUP], without a copy."""
    return logits.view(len(logits), -1, GROUP)


def _unique(indices: np.ndarray | None) -> np.ndarray:
    return np.empty(0, np.int64) if indices is None else np.unique(indices)


def _masks(allowed: Sequence[bytes | None], items: int) -> dict[bytes | None, np.ndarray | None]:
    """The items that rows may return, bool [N], by their bits; None where these are all."""
    return {bits: _mask(bits, items) for bits in dict.fromkeys(allowed)}


def _mask(bits: bytes | None, items: int) -> np.ndarray | None:
    if bits is None:
        return None
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=items, bitorder="little").view(bool)


def _mask_others(logits: Tensor, maxima: Tensor, keeps: Sequence[np.ndarray | None]) -> None:
    """Set what rows may not return to -inf, and take the maxima of their groups again."""
    others: dict[int, Tensor] = {}
    for row, keep in enumerate(keeps):
        if keep is None:
            continue
        if id(keep) not in others:
            others[id(keep)] = torch.from_numpy(~keep).to(logits.device)
        logits[row, : len(keep)].masked_fill_(others[id(keep)], -torch.inf)
        torch.amax(logits[row].view(-1, GROUP), 1, out=maxima[row])  # [G, GROUP] -> [G]


def _mask_excluded(logits: Tensor, maxima: Tensor, excluded: Sequence[np.ndarray]) -> None:
    """Set each row's excluded items to -inf and refresh their groups' maxima."""
    width = logits.shape[1]
    flat = [row * width + indices for row, indices in enumerate(excluded)]
    _mask_flat(logits, maxima, np.concatenate(flat))


def _flat(excluded: PackedHistories, width: int) -> np.ndarray:
    """Where rows' excluded items are in flattened logits of ``width`` columns."""
    rows = np.arange(len(excluded))
    return np.repeat(rows * width, excluded.lengths) + excluded.joined(rows)


def _mask_flat(logits: Tensor, maxima: Tensor, flat: np.ndarray) -> None:
    """Set the logits of these places to -inf and refresh their groups' maxima."""
    if not len(flat):
        return
    logits.view(-1)[torch.from_numpy(flat).to(logits.device)] = -torch.inf
    touched = torch.from_numpy(np.unique(flat // GROUP)).to(logits.device)
    maxima.view(-1)[touched] = logits.view(-1, GROUP)[touched].amax(1)  # [n, GROUP] -> [n]


def _largest(logits: Tensor, maxima: Tensor, count: int, items: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest logits of each row and their indices, both [b, count].

    One more is searched: two equal neighbours show a tie, which is rare and settled separately.
    """
    wanted = min(count + 1, items)
    if 2 * wanted * GROUP >= logits.shape[1]:
        values, indices = torch.topk(logits, wanted, dim=1)
    else:
        groups = torch.topk(maxima, wanted, dim=1, sorted=False).indices  # [b, k]
        spread = groups.unsqueeze(2).expand(-1, -1, GROUP)  # [b, k, GROUP]
        members = _grouped(logits).gather(1, spread).flatten(1)  # [b, k * GROUP]
        values, at = torch.topk(members, wanted, dim=1)
        indices = groups.gather(1, at // GROUP) * GROUP + at % GROUP
    is_tie = (values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -torch.inf)  # or held back
    tied = is_tie.any(1) & ~values[:, :1].isnan().any(1)
    values, indices = values[:, :count], indices[:, :count]
    for row in tied.nonzero().flatten().tolist() if count else []:
        indices[row] = _settled(logits[row], values[row])
    return values, indices


def _settled(logits: Tensor, values: Tensor) -> Tensor:
    """Indices [k] of the k largest logits, whose values are known; ties go to the lower index."""
    above = (logits > values[-1]).nonzero().flatten()
    equal = (logits == values[-1]).nonzero().flatten()
    order = torch.sort(logits[above], descending=True, stable=True).indices
    return torch.cat((above[order], equal))[: len(values)]


def _top_candidates(user: Tensor, weights: CatalogWeights, selection: Selection) -> RowScores:
    """Rank a few candidates for one user vector [C]; only their weights are read."""
    assert weights.weight is not None
    assert weights.bias is not None
    assert selection.candidates is not None
    allowed = np.setdiff1d(selection.candidates, _unique(selection.excluded))
    items = torch.from_numpy(allowed).to(user.device)
    logits = torch.addmv(weights.bias[items], weights.weight[items], user)  # [n]
    values, order = torch.sort(logits, descending=True, stable=True)
    top = slice(0, selection.top_k)
    return RowScores(values[top].cpu().numpy(), items[order[top]].cpu().numpy())
