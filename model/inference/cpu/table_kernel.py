# mypy: ignore-errors
# What follows is numba's to type: names hold typed addresses.
"""Item tables on a CPU: lists the counted items of histories, and adds tables to logits.

Names and types are those of ``patch_kernel.py``; ``model/inference/item_tables.py`` says what a
table's buffer holds. The sums are exact integers, so a row's bits do not depend on its neighbours.
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
    int_pointer,
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
def list_items(tokens_, starts_, histories, marks_, items_, ends_):
    """List the items of histories: each once from its start on, repetitions from its end back.

    ``ends`` int32 [histories, 2] are where the distinct items end and where the repetitions begin.
    ``marks`` has a byte of 0 for each token id, and is left so.
    """
    tokens, starts = int_pointer(tokens_), int_pointer(starts_)
    marks, items, ends = byte_pointer(marks_), int_pointer(items_), int_pointer(ends_)
    for history in range(histories):
        begin, stop = np.int64(starts[history]), np.int64(starts[history + 1])
        front, back = begin, stop
        for at in range(begin, stop):
            token = np.int64(tokens[at])
            if token < FIRST_ITEM:
                continue
            if marks[token]:
                back -= 1
                items[back] = np.int32(token)
            else:
                marks[token] = np.int8(1)
                items[front] = np.int32(token)
                front += 1
        for at in range(begin, front):
            marks[np.int64(items[at])] = np.int8(0)
        ends[2 * history], ends[2 * history + 1] = np.int32(front), np.int32(back)


@njit
def _find_rows(items, start, stop, directory, words, weights, outputs, rows, found):
    """Write the rows of items [start, stop) to ``rows`` from ``found`` on; return where they end.

    Their weights are prefetched: a batch's tables are in no cache, and waiting for one row after
    the other takes four times as long.
    """
    for at in range(start, stop):
        token = np.int64(items[at])
        word = token // TOKENS_PER_WORD
        if word < words:
            entry, bit = directory[word], np.int64(1) << (token % TOKENS_PER_WORD)
            row = (entry >> TOKENS_PER_WORD) + count_bits(entry & (bit - 1))
            prefetch(weights, row * outputs)
            rows[found] = np.int32(row)
            found += (entry & bit) != 0
    return found


@compiled
def add_tables(
    items_, starts_, ends_, places_, histories_, addresses_, count, rows_, sums_, logits_, outputs,
):  # fmt: skip
    """Add the tables of ``count`` rows to logits float32 [B, outputs].

    Row i has the logits ``places[i]``, the history ``histories[i]`` and the table at
    ``addresses[i]``. Scratch: ``rows`` int32 of the longest history, ``sums`` float32 of the
    outputs, in whole vectors. The sums are whole numbers below 2^24, so they are exact.
    """
    items, starts, ends = int_pointer(items_), int_pointer(starts_), int_pointer(ends_)
    places, histories = int_pointer(places_), int_pointer(histories_)
    addresses, logits = long_pointer(addresses_), float_pointer(logits_)
    rows, sums = int_pointer(rows_), float_pointer(sums_)
    for own in range(count):
        table, history = addresses[own], np.int64(histories[own])
        header, exponent = long_pointer(table), double_pointer(table)[2]
        words, is_count = header[0], header[1]
        scale_ = table + HEADER_BYTES + 8 * words
        directory, scale = long_pointer(table + HEADER_BYTES), float_pointer(scale_)
        weights = byte_pointer(scale_ + 4 * outputs)
        start, stop = np.int64(starts[history]), np.int64(starts[history + 1])
        front, back = np.int64(ends[2 * history]), np.int64(ends[2 * history + 1])
        found = _find_rows(
            items, start, front, directory, words, weights, outputs, rows, np.int64(0)
        )
        counted = front - start
        if is_count:
            found = _find_rows(items, back, stop, directory, words, weights, outputs, rows, found)
            counted += stop - back
        for k in range(0, outputs, LANES):
            total = splat(ZERO)
            for at in range(found):
                total = add(total, load_bytes(weights, np.int64(rows[at]) * outputs + k))
            store(sums, k, total)
        factor = np.float32(np.float64(max(counted, 1)) ** -exponent)
        to = np.int64(places[own]) * outputs
        for k in range(outputs):
            logits[to + k] += factor * scale[k] * sums[k]


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
        count = len(histories.starts) - 1
        found = ListedItems(
            np.empty_like(histories.tokens), histories.starts, np.empty((count, 2), np.int32)
        )
        list_items(
            histories.tokens.ctypes.data, histories.starts.ctypes.data, count,
            self._marks.ctypes.data, found.items.ctypes.data, found.ends.ctypes.data,
        )  # fmt: skip
        return found

    def add(self, logits: Tensor, chosen: TableRows, listed: ListedItems) -> None:
        """Add the tables of the ``chosen`` rows to logits float32 [B, K] in place."""
        assert logits.is_contiguous()
        outputs, longest = logits.shape[1], int(np.diff(listed.starts).max(initial=0))
        rows = np.empty(longest + 1, dtype=np.int32)  # one is written past the last that is kept
        sums = np.empty(outputs + LANES, dtype=np.float32)
        add_tables(
            listed.items.ctypes.data, listed.starts.ctypes.data, listed.ends.ctypes.data,
            chosen.places.ctypes.data, chosen.histories.ctypes.data, chosen.addresses.ctypes.data,
            len(chosen.places), rows.ctypes.data, sums.ctypes.data, logits.data_ptr(), outputs,
        )  # fmt: skip
