"""Item tables on a device: one buffer each, added to the logits of a batch's rows.

``model/network/item_table.py`` defines what is computed. Tables differ in their rows and outputs,
so each has its own buffer, which a kernel finds by an address per row. A history's counted items
are listed once for all tables that read it.

A buffer begins with three numbers of eight bytes: the words of the directory, 1 if repeated items
count each time, and the exponent. Then follow the *directory*, which has a word of 64 bits for each
32 tokens, the scales float32 [K], the weights int8 [N, K], and a few bytes that a vector of
weights may reach into. A word's lower half has a bit for
each token that has a row; its upper half is the number of rows before those tokens. So a token's
row takes one read, and a directory takes two bits for each item of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peterrec.model.inference.batch_plan import Indices
from peterrec.model.network.collate import Tokens
from peterrec.model.network.item_table import ItemTable, normalization
from peterrec.model.spec import FIRST_ITEM

HEADER_BYTES = 24
"""Bytes of the numbers at the start of a buffer."""

END_BYTES = 16
"""Bytes after the last row: the last weights are read as a part of sixteen."""

TOKENS_PER_WORD = 32
"""Tokens that a word of the directory covers."""


@dataclass(slots=True, eq=False)
class TableWeights:
    """A head's item table, which is None while it is not on the device.

    ``packed`` uint8 [size_bytes] is the buffer, and ``address`` is where it begins.
    """

    size_bytes: int
    packed: Tensor | None = None
    address: int = 0

    @property
    def is_here(self) -> bool:
        """True if the table is on the device."""
        return self.packed is not None

    def put(self, packed: Tensor) -> None:
        """Take the buffer, which is on the device."""
        self.packed, self.address = packed, packed.data_ptr()

    def take_off(self) -> None:
        """Free the memory; the table may be put back later."""
        self.packed, self.address = None, 0


def table_bytes(table: ItemTable) -> int:
    """Bytes of a table's buffer."""
    rows, outputs = table.codes.shape
    return HEADER_BYTES + 8 * _words(table) + (4 + rows) * outputs + END_BYTES


def packed_table(table: ItemTable, temperature: float = 1.0) -> Tensor:
    """The buffer uint8 of a table, its scales divided by the temperature."""
    spec, items = table.spec, table.items  # [N]
    words = _words(table)
    word = items // TOKENS_PER_WORD
    bits = torch.zeros(words, dtype=torch.int64).index_add_(0, word, 1 << items % TOKENS_PER_WORD)
    rows = torch.bincount(word, minlength=words)
    header = torch.tensor([words, int(spec.counting == "count")])
    exponent = torch.tensor([spec.exponent], dtype=torch.float64)
    directory = (rows.cumsum(0) - rows) << TOKENS_PER_WORD | bits
    scale = table.scale / temperature if temperature != 1.0 else table.scale
    end = torch.zeros(END_BYTES, dtype=torch.uint8)
    parts = (header, exponent, directory, scale, table.codes, end)
    return torch.cat([part.flatten().contiguous().view(torch.uint8) for part in parts])


def _words(table: ItemTable) -> int:
    return int(table.items[-1]) // TOKENS_PER_WORD + 1


@dataclass(frozen=True, slots=True)
class UnpackedTable:
    """The parts of a buffer, where they are: directory int64 [W], scale float32 [K], codes int8
    [N, K]."""

    counts_repetitions: bool
    exponent: float
    directory: Tensor
    scale: Tensor
    codes: Tensor

    @classmethod
    def of(cls, packed: Tensor, outputs: int) -> "UnpackedTable":
        """Find the parts of a buffer."""
        words, is_count = packed[:16].view(torch.int64).tolist()
        scales = HEADER_BYTES + 8 * words
        return cls(
            counts_repetitions=bool(is_count),
            exponent=packed[16:HEADER_BYTES].view(torch.float64).item(),
            directory=packed[HEADER_BYTES:scales].view(torch.int64),
            scale=packed[scales : scales + 4 * outputs].view(torch.float32),
            codes=packed[scales + 4 * outputs : -END_BYTES].view(torch.int8).view(-1, outputs),
        )

    def codes_of(self, items: Tensor) -> Tensor:
        """Weights int32 [n, K] of tokens int64 [n]; zeros for one without a row."""
        word = items // TOKENS_PER_WORD
        is_inside = word < len(self.directory)
        entry = self.directory[word.where(is_inside, 0)]  # [n]
        bit = 1 << items % TOKENS_PER_WORD
        row = (entry >> TOKENS_PER_WORD) + _bits(entry & (bit - 1))
        has_row = is_inside & ((entry & bit) != 0)
        return self.codes[row.where(has_row, 0)].int() * has_row.unsqueeze(1)  # [n, K]


def _bits(numbers: Tensor) -> Tensor:
    """How many of the lower 32 bits of each number are set, int64 [n]."""
    numbers = numbers - (numbers >> 1 & 0x55555555)
    numbers = (numbers & 0x33333333) + (numbers >> 2 & 0x33333333)
    return ((numbers + (numbers >> 4) & 0x0F0F0F0F) * 0x01010101 >> 24) & 0xFF


def without_each(packed: Tensor, outputs: int, history: Tokens, items: Tokens) -> Tensor:
    """What a table adds to the logits of a whole history, and of it without each of some items.

    Returns float32 [1 + items, K] on the CPU. All occurrences of an item are left out together. It
    equals, to the bit, what the forward adds to the logits of these histories.
    """
    table, device = UnpackedTable.of(packed, outputs), packed.device
    read = torch.from_numpy(np.array(history, dtype=np.int64)).to(device)
    present, times = torch.unique(read[read >= FIRST_ITEM], return_counts=True)  # [n], [n]
    if not table.counts_repetitions:
        times = torch.ones_like(times)
    own = table.codes_of(present) * times.unsqueeze(1)  # [n, K]
    asked = torch.from_numpy(np.array(items, dtype=np.int64)).to(device)  # [m]
    at = torch.searchsorted(present, asked).clamp(max=max(0, len(present) - 1))
    total, count = own.sum(0), int(times.sum())  # [K]
    if len(present):
        is_counted = present[at] == asked  # [m]
        less = own[at] * is_counted.unsqueeze(1)  # [m, K]
        fewer = times[at] * is_counted  # [m]
    else:
        less, fewer = own.new_zeros(len(asked), outputs), torch.zeros_like(asked)
    sums = torch.cat([total.unsqueeze(0), total - less])  # [1 + m, K]
    counts = torch.cat([fewer.new_tensor([count]), count - fewer])  # [1 + m]
    factor = normalization(counts, table.exponent).unsqueeze(1)  # [1 + m, 1]
    return (factor * table.scale * sums.float()).cpu()


@dataclass(frozen=True, slots=True)
class Histories:
    """Whole histories, one after the other: tokens int32 [T], and their starts int32 [n + 1]."""

    tokens: Indices
    starts: Indices

    @classmethod
    def of(cls, histories: Sequence[Tokens]) -> "Histories":
        """Join histories."""
        starts = np.array([*accumulate(map(len, histories), initial=0)], np.int32)
        if len(histories) == 1:  # a single row should cost as little as a row of many
            return cls(np.asarray(histories[0], np.int32), starts)
        return cls(np.concatenate(histories, dtype=np.int32, casting="unsafe"), starts)


TableRows = npt.NDArray[np.int64]
"""Rows [3, R] that have tables, one group of a batch after the other: the addresses of their
tables, their places in the logits of their group, and the numbers of their histories."""

Listed = TypeVar("Listed")


class TableForward(Protocol[Listed]):
    """Adds tables to logits on one kind of device. Used by one thread."""

    def listed(self, histories: Histories, rows: TableRows) -> Listed:
        """A batch's rows, and the counted items of each history: once each, then repetitions.

        On a GPU it is valid until the next batch is listed. Raises IndexError for a token that the
        backbone does not have.
        """

    def add(self, logits: Tensor, group: slice, listed: Listed) -> None:
        """Add the tables of a ``group`` of rows to its logits float32 [B, K] in place."""


class BatchTables:
    """The tables of one batch: rows are added group by group, histories are listed once."""

    def __init__(
        self,
        forward: TableForward[Any],  # Any: each device lists items in a form of its own
        tables: Sequence[TableWeights | None],
        histories: Sequence[Tokens],
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """``histories[i]`` is row i's; rows with equal histories should have the same object.

        ``groups`` are the numbers of the rows whose logits are in one tensor; None: all rows.
        """
        self._forward = forward
        whole = [range(len(tables))] if groups is None else groups
        if None in tables:
            places: list[Sequence[int]] = [_with_table(group, tables) for group in whole]
        else:
            places = [range(len(group)) for group in whole]
        ends = [*accumulate(map(len, places), initial=0)]
        self._groups = [slice(*each) for each in pairwise(ends)]
        if not ends[-1]:
            return
        order = [group[at] for group, kept in zip(whole, places, strict=True) for at in kept]
        addresses = [table.address for row in order if (table := tables[row]) is not None]
        assert all(addresses), "a table is not on the device"
        distinct, numbers = _distinct([histories[row] for row in order])
        rows = np.array([addresses, [*chain.from_iterable(places)], numbers])
        self._listed = forward.listed(Histories.of(distinct), rows)

    def add(self, logits: Tensor, group: int = 0) -> None:
        """Add the tables of a group's rows to its logits float32 [b, K]."""
        rows = self._groups[group]
        if rows.start < rows.stop:
            self._forward.add(logits, rows, self._listed)


def _with_table(group: Sequence[int], tables: Sequence[TableWeights | None]) -> list[int]:
    """The places in a group of rows that have a table."""
    return [place for place, row in enumerate(group) if tables[row] is not None]


def _distinct(histories: list[Tokens]) -> tuple[list[Tokens], Sequence[int]]:
    """Each object of a list once, and the number of each entry's object among them."""
    keys = [*map(id, histories)]
    found = dict(zip(keys, histories, strict=True))
    if len(found) == len(histories):
        return histories, range(len(histories))
    numbers = {key: number for number, key in enumerate(found)}
    return [*found.values()], [*map(numbers.__getitem__, keys)]
