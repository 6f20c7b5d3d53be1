"""Batches of rows of similar length, item dropout, and generators that depend on seed and step."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TokenRow = npt.NDArray[np.int64]


def seeded(*parts: int | str) -> torch.Generator:
    """A separate generator for each tuple, such as seed, purpose and epoch.

    A resumed run draws the same numbers as an uninterrupted one, without stored generator states.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def bucketed_batches(
    lengths: npt.NDArray[np.int64], batch_size: int, generator: torch.Generator
) -> list[Tensor]:
    """Shuffled batches of row indices; the rows of a batch are nearly equally long.

    Which rows of equal length share a batch is random, and so is the order of the batches.
    """
    order = torch.randperm(len(lengths), generator=generator)  # [N]
    by_length = torch.argsort(torch.from_numpy(lengths)[order], stable=True)
    batches = list(torch.split(order[by_length], batch_size))
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def drop_items(
    rows: Sequence[TokenRow], mean_share: float, generator: torch.Generator
) -> list[TokenRow]:
    """Leave a random share of its items out of each row, so that a model does not memorise users.

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
