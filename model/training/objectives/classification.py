"""One label of several: full cross-entropy over all classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.data.examples import Examples
from peterrec.model.data.labels import is_number
from peterrec.model.errors import LabelsContinuous, TooFewClasses
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
from peterrec.model.training.objectives.summary import (
    AnswerSummary,
    counted,
    doubts_of_alike,
    doubts_of_small,
    listed,
)

FEWEST_JUDGED = 20
"""Different labels below which a column is not judged as ids or continuous numbers."""

MANY_CLASSES = 50
"""Classes that are all numbers, from which a value task was probably meant."""


@dataclass(frozen=True, slots=True)
class ClassificationObjective:
    """``targets`` int64 [N] are class indices. Every label seen is a class, at least two."""

    primary_metric: ClassVar[str] = "accuracy"

    head_spec: HeadSpec
    targets: Tensor

    @classmethod
    def learn_outputs(cls, examples: Examples, train: Rows) -> tuple[str, ...]:
        _require_classes(examples)
        return learnable_labels(examples, train)

    @classmethod
    def summary(cls, examples: Examples, rows: Rows) -> AnswerSummary:
        counts, users = examples.counts(rows.tolist()), counted(len(rows), "user")
        classes = f"{len(counts):,} class{'es' if len(counts) != 1 else ''}"
        text = f"{examples.source}: {users} in {classes}: {listed(counts, len(rows))}."
        return AnswerSummary(
            text,
            (
                *doubts_of_small(counts, "class"),
                *doubts_of_alike(counts, "classes"),
                *_doubts_of_numbers(sorted(counts)),
            ),
        )

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
        return self.logit_loss(head.logits(users), rows)

    def logit_loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        return functional.cross_entropy(logits, self.targets[rows].to(logits.device))

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


def _require_classes(examples: Examples) -> None:
    """Refuse a single label, and a column in which about every user has an own label."""
    counts, users = examples.counts(), len(examples.users)
    if len(counts) == 1:
        (label,) = counts
        left = f"; left out, with too few users, are {listed(examples.dropped, users)}"
        raise TooFewClasses(
            f"{examples.source}: all users with a history have the label {label!r}"
            f"{left if examples.dropped else ''}.",
            hint="A task needs two classes.",
        )
    if len(counts) >= FEWEST_JUDGED and 2 * len(counts) > users:
        are_numbers = all(is_number(label) for label in counts)
        raise LabelsContinuous(
            f"{examples.source}: {users:,} users have {len(counts):,} different labels, such as "
            f"{', '.join(map(repr, sorted(counts)[:3]))}; these are no classes.",
            hint="Train a value task on numbers."
            if are_numbers
            else "Check the label column: it may hold ids or free text.",
        )


def _doubts_of_numbers(labels: list[str]) -> Iterator[str]:
    if not all(is_number(label) for label in labels):
        return
    fractions = [label for label in labels if not float(label).is_integer()]
    if fractions or len(labels) > MANY_CLASSES:
        such = f", such as {fractions[0]!r}" if fractions else ""
        yield (
            f"All {len(labels):,} classes are numbers{such}, and their order is not used; a value "
            "task learns how much."
        )


KIND = ClassificationObjective
