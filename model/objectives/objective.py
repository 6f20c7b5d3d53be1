"""What a kind of task must bring so that a patch and a head can be trained and judged for it."""

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.calibration import Choices
from model.examples import Examples
from model.heads import Head
from model.spec import HeadSpec

Rows = npt.NDArray[np.int64]


class Objective(Protocol):
    """One task's answers as tensors. Rows are indices into the examples it was built for."""

    @property
    def head_spec(self) -> HeadSpec:
        """The head this task needs."""

    def prior(self, rows: Tensor) -> Tensor:
        """The best logits [K] that ignore the history, learned on some rows."""

    def prepare(self, head: Head, rows: Tensor) -> None:
        """Start the head's bias so that training begins at the prior."""

    def loss(self, head: Head, users: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Mean loss of user vectors [B, C] against the answers of rows int64 [B]."""

    def finish(self, head: Head) -> None:
        """Fold what only training needed into the head."""

    def judge(self, logits: Tensor, rows: Tensor) -> Tensor:
        """What the metrics need of logits [B, K]: one entry for each answer, in the rows' order."""

    def metrics(self, judged: Tensor, rows: Tensor) -> dict[str, float]:
        """Quality over all judged rows, by metric name."""


@runtime_checkable
class ProbableObjective(Objective, Protocol):
    """An objective whose task answers probabilities, so that they can be calibrated."""

    def choices(self, judged: Tensor, rows: Tensor) -> Choices:
        """What a temperature is fitted to, of judged rows."""


class Task(Protocol):
    """A kind of task: how its outputs follow from the training answers, and its objective."""

    def outputs(self, examples: Examples, train: Rows) -> tuple[str, ...]:
        """Labels, tags or catalog in the order of the head's rows; empty for a value."""

    def objective(self, outputs: tuple[str, ...], examples: Examples) -> Objective:
        """The objective of these users for these outputs."""
