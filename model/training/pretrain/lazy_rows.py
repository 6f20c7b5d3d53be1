"""Adam on only those rows of a large table that a training step reads."""

import torch
from torch import Tensor
from torch.nn import functional


class LazyRows:
    """Distinct rows int64 [R] of a table [K, ...], copied to a separate tensor that has gradients.

    Neither the backward pass nor the update touches the rest of the table, so a step costs as much
    with a million items as with the few thousand that it reads. Rows that a step does not read keep
    their moments, as in ``torch.optim.SparseAdam``; dense Adam would let them decay. SparseAdam is
    not used because it is no faster and starts with other steps (``docs/decisions/0023``).
    """

    def __init__(self, table: Tensor, rows: Tensor) -> None:
        self.weight = table.detach()[rows].requires_grad_(True)  # [K, ...] -> [R, ...]
        self.table, self._rows = table, rows

    def read(self, tokens: Tensor) -> Tensor:
        """The table's rows [N, ...] of tokens int64 [N], which must be among the sorted rows."""
        return functional.embedding(torch.searchsorted(self._rows, tokens), self.weight)

    @torch.no_grad()
    def update(self, optimizer: torch.optim.Adam) -> None:
        """Make one step of Adam with the optimiser's learning rate and moments of the table."""
        assert self.weight.grad is not None
        group, state = optimizer.param_groups[0], optimizer.state[self.table]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(self.table)
            state["exp_avg_sq"] = torch.zeros_like(self.table)
        state["step"] += 1
        step, gradient, (beta1, beta2) = float(state["step"]), self.weight.grad, group["betas"]
        mean = state["exp_avg"][self._rows].lerp_(gradient, 1 - beta1)
        square = (
            state["exp_avg_sq"][self._rows]
            .mul_(beta2)
            .addcmul_(gradient, gradient, value=1 - beta2)
        )
        spread = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        rate = group["lr"] / (1 - beta1**step)
        updated = self.weight.detach().addcdiv_(mean, spread, value=-rate)
        for table, rows in (
            (self.table, updated),
            (state["exp_avg"], mean),
            (state["exp_avg_sq"], square),
        ):
            table.index_copy_(0, self._rows, rows)
