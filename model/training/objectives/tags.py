"""Any number of labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from peterrec.model.data.examples import Examples
from peterrec.model.network.heads import HEAD_KINDS, Head
from peterrec.model.spec import HeadSpec
from peterrec.model.training.calibration import Choices, tag_choices
from peterrec.model.training.objectives.objective import (
    Rows,
    label_indices,
    learnable_labels,
    require_labels,
    start_at,
)

KIND = HEAD_KINDS["tags"]


@dataclass(frozen=True, slots=True)
class TagsObjective:
    """``targets`` [N, K] are 1 where a user has a tag, else 0."""

    head_spec: HeadSpec
    targets: Tensor

    def prior(self, rows: Tensor) -> Tensor:
        """Log odds of each tag, smoothed by one half."""
        present = self.targets[rows].sum(0) + 0.5
        return (present / (len(rows) + 1 - present)).log()

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
        return tag_choices(judged, self.targets[rows])


class TagsTask:
    """Every tag seen is an output; users without a tag are examples too."""

    def outputs(self, examples: Examples, train: Rows) -> tuple[str, ...]:
        return learnable_labels(examples, train)

    def objective(self, outputs: tuple[str, ...], examples: Examples) -> TagsObjective:
        require_labels((tag for answer in examples.answers for tag in answer), outputs)
        index = label_indices(outputs)
        targets = torch.zeros(len(examples.users), len(outputs))
        for row, answer in zip(targets, examples.answers, strict=True):
            row[[index[tag] for tag in answer]] = 1
        return TagsObjective(HeadSpec("tags", len(outputs)), targets)
