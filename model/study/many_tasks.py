"""Several tasks of the same users in one training run (MTL)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from peterrec.model.data.examples import Examples
from peterrec.model.data.splits import UserSplit
from peterrec.model.study.task_data import TaskData
from peterrec.model.training.finetune.objective_of_head import HeadObjective

ABSENT = -1


class ManyTasksGoal:
    """One head for each task. ``rows[t]`` int64 [N] is each joint example's row in task t's own
    examples, ABSENT where it has no answer to learn from or to be judged by.

    The loss sums the tasks' losses, each weighted by its share of answers in the batch.
    """

    def __init__(
        self, names: Sequence[str], goals: Sequence[HeadObjective], rows: Sequence[Tensor]
    ) -> None:
        self._names = names
        self.head = nn.ModuleList([goal.head for goal in goals])
        self._goals = goals
        self._rows = rows

    def prepare(self, rows: Tensor) -> None:
        for goal, own in zip(self._goals, self._rows, strict=True):
            goal.prepare(own[rows][own[rows] != ABSENT])

    def loss(self, vectors: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        total = vectors.sum() * 0
        for goal, own in zip(self._goals, self._rows, strict=True):
            at = (own[rows] != ABSENT).nonzero().squeeze(1)  # [B] -> [b]
            if len(at):
                loss = goal.loss(vectors[at.to(vectors.device)], own[rows[at]], generator)
                total = total + loss * (len(at) / len(rows))
        return total

    def metrics(self, vectors: Tensor, rows: Tensor) -> dict[str, float]:
        """Of every task, named ``task/metric``."""
        metrics: dict[str, float] = {}
        for name, goal, own in zip(self._names, self._goals, self._rows, strict=True):
            at = (own[rows] != ABSENT).nonzero().squeeze(1)  # [B] -> [b]
            found = goal.metrics(vectors[at.to(vectors.device)], own[rows[at]])
            metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
        return metrics

    def finish(self) -> None:
        for goal in self._goals:
            goal.finish()


def join_tasks(
    tasks: Sequence[TaskData], splits: Sequence[UserSplit]
) -> tuple[Examples, UserSplit, list[Tensor]]:
    """The tasks' users together, their split, and each one's row in every task."""
    index: dict[str, int] = {}
    for task in tasks:
        for user in task.examples.users:
            index.setdefault(user, len(index))
    histories: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(index)
    parts = np.full(len(index), ABSENT)
    rows = [torch.full((len(index),), ABSENT) for _ in tasks]
    for task, split, own in zip(tasks, splits, rows, strict=True):
        for part, members in enumerate((split.train, split.validation, split.test)):
            for row in members.tolist():
                at = index[task.examples.users[row]]
                histories[at] = task.examples.rows[row]
                parts[at], own[at] = part, row
    examples = Examples(tuple(index), histories, [()] * len(index), tasks[0].examples.items)
    train, validation, test = (np.flatnonzero(parts == part) for part in range(3))
    return examples, UserSplit(train, validation, test), rows
