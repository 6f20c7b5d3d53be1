"""Batches hold every row once, of similar lengths; generators depend on their seeds alone."""

from itertools import pairwise

import numpy as np
import torch

from peterrec.model.training.batches import bucketed_batches, seeded


def test_every_row_is_in_one_batch():
    batches = bucketed_batches(np.arange(10) % 4, 3, seeded(0))
    assert sorted(torch.cat(batches).tolist()) == list(range(10))


def test_the_rows_of_a_batch_are_neighbours_in_length():
    lengths = np.random.default_rng(0).integers(1, 9, 40)
    spans = sorted(
        (lengths[b].min(), lengths[b].max()) for b in bucketed_batches(lengths, 8, seeded(0))
    )
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_generators_of_other_seeds_purposes_or_epochs_draw_otherwise():
    draws = {
        torch.rand(1, generator=seeded(*p)).item()
        for p in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    }
    assert len(draws) == 4
    assert torch.equal(torch.rand(3, generator=seeded(0)), torch.rand(3, generator=seeded(0)))
