"""Item tables on an NVIDIA device: adds them to logits.

``model/inference/item_tables.py`` says what a table's buffer holds. The host lists the items of
histories, and sends them with the rows' numbers in one copy. Then a program adds a row's table to a
few of its outputs, in one launch for all rows with logits in one tensor.
"""

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from peterrec.model.inference.cpu.list_kernel import ItemLister
from peterrec.model.inference.gpu.staging import StagingBuffer
from peterrec.model.inference.item_tables import HEADER_BYTES, Histories, TableRows

ITEMS_AT_ONCE = 128
"""Items of a tile."""

OUTPUTS_AT_ONCE = 16
"""Outputs that a program computes."""


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _row_sums(  # type: ignore[no-untyped-def]  # Triton compiles it
    items_ptr, start, stop, directory, words, weights, k, outputs, sums, TILE: tl.constexpr
):
    """Add the weights of items [start, stop) at outputs k to ``sums`` int32."""
    t = tl.arange(0, TILE)
    for begin in range(start, stop, TILE):
        token = tl.load(items_ptr + begin + t, mask=begin + t < stop, other=0)
        word, bit = token >> 5, token & 31
        entry = tl.load(directory + word, mask=(begin + t < stop) & (word < words), other=0)
        has_row = ((entry >> bit) & 1) != 0
        ones = entry & ((tl.full((TILE,), 1, tl.int64) << bit) - 1)  # those of smaller tokens
        ones = ones - ((ones >> 1) & 0x55555555)  # the number of ones, in ever wider fields
        ones = (ones & 0x33333333) + ((ones >> 2) & 0x33333333)
        ones = (ones + (ones >> 4)) & 0x0F0F0F0F
        ones = (ones + (ones >> 8)) & 0x00FF00FF
        row = (entry >> 32) + ((ones + (ones >> 16)) & 0xFF)
        at = weights + row[:, None] * outputs + k[None, :]
        here = has_row[:, None] & (k < outputs)[None, :]
        sums += tl.sum(tl.load(at, mask=here, other=0).to(tl.int32), 0)
    return sums


@triton.jit(do_not_specialize=["outputs", "first", "rows", "histories"])  # type: ignore[untyped-decorator]  # Triton has no types
def _add_tables(  # type: ignore[no-untyped-def]  # Triton compiles it
    numbers_ptr,
    logits_ptr,
    outputs,
    first,
    rows,
    histories,
    HEADER_BYTES: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = first + tl.program_id(1)
    rows_ptr = numbers_ptr.to(tl.pointer_type(tl.int64))
    starts_ptr = numbers_ptr + 6 * rows
    ends_ptr = starts_ptr + histories + 1
    items_ptr = ends_ptr + 2 * histories
    table, place = tl.load(rows_ptr + row), tl.load(rows_ptr + rows + row)
    history = tl.load(rows_ptr + 2 * rows + row)
    header = table.to(tl.pointer_type(tl.int64))
    words, is_count = tl.load(header), tl.load(header + 1)
    exponent = tl.load((table + 16).to(tl.pointer_type(tl.float64)))
    directory = (table + HEADER_BYTES).to(tl.pointer_type(tl.int64))
    scale_at = table + HEADER_BYTES + 8 * words
    weights = (scale_at + 4 * outputs).to(tl.pointer_type(tl.int8))
    start, stop = tl.load(starts_ptr + history), tl.load(starts_ptr + history + 1)
    front, back = tl.load(ends_ptr + 2 * history), tl.load(ends_ptr + 2 * history + 1)
    back = tl.where(is_count != 0, back, stop)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_K,), dtype=tl.int32)
    sums = _row_sums(items_ptr, start, front, directory, words, weights, k, outputs, sums, TILE)
    sums = _row_sums(items_ptr, back, stop, directory, words, weights, k, outputs, sums, TILE)
    counted = tl.maximum(front - start + stop - back, 1)
    factor = tl.exp(-exponent * tl.log(counted.to(tl.float64))).to(tl.float32)
    scale = tl.load(scale_at.to(tl.pointer_type(tl.float32)) + k, mask=k < outputs, other=0.0)
    at = logits_ptr + place * outputs + k
    old = tl.load(at, mask=k < outputs, other=0.0)
    tl.store(at, old + factor * scale * sums.to(tl.float32), mask=k < outputs)


@dataclass(frozen=True, slots=True)
class NumbersOnDevice:
    """A batch's numbers int32 on the device, with the sizes of its parts: rows int64 [3, rows],
    the starts of histories [histories + 1], the ends of their items [histories, 2], and these."""

    numbers: Tensor
    rows: int
    histories: int


class FusedTables:
    """A ``TableForward`` for an NVIDIA device."""

    def __init__(self, device: torch.device, token_count: int) -> None:
        self._lister = ItemLister(token_count)
        self._staging = StagingBuffer(device)
        self._numbers = torch.empty(0, dtype=torch.int32, device=device)

    def listed(self, histories: Histories, rows: TableRows) -> NumbersOnDevice:
        """The rows and the counted items of each history, sent to the device in one copy."""
        count, starts = len(histories.starts) - 1, 2 * rows.size
        ends, items = starts + count + 1, starts + 3 * count + 1
        size = items + len(histories.tokens)
        numbers = self._staging.free(size)
        numbers[:starts] = rows.view(np.int32).ravel()
        numbers[starts:ends] = histories.starts
        self._lister.list(histories, numbers[items:size], numbers[ends:items].reshape(count, 2))
        if len(self._numbers) < size:
            self._numbers = torch.empty(size, dtype=torch.int32, device=self._numbers.device)
        self._staging.send(self._numbers[:size])
        return NumbersOnDevice(self._numbers, rows.shape[1], count)

    def add(self, logits: Tensor, group: slice, listed: NumbersOnDevice) -> None:
        """Add the tables of a ``group`` of rows to logits float32 [B, K] in place."""
        assert logits.is_contiguous()
        outputs = logits.shape[1]
        # The outputs come first, as the second axis of a grid has at most 65,535 programs.
        _add_tables[(triton.cdiv(outputs, OUTPUTS_AT_ONCE), group.stop - group.start)](
            listed.numbers,
            logits,
            outputs,
            group.start,
            listed.rows,
            listed.histories,
            HEADER_BYTES=HEADER_BYTES,
            TILE=ITEMS_AT_ONCE,
            BLOCK_K=OUTPUTS_AT_ONCE,
            num_warps=4,
        )
