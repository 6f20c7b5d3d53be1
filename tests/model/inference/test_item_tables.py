"""Packed item tables on a CPU: the bits of the reference, whatever else is in the batch."""

from typing import Any  # each device lists items in a form of its own

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peterrec.model.inference.cpu.table_kernel import CompiledTables
from peterrec.model.inference.item_tables import BatchTables, table_bytes
from peterrec.model.network.item_table import ItemTable
from peterrec.model.spec import BackboneSpec, TableSpec
from tests.model.inference.table_batches import FORMS, SPEC, added, mixed_batch, resident
from tests.model.random_tasks import random_history, random_table

CPU = torch.device("cpu")


@pytest.mark.parametrize("outputs", [1, 16, 17])
def test_a_mixed_batch_adds_the_bits_of_the_reference(outputs: int) -> None:
    forward = CompiledTables(SPEC.token_count)
    for _ in range(2):  # a batch leaves nothing behind
        found, expected = mixed_batch(forward, CPU, outputs)
        assert torch.equal(found, expected)


@given(
    tokens=st.lists(st.integers(0, SPEC.token_count - 1) | st.integers(0, 9), max_size=40),
    kept=st.sets(st.integers(0, SPEC.item_count - 1), min_size=1, max_size=9),
    form=st.sampled_from(FORMS),
)
@settings(deadline=None, max_examples=60)
def test_whatever_a_history_has_the_table_adds_what_the_reference_does(
    tokens: list[int], kept: set[int], form: TableSpec
) -> None:
    weight = torch.zeros(SPEC.item_count, 2)
    weight[sorted(kept)] = torch.randn(len(kept), 2, generator=torch.Generator().manual_seed(1))
    table = ItemTable.quantized(weight, form)
    found = added(CompiledTables(SPEC.token_count), [resident(table, CPU)], [tokens], 2)
    assert torch.equal(found, table.logits([tokens]))


def test_the_temperature_divides_the_scales() -> None:
    table = random_table(SPEC, 3, 1)
    history = random_history(SPEC, 100, 1)
    found = added(CompiledTables(SPEC.token_count), [resident(table, CPU, 2.5)], [history], 3)
    torch.testing.assert_close(found, table.logits([history]) / 2.5)


@pytest.mark.parametrize("token", [-1, SPEC.token_count])
def test_a_token_that_the_backbone_lacks_is_refused(token: int) -> None:
    weights = resident(random_table(SPEC, 3, 1), CPU)
    with pytest.raises(IndexError, match="outside 0"):
        added(CompiledTables(SPEC.token_count), [weights], [[5, token]], 3)


def test_rows_without_a_table_stay_as_they_are() -> None:
    table, forward = random_table(SPEC, 3, 1), CompiledTables(SPEC.token_count)
    history = random_history(SPEC, 100, 1)
    tables = [None, resident(table, CPU), None]
    logits = torch.ones(2, 3)
    BatchTables(forward, tables, [history] * 3, [[0], [2, 1]]).add(logits, 1)
    assert torch.equal(logits[0], torch.ones(3))
    assert torch.equal(logits[1], torch.ones(3) + table.logits([history])[0])


def test_a_history_that_rows_share_is_listed_once() -> None:
    lengths = []

    class Counting(CompiledTables):
        def listed(self, histories: Any, rows: Any) -> Any:
            lengths.append(len(histories.tokens))
            return super().listed(histories, rows)

    weights, history = resident(random_table(SPEC, 3, 1), CPU), np.arange(4, 900)
    added(Counting(SPEC.token_count), [weights] * 100, [history] * 100, 3)
    assert lengths == [len(history)]


def test_a_table_of_twenty_thousand_items_and_ten_outputs_takes_205_kilobytes() -> None:
    spec = BackboneSpec(item_count=20_000)
    assert table_bytes(random_table(spec, 10, 1, share=1.0)) == 200_000 + 40 + 24 + 8 * 626 + 16
