"""What a migration reports: every task, what became of it or would be done, and why."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import msgspec

from peterrec.model.documents import Document
from peterrec.service.errors import ErrorBody
from peterrec.service.jobs.migrate.journal import Steps, written
from peterrec.service.jobs.migrate.plan import Backbones, PlannedTask
from peterrec.service.jobs.task_data import TaskData

Outcome = Literal["canary", "moved", "worse", "blocked", "failed"]
"""What became of a task: its new version has some users; prod is for the new backbone already; the
new version is worse; it can't be moved; a step of it failed."""

LEFT = "planned"
"""What is said in place of an outcome of a task whose turn has not come."""


@dataclass(frozen=True, slots=True)
class MovedTask:
    """A task after a migration."""

    planned: PlannedTask
    outcome: Outcome
    steps: Steps = field(default_factory=Steps)
    reason: ErrorBody | None = None

    @property
    def is_left(self) -> bool:
        """True if it is where it was."""
        return self.outcome not in ("canary", "moved")


def report_of(
    backbones: Backbones, moved: Sequence[MovedTask], left: Sequence[PlannedTask]
) -> Document:
    """The report as a document; ``left`` are the tasks whose turn has not come."""
    return {
        "backbone": backbones.new.fingerprint,
        "tasks": [
            *(_row(each.planned, each.outcome, each.steps, each.reason) for each in moved),
            *(_row(each, _planned_outcome(each), Steps(), each.blocked) for each in left),
        ],
    }


def report_text(report: Document) -> str:
    """The report as a file has it."""
    return json.dumps(report, ensure_ascii=False, indent=1) + "\n"


def _planned_outcome(planned: PlannedTask) -> str:
    if planned.blocked is not None:
        return "blocked"
    return "canary" if planned.is_done else "moved" if planned.has_moved else LEFT


def _row(planned: PlannedTask, outcome: str, steps: Steps, reason: ErrorBody | None) -> Document:
    repeat = planned.repeat
    return {
        "task": planned.task,
        "outcome": outcome,
        "kind": planned.kind or None,
        "from": {
            "version": planned.version,
            "digest": planned.digest or None,
            "backbone": planned.backbone or None,
        },
        "training": None
        if repeat is None
        else {
            "data": _paths(repeat.data),
            "digests": {
                "histories": repeat.wanted.histories_digest,
                "labels": repeat.wanted.labels_digest,
            },
            "settings": asdict(repeat.settings),
            "defaults": [*repeat.defaults],
        },
        "comparison": None if steps.comparison is None else _figures(steps),
        "to": {"version": steps.pushed, "digest": steps.trained, "weight": steps.canary},
        "reason": None if reason is None else msgspec.to_builtins(reason),
    }


def _figures(steps: Steps) -> Document:
    assert steps.comparison is not None
    found = {**written(steps.comparison), "difference": steps.comparison.difference}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in found.items()
    }


def _paths(data: TaskData) -> Document:
    answers = data.answers
    found = {
        "interactions": data.events.interactions,
        "labels": answers.labels,
        "targets": answers.targets,
    }
    return {name: str(path) for name, path in found.items() if path is not None}
