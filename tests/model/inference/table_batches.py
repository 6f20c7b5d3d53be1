"""Item tables in mixed batches, for tests of every device."""

from collections.abc import Sequence
from typing import Any  # each device lists items in a form of its own

import torch

from peterrec.model.inference.item_tables import (
    BatchTables,
    TableForward,
    TableWeights,
    packed_table,
    table_bytes,
)
from peterrec.model.network.collate import Tokens
from peterrec.model.network.item_table import ItemTable
from peterrec.model.spec import FIRST_ITEM, UNK, BackboneSpec, TableSpec
from tests.model.random_tasks import random_history, random_table

SPEC = BackboneSpec(item_count=5000, max_len=50)
FORMS = [
    TableSpec(1, counting=counting, exponent=exponent)
    for counting in ("presence", "count")
    for exponent in (0.0, 0.5, 1.0)
]
HISTORIES = [
    [],
    [UNK, FIRST_ITEM],
    random_history(SPEC, 60, 1) * 2,
    random_history(SPEC, 50, 2),
    random_history(SPEC, 3000, 3),
]


def resident(table: ItemTable, device: torch.device, temperature: float = 1.0) -> TableWeights:
    weights = TableWeights(table_bytes(table))
    weights.put(packed_table(table, temperature).to(device))
    assert weights.packed is not None
    assert weights.packed.nbytes == weights.size_bytes
    return weights


def added(
    forward: TableForward[Any],
    tables: Sequence[TableWeights],
    histories: Sequence[Tokens],
    outputs: int,
) -> torch.Tensor:
    """What tables add to zeros, row i of table and history i."""
    device = tables[0].packed.device if tables[0].packed is not None else None
    logits = torch.zeros(len(tables), outputs, device=device)
    BatchTables(forward, tables, histories).add(logits)
    return logits.cpu()


def mixed_batch(
    forward: TableForward[Any], device: torch.device, outputs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What tables of all forms add for all histories in one batch, and what the reference does."""
    tables = [random_table(SPEC, outputs, n, form, 0.3) for n, form in enumerate(FORMS)]
    tables += [random_table(SPEC, outputs, 9, share=share) for share in (0.0, 0.01, 1.0)]
    rows = [resident(table, device) for table in tables] * len(HISTORIES)
    read = [history for history in HISTORIES for _ in tables]
    expected = torch.cat([table.logits([h]) for h in HISTORIES for table in tables])
    return added(forward, rows, read, outputs), expected
