"""A corpus's tasks in a backbone's tokens, ready to be trained and evaluated: alone or together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peterrec.model.data.examples import Examples, join_answers, require_shared_users
from peterrec.model.data.histories import UserLabels
from peterrec.model.data.splits import UserSplit, rank_of
from peterrec.model.data.vocabulary import Vocabulary, tokenize
from peterrec.model.errors import LabelsTooRare, SplitEmpty
from peterrec.model.kinds import KINDS
from peterrec.model.progress import Notice
from peterrec.model.spec import HeadKind
from peterrec.model.study.corpus import PreparedCorpus
from peterrec.model.training.finetune.doubts import doubts_of_task
from peterrec.model.training.finetune.objective_of_head import HeadObjective
from peterrec.model.training.objectives import OBJECTIVES, Objective


@dataclass(frozen=True, slots=True)
class TaskData:
    """Examples, their split and objective; ``dropped`` counts users whose answer is too rare."""

    name: str
    kind: HeadKind
    examples: Examples
    split: UserSplit
    outputs: tuple[str, ...]
    objective: Objective
    dropped: int


def task_data(
    corpus: PreparedCorpus,
    name: str,
    items: Sequence[str],
    min_label_count: int,
    further_items: Sequence[str] = (),
) -> TaskData:
    """The users of a task with a known history and a learnable answer, split as the corpus is.

    A history is known if it has one of the ``items``. Its examples also have the ``further_items``,
    whose tokens follow those of the others.

    Fine-tuning's ``prepare_task`` splits users by shares and builds a patch. Here the corpus's
    split holds, and a method builds what is trained. Answers are counted among training users
    only. A class that fewer than ``min_label_count`` of them have is left out for everybody. A
    target item that no training user has stays, and counts as missed.
    """
    task = corpus.task(name)
    require_shared_users(corpus.histories.users, task.labels)
    vocabulary = Vocabulary((*items, *further_items))
    wanted = np.flatnonzero([user in task.labels.by_user for user in corpus.histories.users])
    own = corpus.histories.select(wanted)
    known = tokenize(own, Vocabulary(tuple(items)))
    readable = {user for user, row in zip(known.users, known.rows, strict=True) if len(row)}
    part_of = {user: part for user, part in _parts(corpus).items() if user in readable}
    labels = task.labels
    if KINDS[task.kind].answers == "label":
        labels = _without_rare(labels, part_of, min_label_count)
    readable_rows = np.flatnonzero([len(row) > 0 for row in known.rows])
    known = tokenize(own.select(readable_rows), vocabulary) if further_items else known
    examples = join_answers(known, labels, vocabulary.items)
    split = _split(examples, part_of)
    _require_parts(f"{corpus.name}/{name}", split)
    kind = OBJECTIVES[task.kind]
    outputs = kind.learn_outputs(examples, split.train)
    dropped = len(task.labels.by_user) - len(labels.by_user)
    objective = kind.of(outputs, examples)
    return TaskData(name, task.kind, examples, split, outputs, objective, dropped)


def check_task(corpus: PreparedCorpus, name: str, min_label_count: int, notice: Notice) -> None:
    """Refuse a task that cannot be learned or measured, before a backbone is pretrained for it.

    What the answers are and what is doubtful about them is told. All items count as known here.
    """
    data = task_data(corpus, name, list(corpus.histories.items), min_label_count)
    examples, everybody = data.examples, np.arange(len(data.examples.users))
    summary = OBJECTIVES[data.kind].summary(examples, everybody)
    doubts = (*summary.doubts, *doubts_of_task(examples, data.split))
    for text in (summary.text, *doubts):
        notice(f"{corpus.name}/{name}: {text}")


def limit_labels(data: TaskData, share: float) -> UserSplit:
    """The split with a share of the training users. A smaller share is part of a larger one."""
    if share >= 1:
        return data.split
    train = data.split.train
    ranks = [rank_of(data.examples.users[i], seed=0) for i in train.tolist()]
    kept = np.argsort(ranks, kind="stable")[: max(1, round(len(train) * share))]
    return UserSplit(np.sort(train[kept]), data.split.validation, data.split.test)


def _require_parts(name: str, split: UserSplit) -> None:
    sizes = {"training": split.train, "validation": split.validation, "test": split.test}
    empty = [part for part, rows in sizes.items() if not len(rows)]
    if empty:
        raise SplitEmpty(
            f"{name}: no user with a known history and an answer is in the {empty[0]} part.",
            hint="Give more users. Or raise `validation_share` or `test_share`.",
        )


def _parts(corpus: PreparedCorpus) -> dict[str, int]:
    """Each user's part: 0 for training, 1 for validation, 2 for test."""
    split = corpus.split
    return {
        corpus.histories.users[i]: part
        for part, rows in enumerate((split.train, split.validation, split.test))
        for i in rows.tolist()
    }


def _without_rare(labels: UserLabels, part_of: dict[str, int], least: int) -> UserLabels:
    counts: dict[str, int] = {}
    for user, answer in labels.by_user.items():
        if part_of.get(user) == 0:
            counts[answer[0]] = counts.get(answer[0], 0) + 1
    kept = {u: a for u, a in labels.by_user.items() if counts.get(a[0], 0) >= least}
    if not kept:
        raise LabelsTooRare(
            f"{labels.source}: no label has {least} training users with a history; the most "
            f"frequent has {max(counts.values(), default=0)}.",
            hint="Lower `min_label_count`.",
        )
    return UserLabels(kept, labels.source)


def _split(examples: Examples, part_of: dict[str, int]) -> UserSplit:
    parts = np.array([part_of[user] for user in examples.users])
    train, validation, test = (np.flatnonzero(parts == part) for part in range(3))
    return UserSplit(train, validation, test)


ABSENT = -1
"""Row of a joint example in a task that has no answer of the example's user."""


class JointObjective:
    """The objective of several tasks trained together, with one head for each task.

    ``rows[t]`` int64 [N] is each joint example's row in task t's own examples, or ABSENT. The loss
    sums the tasks' losses, each weighted by its share of answers in the batch.
    """

    def __init__(
        self, names: Sequence[str], objectives: Sequence[HeadObjective], rows: Sequence[Tensor]
    ) -> None:
        self._names = names
        self.head = nn.ModuleList([objective.head for objective in objectives])
        self._objectives = objectives
        self._rows = rows

    def prepare(self, rows: Tensor) -> None:
        for objective, own in zip(self._objectives, self._rows, strict=True):
            objective.prepare(own[rows][own[rows] != ABSENT])

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [group for own in self._objectives for group in own.groups(learning_rate)]

    def penalty(self) -> Tensor:
        return torch.stack([objective.penalty() for objective in self._objectives]).sum()

    def loss(self, vectors: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        total = vectors.sum() * 0
        for objective, own in zip(self._objectives, self._rows, strict=True):
            at = (own[rows] != ABSENT).nonzero().squeeze(1)  # [B] -> [b]
            if len(at):
                loss = objective.loss(vectors[at.to(vectors.device)], own[rows[at]], generator)
                total = total + loss * (len(at) / len(rows))
        return total

    def metrics(self, vectors: Tensor, rows: Tensor) -> dict[str, float]:
        """The metrics of every task, named ``task/metric``."""
        metrics: dict[str, float] = {}
        for name, objective, own in zip(self._names, self._objectives, self._rows, strict=True):
            at = (own[rows] != ABSENT).nonzero().squeeze(1)  # [B] -> [b]
            found = objective.metrics(vectors[at.to(vectors.device)], own[rows[at]])
            metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
        return metrics


def join_tasks(
    tasks: Sequence[TaskData], splits: Sequence[UserSplit]
) -> tuple[Examples, UserSplit, list[Tensor]]:
    """Join the users of several tasks of one corpus.

    Gives the joint examples, their split, and for each task the row of every joint example
    (see ``JointObjective``).
    """
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
