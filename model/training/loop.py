"""The parts that all training runs share: epochs, best weights, early stopping, learning rates.

Pretraining, fine-tuning one task and fine-tuning many use the same ones. ``Epochs`` counts a run's
epochs, keeps the best one's weights and decides when to stop; ``schedule`` sets learning rates.
"""

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from peterrec.model.errors import TrainingDiverged
from peterrec.model.progress import OnProgress, Progress

WARM_UP_SHARE = 0.02
"""Share of all steps in which pretraining's learning rate rises from 0, before it falls to 0."""

Shape = Callable[[int], float]
"""Share of the highest learning rate that a step has; steps count from 0 over the whole run."""


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """Cost and result of one epoch: a pass over the training examples and one over the others.

    ``validation_metrics`` is empty unless the run tracks metrics. ``seconds`` are those of the
    training pass. ``learning_rates`` are those of the first step, one for each group of parameters.
    The peaks of memory are the process's since it began. Checkpoints of earlier versions lack the
    fields with a default.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    seconds: float
    sequences_per_second: float
    validation_metrics: dict[str, float] = field(default_factory=dict)
    sequences: int | None = None
    validation_sequences: int | None = None
    validation_seconds: float | None = None
    learning_rates: list[float] = field(default_factory=list)
    peak_rss_bytes: int | None = None
    cuda_peak_bytes: int | None = None
    ended_at: str | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """The mean loss of a pass over some sequences, the metrics if they are tracked, its time."""

    loss: float
    sequences: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """How a run makes an epoch, and over how many sequences.

    ``train`` makes one pass over the training sequences and returns the mean loss; ``validate``
    returns the validation loss and metrics. ``optimizer`` is asked for the learning rates.
    """

    train: Callable[[], float]
    validate: Callable[[], tuple[float, dict[str, float]]]
    sequences: int
    validation_sequences: int
    optimizer: Optimizer


class Epochs:
    """The epochs of one training run so far, and the weights of the best one.

    The best epoch is the one with the lowest validation loss, the first of equals.
    """

    def __init__(self, trained: nn.Module, limit: int, patience: int) -> None:
        self.records: list[EpochRecord] = []
        self.best_weights: dict[str, Tensor] = {}
        self._trained = trained
        self._limit = limit
        self._patience = patience

    def __len__(self) -> int:
        return len(self.records)

    @property
    def best(self) -> int:
        """Index of the best epoch; -1 if there is none."""
        losses = [record.validation_loss for record in self.records]
        return losses.index(min(losses)) if losses else -1

    @property
    def are_over(self) -> bool:
        """True after the last epoch, or after ``patience`` epochs without a lower loss."""
        return len(self) >= self._limit or len(self) - 1 - self.best >= self._patience

    def add(self, record: EpochRecord) -> None:
        """Add a finished epoch; copy its weights if it is the best one.

        A validation loss that is not finite raises TrainingDiverged.
        """
        if not math.isfinite(record.validation_loss):
            raise TrainingDiverged(
                f"the validation loss is {record.validation_loss} after epoch {record.epoch + 1}.",
                hint="Lower the learning rate.",
            )
        self.records.append(record)
        if self.best == len(self) - 1:
            weights = self._trained.state_dict()
            self.best_weights = {name: t.detach().clone() for name, t in weights.items()}

    def restore_best(self) -> None:
        """Give the trained module the weights of the best epoch."""
        self._trained.load_state_dict(self.best_weights)

    def run(self, plan: EpochPlan, after_epoch: Callable[[], None] = lambda: None) -> None:
        """Train until the epochs are over, then restore the best weights."""
        while not self.are_over:
            rates = current_rates(plan.optimizer)
            started = time.perf_counter()
            loss = plan.train()
            trained = time.perf_counter()
            validation_loss, metrics = plan.validate()
            validated = time.perf_counter()
            train = Pass(loss, plan.sequences, trained - started)
            validation = Pass(
                validation_loss, plan.validation_sequences, validated - trained, metrics
            )
            self.add(self.record(train, validation, rates))
            after_epoch()
        self.restore_best()

    def record(self, train: Pass, validation: Pass, rates: Sequence[float]) -> EpochRecord:
        """The record of the epoch that follows those so far."""
        device = next(self._trained.parameters()).device
        is_cuda = device.type == "cuda"
        return EpochRecord(
            epoch=len(self),
            train_loss=train.loss,
            validation_loss=validation.loss,
            seconds=round(train.seconds, 3),
            sequences_per_second=round(train.sequences / train.seconds, 1),
            validation_metrics=validation.metrics,
            sequences=train.sequences,
            validation_sequences=validation.sequences,
            validation_seconds=round(validation.seconds, 3),
            learning_rates=list(rates),
            peak_rss_bytes=peak_rss_bytes(),
            cuda_peak_bytes=torch.cuda.max_memory_allocated(device) if is_cuda else None,
            ended_at=now(),
        )


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Reports how far a run is: in batches, over all epochs, those of validation included."""

    phase: str
    epochs: int
    train_batches: int
    validation_batches: int
    on_progress: OnProgress

    def training(self, epoch: int, batches: int, loss: float | None = None) -> None:
        """Report training batches of an epoch, which counts from 0, and the mean loss so far."""
        self._report(epoch, batches, "" if loss is None else f", loss {loss:.3f}")

    def validating(self, epoch: int, batches: int) -> None:
        """Report validation batches of an epoch whose training batches are all done."""
        note = ", validating" if batches < self.validation_batches else ""
        self._report(epoch, self.train_batches + batches, note)

    def _report(self, epoch: int, batches: int, note: str) -> None:
        per_epoch = self.train_batches + self.validation_batches
        done, total = epoch * per_epoch + batches, self.epochs * per_epoch
        note = f"epoch {epoch + 1}/{self.epochs}{note}"
        self.on_progress(Progress(self.phase, done, total, note, "batches"))


def now() -> str:
    """The time in UTC, to the millisecond, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def peak_rss_bytes() -> int:
    """The largest amount of memory that this process has had so far; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def schedule(optimizer: Optimizer, shapes: Sequence[Shape], steps_done: int = 0) -> LambdaLR:
    """Learning rates of the optimiser's groups: each group's own rate times its shape.

    A resumed run gives the number of steps that it has done.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return LambdaLR(optimizer, list(shapes), last_epoch=steps_done - 1)


def falling(steps: int) -> Shape:
    """From the full learning rate at the first step linearly to 0 after the last one."""
    return lambda step: max(0.0, 1 - step / steps)


def rising_then_falling(steps: int) -> Shape:
    """A short linear rise (``WARM_UP_SHARE``), then a linear fall to 0 after the last step."""
    warm_up = max(1, round(steps * WARM_UP_SHARE))
    fall = max(1, steps - warm_up)
    return lambda step: max(0.0, min(1.0, (step + 1) / warm_up, (steps - step) / fall))


def backward(loss: Tensor) -> None:
    """Add the loss's gradients to those of the parameters."""
    loss.backward()  # type: ignore[no-untyped-call]  # torch's


def current_rate(optimizer: Optimizer) -> float:
    """Learning rate of the optimiser's first group."""
    return current_rates(optimizer)[0]


def current_rates(optimizer: Optimizer) -> list[float]:
    """Learning rate of each of the optimiser's groups."""
    groups: list[dict[str, Any]] = optimizer.param_groups  # Any: torch's own type
    return [float(group["lr"]) for group in groups]


def require_finite(loss: Tensor, step: int, learning_rate: float) -> float:
    """The loss as a number; NaN or infinity raises TrainingDiverged. Steps count from 0."""
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"the loss is {value} at step {step + 1} with learning rate {learning_rate:.2g}.",
            hint="Lower the learning rate.",
        )
    return value
