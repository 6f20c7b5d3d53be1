"""A corpus's task in a backbone's tokens, ready to be trained and judged."""

from dataclasses import dataclass

import numpy as np

from peterrec.model.data.examples import Examples, join_answers
from peterrec.model.data.histories import UserLabels
from peterrec.model.data.splits import UserSplit, rank_of
from peterrec.model.data.vocabulary import Vocabulary, tokenize
from peterrec.model.kinds import KINDS
from peterrec.model.spec import HeadKind
from peterrec.model.study.corpus import Corpus
from peterrec.model.training.objectives import OBJECTIVES, Objective


@dataclass(frozen=True, slots=True)
class TaskData:
    """Examples, their split, and the objective; ``dropped`` counts users with too rare answers."""

    name: str
    kind: HeadKind
    examples: Examples
    split: UserSplit
    outputs: tuple[str, ...]
    objective: Objective
    dropped: int


def prepare_task(corpus: Corpus, name: str, items: list[str], min_label_count: int) -> TaskData:
    """The users of a task with a known history and a learnable answer, split as the corpus is.

    Answers are counted among training users only. A class that fewer than ``min_label_count`` of
    them have is left out, for everybody; a target item that none of them has stays, as a miss.
    """
    task = corpus.task(name)
    vocabulary = Vocabulary(tuple(items))
    wanted = np.flatnonzero([user in task.labels.by_user for user in corpus.histories.users])
    known = tokenize(corpus.histories.select(wanted), vocabulary)
    readable = {user for user, row in zip(known.users, known.rows, strict=True) if len(row)}
    part_of = {user: part for user, part in _parts(corpus).items() if user in readable}
    labels = task.labels
    if KINDS[task.kind].answers == "label":
        labels = _without_rare(labels, part_of, min_label_count)
    examples = join_answers(known, labels, vocabulary.items)
    split = _split(examples, part_of)
    kind = OBJECTIVES[task.kind]
    outputs = kind.learn_outputs(examples, split.train)
    dropped = len(task.labels.by_user) - len(labels.by_user)
    objective = kind.of(outputs, examples)
    return TaskData(name, task.kind, examples, split, outputs, objective, dropped)


def limit_labels(data: TaskData, share: float) -> UserSplit:
    """The split with a share of the training users; a smaller share is part of a larger one."""
    if share >= 1:
        return data.split
    train = data.split.train
    ranks = [rank_of(data.examples.users[i], seed=0) for i in train.tolist()]
    kept = np.argsort(ranks, kind="stable")[: max(1, round(len(train) * share))]
    return UserSplit(np.sort(train[kept]), data.split.validation, data.split.test)


def _parts(corpus: Corpus) -> dict[str, int]:
    """0, 1 or 2 for each user of the training, validation and test part."""
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
    return UserLabels(kept, labels.source)


def _split(examples: Examples, part_of: dict[str, int]) -> UserSplit:
    parts = np.array([part_of[user] for user in examples.users])
    train, validation, test = (np.flatnonzero(parts == part) for part in range(3))
    return UserSplit(train, validation, test)
