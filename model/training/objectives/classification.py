"""One label of several: full cross-entropy over all classes."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.data.examples import Examples
from peterrec.model.errors import TooFewClasses
from peterrec.model.network.heads import Head
from peterrec.model.spec import HeadSpec
from peterrec.model.training.calibration import Samples
from peterrec.model.training.metrics import area_under_roc, macro_f1
from peterrec.model.training.objectives.objective import (
    Rows,
    label_indices,
    learnable_labels,
    require_labels,
)


@dataclass(frozen=True, slots=True)
class ClassificationObjective:
    """``targets`` int64 [N] are class indices. Every label seen is a class, at least two."""

    primary_metric: ClassVar[str] = "accuracy"

    head_spec: HeadSpec
    targets: Tensor

    @classmethod
    def learn_outputs(cls, examples: Examples, train: Rows) -> tuple[str, ...]:
        labels = learnable_labels(examples, train)
        if len(labels) < 2:
            raise TooFewClasses(
                f"all users have the label {labels[0]!r}.", hint="A task needs two classes."
            )
        return labels

    @classmethod
    def of(cls, outputs: tuple[str, ...], examples: Examples) -> Self:
        require_labels((answer[0] for answer in examples.answers), outputs)
        index = label_indices(outputs)
        targets = torch.tensor([index[answer[0]] for answer in examples.answers])
        return cls(HeadSpec("classification", len(outputs)), targets)

    def prior(self, rows: Tensor) -> Tensor:
        """Log frequency of each class, smoothed by one half."""
        counts = torch.bincount(self.targets[rows], minlength=self.head_spec.outputs)
        return torch.log_softmax((counts + 0.5).log(), 0)

    def loss(self, head: Head, users: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy; the published code's one-negative loss is not used."""
        return functional.cross_entropy(head.logits(users), self.targets[rows].to(users.device))

    def predictions(self, logits: Tensor, rows: Tensor) -> Tensor:
        return logits

    def metrics(self, predictions: Tensor, rows: Tensor) -> dict[str, float]:
        """Accuracy, macro F1, and the area under the ROC curve if there are two classes."""
        logits, targets = predictions, self.targets[rows]
        best = logits.argmax(1)
        metrics = {
            "accuracy": (best == targets).double().mean().item(),
            "macro_f1": macro_f1(best, targets, logits.shape[1]),
        }
        if logits.shape[1] == 2:
            odds = logits[:, 1].double() - logits[:, 0].double()
            metrics["auc"] = area_under_roc(odds, targets == 1)
        return metrics

    def samples(self, predictions: Tensor, rows: Tensor) -> Samples:
        return Samples(predictions, self.targets[rows])


KIND = ClassificationObjective
