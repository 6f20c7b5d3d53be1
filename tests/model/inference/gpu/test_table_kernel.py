"""Item tables added by Triton kernels equal the reference: on a GPU, else interpreted."""

import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from peterrec.model.inference.gpu.table_kernel import FusedTables
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


def test_more_histories_than_programs_are_listed_in_turns() -> None:
    forward = FusedTables(DEVICE, SPEC.token_count)
    forward._programs = 3
    table = random_table(SPEC, 3, 1)
    histories = [random_history(SPEC, length, length) for length in range(1, 300, 40)]
    histories.append([*np.arange(FIRST_ITEM, FIRST_ITEM + 400)] * 2)
    for _ in range(2):
        found = added(forward, [resident(table, DEVICE)] * len(histories), histories, 3)
        torch.testing.assert_close(found, table.logits(histories), rtol=3e-7, atol=0)
