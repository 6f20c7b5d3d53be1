"""What a table on the device adds to a history without each of its items."""

import numpy as np
import pytest
import torch

from peterrec.model.inference.heads import MixedHeads
from peterrec.model.inference.item_tables import packed_table, without_each
from peterrec.model.network.item_table import ItemTable
from peterrec.model.spec import FIRST_ITEM, UNK, BackboneSpec, HeadSpec, TableSpec
from tests.model.random_tasks import random_table

SPEC = BackboneSpec(item_count=300, channels=8, dilations=(1,), max_len=10)
FORMS = {
    "presence": TableSpec(1),
    "count": TableSpec(1, counting="count"),
    "sum of four bits": TableSpec(1, bits=4, exponent=0.0),
    "mean": TableSpec(1, counting="count", exponent=1.0),
}


def histories(count: int) -> list[np.ndarray]:
    """Tokens of items, repeated ones and unknown ones, empty and long histories."""
    draw = np.random.default_rng(2)
    lengths = [0, 1, 2, *draw.integers(3, 500, count)]
    drawn = [draw.integers(FIRST_ITEM, SPEC.token_count, length) for length in lengths]
    return [np.where(draw.random(len(row)) < 0.1, UNK, row).astype(np.int32) for row in drawn]


def table_of(form: str, outputs: int, share: float = 0.7) -> ItemTable:
    return random_table(SPEC, outputs, 3, FORMS[form], share)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("outputs", [1, 3, 70])
@pytest.mark.parametrize("form", FORMS)
def test_each_row_has_the_bits_of_the_history_without_the_item(form, outputs, device):
    table = table_of(form, outputs)
    for history in histories(6):
        items = np.unique(history)
        rest = [history, *(history[history != item] for item in items)]
        found = without_each(packed_table(table).to(device), outputs, history, items)
        assert torch.equal(found, table.logits(rest))


def test_items_that_the_history_or_the_table_lack_change_what_they_must():
    table = table_of("presence", 2, share=0.1)
    history = np.arange(FIRST_ITEM, FIRST_ITEM + 50, dtype=np.int32)
    without_row = next(item for item in history if item not in table.items)
    asked = np.array([without_row, SPEC.token_count - 1, UNK], np.int32)
    whole, fewer, same, unknown = without_each(packed_table(table), 2, history, asked)
    assert torch.equal(fewer, table.logits([history[history != without_row]])[0])
    assert not torch.equal(fewer, whole)
    assert torch.equal(same, whole)
    assert torch.equal(unknown, whole)


def test_a_heads_temperature_divides_them_as_it_divides_the_logits():
    table, spec = table_of("count", 3), HeadSpec("tags", 3)
    heads = MixedHeads(SPEC.channels, torch.device("cpu"), SPEC.token_count)
    tensors = {"head.weight": torch.zeros(3, SPEC.channels), "head.bias": torch.zeros(3)}
    head = heads.add(spec, tensors, 2.5, table)
    history = histories(1)[-1]
    columns, users = torch.arange(3), torch.zeros(1, SPEC.channels)
    found = heads.table_without_each(head, history, history[:5]).values.reshape(6, 3)
    whole = heads.logits(users, head, columns, [history])[0]
    np.testing.assert_array_equal(found[0], whole.numpy())
