"""Item tables on an NVIDIA device: lists the counted items of histories, adds tables to logits.

``model/inference/item_tables.py`` says what a table's buffer holds. Two launches serve a batch: one
program lists the items of a history, one adds a row's table to a few of its outputs.
"""

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from peterrec.model.inference.item_tables import (
    HEADER_BYTES,
    TOKENS_PER_WORD,
    Histories,
    TableRows,
)
from peterrec.model.spec import FIRST_ITEM

MOST_LISTING = 2048
"""Most programs that list items; each takes several histories in turn if there are more."""

MARK_BYTES = 32 << 20
"""Most bytes of the marks of all programs, which have a bit for each token."""

ITEMS_AT_ONCE = 128
"""Items of a tile."""

OUTPUTS_AT_ONCE = 16
"""Outputs that a program computes."""


@triton.jit(do_not_specialize=["histories", "words"])  # type: ignore[untyped-decorator]  # Triton has no types
def _list_items(  # type: ignore[no-untyped-def]  # Triton compiles it
    tokens_ptr,
    starts_ptr,
    marks_ptr,
    items_ptr,
    ends_ptr,
    histories,
    words,
    FIRST_ITEM: tl.constexpr,
    TILE: tl.constexpr,
):
    marks = marks_ptr + tl.program_id(0).to(tl.int64) * words
    t = tl.arange(0, TILE)
    for history in range(tl.program_id(0), histories, tl.num_programs(0)):
        start = tl.load(starts_ptr + history)
        stop = tl.load(starts_ptr + history + 1)
        front, back = start, stop
        for begin in range(start, stop, TILE):
            token = tl.load(tokens_ptr + begin + t, mask=begin + t < stop, other=0)
            is_item = token >= FIRST_ITEM
            bit = 1 << (token & 31)
            before = tl.atomic_or(marks + (token >> 5), bit, mask=is_item)
            is_known = (before & bit) != 0
            is_new, is_again = is_item & (is_known == 0), is_item & is_known
            at = front - 1 + tl.cumsum(is_new.to(tl.int32), 0)
            tl.store(items_ptr + at, token, mask=is_new)
            at = back - tl.cumsum(is_again.to(tl.int32), 0)
            tl.store(items_ptr + at, token, mask=is_again)
            front += tl.sum(is_new.to(tl.int32), 0)
            back -= tl.sum(is_again.to(tl.int32), 0)
        tl.store(ends_ptr + 2 * history, front)
        tl.store(ends_ptr + 2 * history + 1, back)
        tl.debug_barrier()  # all marks are made before any is cleared
        for begin in range(start, stop, TILE):
            token = tl.load(tokens_ptr + begin + t, mask=begin + t < stop, other=0)
            tl.store(marks + (token >> 5), 0, mask=token >= FIRST_ITEM)
        tl.debug_barrier()


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


@triton.jit(do_not_specialize=["outputs"])  # type: ignore[untyped-decorator]  # Triton has no types
def _add_tables(  # type: ignore[no-untyped-def]  # Triton compiles it
    items_ptr,
    starts_ptr,
    ends_ptr,
    places_ptr,
    histories_ptr,
    addresses_ptr,
    logits_ptr,
    outputs,
    HEADER_BYTES: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(1)
    table = tl.load(addresses_ptr + row)
    header = table.to(tl.pointer_type(tl.int64))
    words, is_count = tl.load(header), tl.load(header + 1)
    exponent = tl.load((table + 16).to(tl.pointer_type(tl.float64)))
    directory = (table + HEADER_BYTES).to(tl.pointer_type(tl.int64))
    scale_at = table + HEADER_BYTES + 8 * words
    weights = (scale_at + 4 * outputs).to(tl.pointer_type(tl.int8))
    history = tl.load(histories_ptr + row)
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
    at = logits_ptr + tl.load(places_ptr + row).to(tl.int64) * outputs + k
    old = tl.load(at, mask=k < outputs, other=0.0)
    tl.store(at, old + factor * scale * sums.to(tl.float32), mask=k < outputs)


@dataclass(frozen=True, slots=True)
class ListedItems:
    """Counted items of histories on the device, int32: from ``starts[i]`` on those of history i.

    ``ends`` [histories, 2] are where the distinct items end and where the repetitions begin.
    """

    items: Tensor
    starts: Tensor
    ends: Tensor


class FusedTables:
    """A ``TableForward`` for an NVIDIA device."""

    def __init__(self, device: torch.device, token_count: int) -> None:
        self._device = device
        self._words = -(-token_count // TOKENS_PER_WORD)
        self._programs = max(1, min(MOST_LISTING, MARK_BYTES // (4 * self._words)))
        self._marks = torch.empty(0, dtype=torch.int32, device=device)

    def listed(self, histories: Histories) -> ListedItems:
        """The counted items of each history."""
        count, size = len(histories.starts) - 1, len(histories.tokens)
        starts, tokens = self._sent(histories.starts, histories.tokens)
        programs = min(count, self._programs)
        if len(self._marks) < programs * self._words:
            self._marks = torch.zeros(
                programs * self._words, dtype=torch.int32, device=self._device
            )
        items = torch.empty(size, dtype=torch.int32, device=self._device)
        ends = torch.empty(count, 2, dtype=torch.int32, device=self._device)
        _list_items[(programs,)](
            tokens,
            starts,
            self._marks,
            items,
            ends,
            count,
            self._words,
            FIRST_ITEM=FIRST_ITEM,
            TILE=ITEMS_AT_ONCE,
            num_warps=4,
        )
        return ListedItems(items, starts, ends)

    def add(self, logits: Tensor, chosen: TableRows, listed: ListedItems) -> None:
        """Add the tables of the ``chosen`` rows to logits float32 [B, K] in place."""
        assert logits.is_contiguous()
        outputs = logits.shape[1]
        addresses, places, histories = self._sent(
            chosen.addresses.view(np.int32), chosen.places, chosen.histories
        )
        # The outputs come first, as the second axis of a grid has at most 65,535 programs.
        _add_tables[(triton.cdiv(outputs, OUTPUTS_AT_ONCE), len(chosen.places))](
            listed.items,
            listed.starts,
            listed.ends,
            places,
            histories,
            addresses.view(torch.int64),
            logits,
            outputs,
            HEADER_BYTES=HEADER_BYTES,
            TILE=ITEMS_AT_ONCE,
            BLOCK_K=OUTPUTS_AT_ONCE,
            num_warps=4,
        )

    def _sent(self, *parts: np.ndarray) -> list[Tensor]:
        """Arrays int32 on the device, where one copy that nobody waits for brings them."""
        joined = torch.from_numpy(np.concatenate(parts))
        if self._device.type == "cuda":
            joined = joined.pin_memory()
        there = joined.to(self._device, non_blocking=True)
        return [*torch.split(there, [len(part) for part in parts])]
