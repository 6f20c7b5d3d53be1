"""Any number of labels: binary cross-entropy for each."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.data.examples import Examples
from peterrec.model.errors import TooFewClasses
from peterrec.model.network.heads import Head
from peterrec.model.spec import HeadSpec
from peterrec.model.training.calibration import Samples, tag_samples
from peterrec.model.training.metrics import area_under_roc
from peterrec.model.training.objectives.objective import (
    Rows,
    label_indices,
    learnable_labels,
    require_labels,
)
from peterrec.model.training.objectives.summary import (
    LISTED,
    AnswerSummary,
    counted,
    doubts_of_alike,
    doubts_of_small,
    listed,
)


@dataclass(frozen=True, slots=True)
class TagsObjective:
    """``targets`` [N, K] are 1 where a user has a tag, else 0.

    Every tag seen is an output; users without a tag are examples too.
    """

    primary_metric: ClassVar[str] = "micro_f1"

    head_spec: HeadSpec
    targets: Tensor

    @classmethod
    def learn_outputs(cls, examples: Examples, train: Rows) -> tuple[str, ...]:
        _require_different(examples)
        return learnable_labels(examples, train)

    @classmethod
    def summary(cls, examples: Examples, rows: Rows) -> AnswerSummary:
        counts, users = examples.counts(rows.tolist()), len(rows)
        without = sum(not examples.answers[i] for i in rows.tolist())
        text = (
            f"{examples.source}: {counted(users, 'user')} with {counted(len(counts), 'tag')}, "
            f"{counts.total() / users:.1f} each, {without:,} without any: {listed(counts, users)}."
        )
        everywhere = sorted(tag for tag, n in counts.items() if n == users)
        doubts = [*doubts_of_small(counts, "tag"), *doubts_of_alike(counts, "tags")]
        if everywhere:
            doubts.append(f"Every user has the tags {', '.join(map(repr, everywhere[:LISTED]))}.")
        return AnswerSummary(text, tuple(doubts))

    @classmethod
    def of(cls, outputs: tuple[str, ...], examples: Examples) -> Self:
        require_labels((tag for answer in examples.answers for tag in answer), outputs)
        index = label_indices(outputs)
        targets = torch.zeros(len(examples.users), len(outputs))
        for row, answer in zip(targets, examples.answers, strict=True):
            row[[index[tag] for tag in answer]] = 1
        return cls(HeadSpec("tags", len(outputs)), targets)

    def prior(self, rows: Tensor) -> Tensor:
        """Log odds of each tag, smoothed by one half."""
        present = self.targets[rows].sum(0) + 0.5
        return (present / (len(rows) + 1 - present)).log()

    def loss(self, head: Head, users: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Mean binary cross-entropy from logits, which does not saturate."""
        return self.logit_loss(head.logits(users), rows)

    def logit_loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        targets = self.targets[rows].to(logits)
        return functional.binary_cross_entropy_with_logits(logits, targets)

    def predictions(self, logits: Tensor, rows: Tensor) -> Tensor:
        return logits

    def metrics(self, predictions: Tensor, rows: Tensor) -> dict[str, float]:
        """Micro precision, recall and F1 at 0.5, and the area under the ROC over all pairs."""
        chosen, present = predictions > 0, self.targets[rows] > 0.5
        hits = (chosen & present).sum().item()
        precision = hits / max(1, chosen.sum().item())
        recall = hits / max(1, present.sum().item())
        return {
            "micro_precision": precision,
            "micro_recall": recall,
            "micro_f1": 2 * precision * recall / max(1e-12, precision + recall),
            "micro_auc": area_under_roc(predictions.flatten(), present.flatten()),
        }

    def samples(self, predictions: Tensor, rows: Tensor) -> Samples:
        return tag_samples(predictions, self.targets[rows])


def _require_different(examples: Examples) -> None:
    sets = {frozenset(answer) for answer in examples.answers}
    if len(sets) == 1:
        tags = ", ".join(map(repr, sorted(sets.pop())[:LISTED])) or "no tag"
        raise TooFewClasses(
            f"{examples.source}: all {len(examples.users):,} users with a history have the same "
            f"tags: {tags}.",
            hint="A tags task needs users with different tags; list those without any, too.",
        )


KIND = TagsObjective
