"""Spectral item vectors put together what the same people take, and repeat themselves."""

import numpy as np
import pytest
import torch

from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.pretrain.spectral import SPECTRAL_STD, spectral_embedding

ROWS = [np.array(row) + FIRST_ITEM for row in ([0, 1, 2], [1, 2, 0, 0], [3, 4], [4, 5, 3], [5, 3])]


def test_items_of_the_same_people_are_nearer_than_others():
    vectors = torch.nn.functional.normalize(spectral_embedding(ROWS, 6, 2, 0))
    similarity = vectors @ vectors.t()
    assert similarity[:3, :3].min() > 0.9
    assert similarity[:3, 3:].max() < 0.5


def test_vectors_repeat_under_a_seed_and_have_the_stated_spread():
    one, other = (spectral_embedding(ROWS, 6, 2, 0) for _ in range(2))
    assert torch.equal(one, other)
    assert one.std().item() == pytest.approx(SPECTRAL_STD, rel=1e-4)


def test_there_are_no_more_factors_than_users_or_items():
    assert spectral_embedding(ROWS, 6, 64, 0).shape == (6, 5)


def test_a_user_without_known_items_changes_nothing_else():
    assert spectral_embedding([*ROWS, ROWS[0][:0]], 6, 2, 0).isfinite().all()
