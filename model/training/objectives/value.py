"""A number."""

from dataclasses import dataclass

import torch
from torch import Tensor

from peterrec.model.data.examples import Examples
from peterrec.model.errors import TooFewClasses
from peterrec.model.network.heads import HEAD_KINDS, Head
from peterrec.model.spec import HeadSpec
from peterrec.model.training.objectives.objective import Rows

KIND = HEAD_KINDS["value"]


@dataclass(slots=True)
class ValueObjective:
    """``targets`` [N, 1] are the numbers. The head learns them standardised: Adam's steps are
    absolute, so incomes and ages need the same scale. ``finish`` gives it the numbers' own scale.
    """

    targets: Tensor
    mean: Tensor
    scale: Tensor

    @property
    def head_spec(self) -> HeadSpec:
        return HeadSpec("value", 1)

    def prior(self, rows: Tensor) -> Tensor:
        """The mean."""
        return self.targets[rows].mean(0)

    def prepare(self, head: Head, rows: Tensor) -> None:
        """Learn the scale; the standardised prior is the bias's own start, 0."""
        self.mean, self.scale = self.targets[rows].mean(), self.targets[rows].std()

    def loss(self, head: Head, users: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        wanted = (self.targets[rows] - self.mean) / self.scale
        return KIND.loss(head.logits(users), wanted.to(users.device))

    def finish(self, head: Head) -> None:
        """``scale (u w + b) + mean`` as one linear layer."""
        assert head.bias is not None
        with torch.no_grad():
            head.weight.mul_(self.scale.item())
            head.bias.mul_(self.scale.item()).add_(self.mean.item())

    def judge(self, logits: Tensor, rows: Tensor) -> Tensor:
        return logits

    def metrics(self, judged: Tensor, rows: Tensor) -> dict[str, float]:
        return dict(KIND.metrics(judged, self.targets[rows]))


class ValueTask:
    """One output without a name."""

    def outputs(self, examples: Examples, train: Rows) -> tuple[str, ...]:
        distinct = {float(examples.answers[i][0]) for i in train.tolist()}
        if len(distinct) < 2:
            raise TooFewClasses(
                f"all training users have the value {distinct.pop():g}.",
                hint="A constant needs no model.",
            )
        return ()

    def objective(self, outputs: tuple[str, ...], examples: Examples) -> ValueObjective:
        numbers = [[float(answer[0])] for answer in examples.answers]
        return ValueObjective(torch.tensor(numbers), torch.zeros(()), torch.ones(()))
