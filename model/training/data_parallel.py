"""The processes that pretrain together: each computes some rows of every batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True, slots=True)
class Workers:
    """This process's place among all; a single one is the default.

    Every process draws the same batches and holds the same weights. It computes its share of the
    rows; gradients are added up, so the steps are those of one process with the whole batch.
    """

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """True for the process that writes files and tells of progress."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process's part of so many rows; empty if there are more processes than rows."""
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace every process's tensors by their sums over all processes."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(
            tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True
        ):
            tensor.copy_(total.view_as(tensor))

    def joined(self, own: Tensor, rows: int) -> Tensor:
        """All processes' rows [rows, C], of which this one has its share ``own``.

        Gradients flow into the own rows only; the other processes see to theirs.
        """
        if self.count == 1:
            return own
        whole = own.new_zeros(rows, own.shape[1])
        part = self.share(rows)
        whole[part] = own.detach()
        self.add_up([whole])
        return torch.cat([whole[: part.start], own, whole[part.stop :]])


ALONE = Workers()
"""A single process."""
