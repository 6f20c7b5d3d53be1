"""Adam on the rows of a large table that a step reads, as if the table had no others."""

import torch
from torch import Tensor
from torch.nn import functional


class LazyRows:
    """Distinct rows int64 [R] of a table [K, ...], as a tensor of their own that has gradients.

    Neither the backward pass nor the update touches the rest of the table: a million items cost
    what the few thousand of a step cost. Rows that a step does not read keep their moments, which
    dense Adam would let fade (as ``torch.optim.SparseAdam`` does).
    """

    def __init__(self, table: Tensor, rows: Tensor) -> None:
        self.weight = table.detach()[rows].requires_grad_(True)  # [K, ...] -> [R, ...]
        self.table, self._rows = table, rows

    def read(self, tokens: Tensor) -> Tensor:
        """What tokens int64 [N] name in the table, [N, ...]; rows must be sorted and hold them."""
        return functional.embedding(torch.searchsorted(self._rows, tokens), self.weight)

    @torch.no_grad()
    def update(self, optimizer: torch.optim.Adam) -> None:
        """One step of Adam with the optimiser's rate and moments; the gradient is then used up."""
        assert self.weight.grad is not None
        group, state = optimizer.param_groups[0], optimizer.state[self.table]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(self.table)
            state["exp_avg_sq"] = torch.zeros_like(self.table)
        state["step"] += 1
        step, slope, (beta1, beta2) = float(state["step"]), self.weight.grad, group["betas"]
        mean = state["exp_avg"][self._rows].lerp_(slope, 1 - beta1)
        square = state["exp_avg_sq"][self._rows].mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
        spread = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        rate = group["lr"] / (1 - beta1**step)
        updated = self.weight.detach().addcdiv_(mean, spread, value=-rate)
        for table, rows in (
            (self.table, updated),
            (state["exp_avg"], mean),
            (state["exp_avg_sq"], square),
        ):
            table.index_copy_(0, self._rows, rows)
