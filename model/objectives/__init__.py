"""Kinds of task; a new kind of head is trained by one module here and one line in the table."""

from model.objectives.classification import ClassificationTask
from model.objectives.objective import Objective, ProbableObjective, Task
from model.objectives.ranking import RankingTask
from model.objectives.tags import TagsTask
from model.objectives.value import ValueTask
from model.spec import HeadKind

TASKS: dict[HeadKind, Task] = {
    "classification": ClassificationTask(),
    "tags": TagsTask(),
    "ranking": RankingTask(),
    "value": ValueTask(),
}

__all__ = ["TASKS", "Objective", "ProbableObjective", "Task"]
