"""The minimum of a smooth convex loss of a few thousand to million weights, by L-BFGS."""

from collections.abc import Callable

import torch
from torch import Tensor

MOST_STEPS = 200
"""Most steps of L-BFGS."""

TOLERANCE = 1e-7
"""L-BFGS ends when the loss falls by less in a step, or no derivative is larger."""


def minimize(parameters: list[Tensor], loss: Callable[[], Tensor]) -> None:
    """Move parameters, in place, to the minimum of a loss that is differentiable in them."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=MOST_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=TOLERANCE,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]  # torch's
        return value.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch's
