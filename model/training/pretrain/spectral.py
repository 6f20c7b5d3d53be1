"""Item embeddings to start pretraining from: singular vectors of the user × item matrix."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peterrec.model.spec import FIRST_ITEM

SPECTRAL_STD = 0.3
"""Standard deviation of all numbers of the vectors."""

POWER_ITERATIONS = 6
"""Subspace iterations of the decomposition."""


def spectral_embedding(
    rows: Sequence[npt.NDArray[np.int64]], items: int, channels: int, seed: int
) -> Tensor:
    """Item vectors [items, F] with F = min(channels, items, users), standard deviation 0.3.

    They are the right singular vectors of the user × item matrix (rows of unit length, items
    weighted by inverse frequency), found by ``torch.svd_lowrank`` (Halko et al. 2011). This finds
    in a second what embeddings take epochs to learn: which items the same people take.
    """
    matrix = _user_item_matrix(rows, items)  # [U, N]
    factors = min(channels, *matrix.shape)
    with torch.random.fork_rng(devices=[]):  # svd_lowrank takes no generator
        torch.manual_seed(seed)
        _, _, vectors = torch.svd_lowrank(matrix, factors, niter=POWER_ITERATIONS)  # [N, F]
    return SPECTRAL_STD * vectors / vectors.std()


def _user_item_matrix(rows: Sequence[npt.NDArray[np.int64]], items: int) -> Tensor:
    distinct = [np.unique(row) - FIRST_ITEM for row in rows]
    counts = torch.tensor([len(row) for row in distinct])
    users = torch.arange(len(rows)).repeat_interleave(counts)
    columns = torch.from_numpy(np.concatenate(distinct))
    popularity = torch.bincount(columns, minlength=items).clamp(min=1)
    weight = ((len(rows) + 1) / popularity).log()
    values = weight[columns] / counts.clamp(min=1).sqrt()[users]
    at = torch.stack([users, columns])
    shape = len(rows), items
    return torch.sparse_coo_tensor(at, values, shape, is_coalesced=True, check_invariants=False)
