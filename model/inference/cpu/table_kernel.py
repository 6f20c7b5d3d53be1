# mypy: ignore-errors
# What follows is numba's to type.
"""Item tables on a CPU: adds them to logits.

``model/inference/item_tables.py`` says what a table's buffer holds. Tables are found by their
addresses; all else is in arrays. The sums are exact integers, so a row's bits do not depend on its
neighbours.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from torch import Tensor

from peterrec.model.inference.batch_plan import Indices
from peterrec.model.inference.cpu.compiled import compiled
from peterrec.model.inference.cpu.list_kernel import ItemLister
from peterrec.model.inference.cpu.patch_kernel import ZERO
from peterrec.model.inference.cpu.simd import (
    LANES,
    add,
    byte_pointer,
    count_bits,
    double_pointer,
    float_pointer,
    load_bytes,
    long_pointer,
    prefetch,
    splat,
    store,
)
from peterrec.model.inference.item_tables import (
    HEADER_BYTES,
    TOKENS_PER_WORD,
    Histories,
    TableRows,
)


@njit
def _find_rows(items, directory, words, weights, outputs, rows, found):
    """Write the rows of items to ``rows`` from ``found`` on; return where they end.

    Their weights are prefetched: a batch's tables are in no cache, and waiting for one row after
    the other takes four times as long.
    """
    for item in items:
        token = np.int64(item)
        word = token // TOKENS_PER_WORD
        if word < words:
            entry, bit = directory[word], np.int64(1) << (token % TOKENS_PER_WORD)
            row = (entry >> TOKENS_PER_WORD) + count_bits(entry & (bit - 1))
            prefetch(weights, row * outputs)
            rows[found] = row
            found += (entry & bit) != 0
    return found


@compiled
def add_tables(items, starts, ends, chosen, first, last, logits):
    """Add the tables of rows int64 [3, R], from the first to before the last, to logits [B, K].

    The sums are whole numbers below 2^24, so they are exact in float32.
    """
    outputs = logits.shape[1]
    rows = np.empty(len(items) + 1, np.int32)  # one is written past the last that is kept
    sums = np.empty(outputs + LANES, np.float32)
    for own in range(first, last):
        table, place, history = chosen[0, own], chosen[1, own], chosen[2, own]
        header, exponent = long_pointer(table), double_pointer(table)[2]
        words, is_count = header[0], header[1]
        scale_ = table + HEADER_BYTES + 8 * words
        directory, scale = long_pointer(table + HEADER_BYTES), float_pointer(scale_)
        weights = byte_pointer(scale_ + 4 * outputs)
        front, back = ends[history, 0], ends[history, 1]
        counted = items[starts[history] : front]
        again = items[back : starts[history + 1]] if is_count else items[:0]
        found = _find_rows(counted, directory, words, weights, outputs, rows, np.int64(0))
        found = _find_rows(again, directory, words, weights, outputs, rows, found)
        for k in range(0, outputs, LANES):
            total = splat(ZERO)
            for at in range(found):
                total = add(total, load_bytes(weights, np.int64(rows[at]) * outputs + k))
            store(float_pointer(sums.ctypes.data), k, total)
        number = max(len(counted) + len(again), 1)
        factor = np.float32(np.float64(number) ** -exponent)
        for k in range(outputs):
            logits[place, k] += factor * scale[k] * sums[k]


@dataclass(frozen=True, slots=True)
class ListedRows:
    """A batch's rows, and the counted items int32 of its histories.

    From ``starts[i]`` on are those of history i; ``ends`` [histories, 2] are where the distinct
    items end and where the repetitions begin.
    """

    rows: TableRows
    items: Indices
    starts: Indices
    ends: Indices


class CompiledTables:
    """A ``TableForward`` for a CPU."""

    def __init__(self, token_count: int) -> None:
        self._lister = ItemLister(token_count)

    def listed(self, histories: Histories, rows: TableRows) -> ListedRows:
        """The rows, and the counted items of each history."""
        starts = histories.starts
        items = np.empty(len(histories.tokens), dtype=np.int32)
        ends = np.empty((len(starts) - 1, 2), dtype=np.int32)
        self._lister.list(histories, items, ends)
        return ListedRows(rows, items, starts, ends)

    def add(self, logits: Tensor, group: slice, listed: ListedRows) -> None:
        """Add the tables of a ``group`` of rows to logits float32 [B, K] in place."""
        lists = (listed.items, listed.starts, listed.ends)
        add_tables(*lists, listed.rows, group.start, group.stop, logits.numpy())
