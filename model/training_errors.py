"""What can go wrong with a training run itself."""

import math

from torch import Tensor

from model.errors import Category, PeterRecError, TrainingDiverged


class CheckpointMismatch(PeterRecError):
    """A checkpoint of another run."""

    code = "checkpoint_mismatch"
    category = Category.INCOMPATIBLE


class TasksDiffer(PeterRecError):
    """Tasks that cannot be trained in one run."""

    code = "tasks_differ"
    category = Category.INCOMPATIBLE


class TrunkTooLarge(PeterRecError):
    """More histories than the memory for trunk states holds."""

    code = "trunk_too_large"
    category = Category.TOO_LARGE


def require_finite(loss: Tensor, step: int, learning_rate: float) -> float:
    """The loss as a number, refused if it is none any more; steps count from 0."""
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"the loss is {value} at step {step + 1} with learning rate {learning_rate:.2g}.",
            hint="Lower the learning rate.",
        )
    return value
