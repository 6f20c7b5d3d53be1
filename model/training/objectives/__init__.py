"""Kinds of task; a new kind of head is trained by one module here and one line in the table."""

from peterrec.model.spec import HeadKind
from peterrec.model.training.objectives.classification import ClassificationTask
from peterrec.model.training.objectives.objective import Objective, ProbableObjective, Task
from peterrec.model.training.objectives.ranking import RankingTask
from peterrec.model.training.objectives.tags import TagsTask
from peterrec.model.training.objectives.value import ValueTask

TASKS: dict[HeadKind, Task] = {
    "classification": ClassificationTask(),
    "tags": TagsTask(),
    "ranking": RankingTask(),
    "value": ValueTask(),
}

__all__ = ["TASKS", "Objective", "ProbableObjective", "Task"]
