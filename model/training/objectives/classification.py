"""One label of several."""

from dataclasses import dataclass

import torch
from torch import Tensor

from peterrec.model.data.examples import Examples
from peterrec.model.errors import TooFewClasses
from peterrec.model.network.heads import HEAD_KINDS, Head
from peterrec.model.spec import HeadSpec
from peterrec.model.training.calibration import Choices
from peterrec.model.training.objectives.objective import (
    Rows,
    label_indices,
    learnable_labels,
    require_labels,
    start_at,
)

KIND = HEAD_KINDS["classification"]


@dataclass(frozen=True, slots=True)
class ClassificationObjective:
    """``targets`` int64 [N] are class indices."""

    head_spec: HeadSpec
    targets: Tensor

    def prior(self, rows: Tensor) -> Tensor:
        """Log frequency of each class, smoothed by one half."""
        counts = torch.bincount(self.targets[rows], minlength=self.head_spec.outputs)
        return torch.log_softmax((counts + 0.5).log(), 0)

    def prepare(self, head: Head, rows: Tensor) -> None:
        start_at(head, self.prior(rows))

    def loss(self, head: Head, users: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        return KIND.loss(head.logits(users), self.targets[rows].to(users.device))

    def finish(self, head: Head) -> None:
        """Nothing to fold."""

    def judge(self, logits: Tensor, rows: Tensor) -> Tensor:
        return logits

    def metrics(self, judged: Tensor, rows: Tensor) -> dict[str, float]:
        return dict(KIND.metrics(judged, self.targets[rows]))

    def choices(self, judged: Tensor, rows: Tensor) -> Choices:
        return Choices(judged, self.targets[rows])


class ClassificationTask:
    """Every label seen is a class; at least two are needed."""

    def outputs(self, examples: Examples, train: Rows) -> tuple[str, ...]:
        labels = learnable_labels(examples, train)
        if len(labels) < 2:
            raise TooFewClasses(
                f"all users have the label {labels[0]!r}.", hint="A task needs two classes."
            )
        return labels

    def objective(self, outputs: tuple[str, ...], examples: Examples) -> ClassificationObjective:
        require_labels((answer[0] for answer in examples.answers), outputs)
        index = label_indices(outputs)
        targets = torch.tensor([index[answer[0]] for answer in examples.answers])
        return ClassificationObjective(HeadSpec("classification", len(outputs)), targets)
