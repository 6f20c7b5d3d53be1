"""Data-parallel pretraining: each process computes some rows of every batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True, slots=True)
class Workers:
    """The rank of this process and the number of processes, by default a single one.

    Every process draws the same batches and holds the same weights, and computes its share of the
    rows. Gradients are added up, so the steps equal those of one process with the whole batch.
    """

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """True for the process that writes files and reports progress."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process's part of ``rows`` rows; may be empty if the rows are few."""
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

    def of_first(self, value: float, device: torch.device) -> float:
        """The number of the first process, by which all of them decide alike.

        Each computes the same one but for rounding, which differs between kinds of devices.
        """
        if self.count == 1:
            return value
        shared = torch.tensor([value if self.writes else 0.0], dtype=torch.float64, device=device)
        dist.all_reduce(shared)
        return shared.item()

    def joined(self, own: Tensor, rows: int) -> Tensor:
        """The rows [rows, C] of all processes, of which this one computed its share ``own``.

        Gradients flow into this process's rows only; the others compute those of their rows.
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
