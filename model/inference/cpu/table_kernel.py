# mypy: ignore-errors
# What follows is numba's to type.
"""Item tables on a CPU: lists the counted items of histories, and adds tables to logits.

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
from peterrec.model.spec import FIRST_ITEM


@compiled
def list_items(tokens, starts, marks, items, ends):
    """List the items of histories: each once from its start on, repetitions from its end back.

    ``ends`` int32 [histories, 2] are where the distinct items end and where the repetitions begin.
    ``marks`` has a byte of 0 for each token id, and is left so.
    """
    for history in range(len(ends)):
        begin, stop = starts[history], starts[history + 1]
        front, back = begin, stop
        for at in range(begin, stop):
            token = tokens[at]
            if token < FIRST_ITEM:
                continue
            if marks[token]:
                back -= 1
                items[back] = token
            else:
                marks[token] = 1
                items[front] = token
                front += 1
        for at in range(begin, front):
            marks[items[at]] = 0
        ends[history, 0], ends[history, 1] = front, back


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
def add_tables(items, starts, ends, places, histories, addresses, logits):
    """Add the tables of some rows to logits float32 [B, K].

    Row i has the logits ``places[i]``, the history ``histories[i]`` and the table at
    ``addresses[i]``. The sums are whole numbers below 2^24, so they are exact in float32.
    """
    outputs = logits.shape[1]
    rows = np.empty(len(items) + 1, np.int32)  # one is written past the last that is kept
    sums = np.empty(outputs + LANES, np.float32)
    for own in range(len(places)):
        table, history = addresses[own], histories[own]
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
            logits[places[own], k] += factor * scale[k] * sums[k]


@dataclass(frozen=True, slots=True)
class ListedItems:
    """Counted items of histories, as ``list_items`` leaves them."""

    items: Indices
    starts: Indices
    ends: Indices


class CompiledTables:
    """A ``TableForward`` for a CPU."""

    def __init__(self, token_count: int) -> None:
        self._marks = np.zeros(token_count, dtype=np.int8)

    def listed(self, histories: Histories) -> ListedItems:
        """The counted items of each history."""
        items = np.empty(len(histories.tokens), dtype=np.int32)
        ends = np.empty((len(histories.starts) - 1, 2), dtype=np.int32)
        list_items(histories.tokens, histories.starts, self._marks, items, ends)
        return ListedItems(items, histories.starts, ends)

    def add(self, logits: Tensor, chosen: TableRows, listed: ListedItems) -> None:
        """Add the tables of the ``chosen`` rows to logits float32 [B, K] in place."""
        add_tables(
            listed.items,
            listed.starts,
            listed.ends,
            chosen.places,
            chosen.histories,
            chosen.addresses,
            logits.numpy(),
        )
