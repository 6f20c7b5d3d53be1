"""Item embeddings to start from: the leading factors of who took what."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from peterrec.model.spec import FIRST_ITEM

SPECTRAL_STD = 0.3
POWER_ITERATIONS = 6


def spectral_embedding(
    rows: Sequence[npt.NDArray[np.int64]], items: int, channels: int, generator: torch.Generator
) -> Tensor:
    """Item vectors [items, F] with F = min(channels, items, users), standard deviation 0.3.

    A truncated singular value decomposition of the user × item matrix (rows of unit length, items
    weighted by inverse frequency) by subspace iteration (Halko et al. 2011, algorithm 4.4). It
    gives in a second what embeddings learn in epochs: which items the same people take.
    """
    by_user = _user_item_matrix(rows, items)  # [U, N]
    by_item = by_user.transposed(items)  # [N, U]
    factors = min(channels, items, len(rows))
    basis = torch.randn(items, factors, generator=generator)
    for _ in range(POWER_ITERATIONS):
        basis = _orthonormal(by_item.times(_orthonormal(by_user.times(basis))))  # [N, F]
    vectors, _, _ = torch.linalg.svd(by_item.times(by_user.times(basis)), full_matrices=False)
    scaled: Tensor = SPECTRAL_STD * vectors / vectors.std()
    return scaled


@dataclass(frozen=True, slots=True)
class _SparseMatrix:
    """Rows one after the other: row i has ``values`` at ``columns`` from ``starts[i]`` on."""

    columns: Tensor
    values: Tensor
    starts: Tensor

    def times(self, dense: Tensor) -> Tensor:
        """The product with dense [N, F]."""
        return embedding_bag(
            self.columns, dense, self.starts, mode="sum", per_sample_weights=self.values
        )

    def transposed(self, columns: int) -> "_SparseMatrix":
        """The transpose of a matrix with so many columns."""
        ends = torch.cat([self.starts[1:], torch.tensor([len(self.columns)])])
        row_of = torch.repeat_interleave(ends - self.starts)
        order = torch.argsort(self.columns, stable=True)
        counts = torch.bincount(self.columns, minlength=columns)
        return _SparseMatrix(row_of[order], self.values[order], counts.cumsum(0) - counts)


def _user_item_matrix(rows: Sequence[npt.NDArray[np.int64]], items: int) -> _SparseMatrix:
    distinct = [np.unique(row) - FIRST_ITEM for row in rows]
    counts = torch.tensor([len(row) for row in distinct])
    columns = torch.from_numpy(np.concatenate(distinct))
    popularity = torch.bincount(columns, minlength=items).clamp(min=1)
    weight = ((len(rows) + 1) / popularity).log()
    values = weight[columns] / counts.clamp(min=1).sqrt().repeat_interleave(counts)
    return _SparseMatrix(columns, values, counts.cumsum(0) - counts)


def _orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis
