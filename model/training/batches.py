"""Batches of rows of similar length, and generators that depend on nothing but seed and step."""

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def seeded(*parts: int | str) -> torch.Generator:
    """A generator of its own for each tuple, such as seed, purpose and epoch.

    A resumed run draws what the uninterrupted one draws, without storing generator states.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def bucketed_batches(
    lengths: npt.NDArray[np.int64], batch_size: int, generator: torch.Generator
) -> list[Tensor]:
    """Shuffled batches of row indices; the rows of a batch are nearly equally long.

    Rows of equal length meet in another batch every time, and batches come in random order.
    """
    order = torch.randperm(len(lengths), generator=generator)  # [N]
    by_length = torch.argsort(torch.from_numpy(lengths)[order], stable=True)
    batches = list(torch.split(order[by_length], batch_size))
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
