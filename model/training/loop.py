"""What every training loop does."""

import math

from torch import Tensor

from peterrec.model.errors import TrainingDiverged


def require_finite(loss: Tensor, step: int, learning_rate: float) -> float:
    """The loss as a number, refused if it is none any more; steps count from 0."""
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"the loss is {value} at step {step + 1} with learning rate {learning_rate:.2g}.",
            hint="Lower the learning rate.",
        )
    return value
