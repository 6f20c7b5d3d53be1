"""Item tables added by Triton kernels equal the reference: on a GPU, else interpreted."""

import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from peterrec.model.inference.gpu.table_kernel import FusedTables
from peterrec.model.inference.item_tables import BatchTables
from peterrec.model.spec import FIRST_ITEM
from tests.model.inference.table_batches import SPEC, added, mixed_batch, resident
from tests.model.random_tasks import random_history, random_table

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("outputs", [1, 16, 17])
def test_a_mixed_batch_adds_what_the_reference_does(outputs: int) -> None:
    forward = FusedTables(DEVICE, SPEC.token_count)
    for _ in range(2):  # a batch leaves nothing behind
        found, expected = mixed_batch(forward, DEVICE, outputs)
        # The power of the number of items may be rounded in another way than by numpy.
        torch.testing.assert_close(found, expected, rtol=3e-7, atol=0)


def test_a_batch_may_be_larger_or_smaller_than_the_one_before() -> None:
    forward, table = FusedTables(DEVICE, SPEC.token_count), random_table(SPEC, 3, 1)
    histories = [random_history(SPEC, length, length) for length in range(1, 300, 40)]
    histories.append([*np.arange(FIRST_ITEM, FIRST_ITEM + 400)] * 2)
    for read in (histories[:2], histories, histories[3:4], histories[-1:]):
        found = added(forward, [resident(table, DEVICE)] * len(read), read, 3)
        torch.testing.assert_close(found, table.logits(read), rtol=3e-7, atol=0)


def test_groups_of_rows_are_added_to_tensors_of_their_own() -> None:
    forward, spec = FusedTables(DEVICE, SPEC.token_count), SPEC
    narrow, wide = random_table(spec, 3, 1), random_table(spec, 20, 2)
    histories = [random_history(spec, length, length) for length in (5, 60, 7, 300)]
    tables = [resident(narrow, DEVICE), resident(wide, DEVICE), None, resident(narrow, DEVICE)]
    batch = BatchTables(forward, tables, histories, [[3, 2, 0], [1]])
    found = [torch.zeros(3, 3, device=DEVICE), torch.zeros(1, 20, device=DEVICE)]
    for group, logits in enumerate(found):
        batch.add(logits, group)
    expected = narrow.logits([histories[3], [], histories[0]])
    torch.testing.assert_close(found[0].cpu(), expected, rtol=3e-7, atol=0)
    torch.testing.assert_close(found[1].cpu(), wide.logits(histories[1:2]), rtol=3e-7, atol=0)
