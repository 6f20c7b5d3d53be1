"""Histories with items left out: what keeps fine-tuning from learning users by heart."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

TokenRow = npt.NDArray[np.int64]


def thinned(
    rows: Sequence[TokenRow], mean_share: float, generator: torch.Generator
) -> list[TokenRow]:
    """Each row without a random share of its items.

    The share is uniform from 0 to twice the mean, so nearly empty histories are learned too.
    """
    limit = 2 * mean_share
    if limit == 0 or not rows:
        return list(rows)
    lengths = torch.tensor([len(row) for row in rows])
    shares = torch.rand(len(rows), generator=generator) * limit
    draws = torch.rand(int(lengths.sum()), generator=generator)
    is_kept = torch.split(draws >= shares.repeat_interleave(lengths), lengths.tolist())
    return [row[kept.numpy()] for row, kept in zip(rows, is_kept, strict=True)]
