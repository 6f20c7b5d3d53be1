"""A bundle's answers to users whose right answers are known, with those of simple baselines."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peterrec.model.data.examples import Examples
from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.data.splits import UserSplit, split_users
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.kinds import KindName
from peterrec.model.progress import OnProgress, Progress
from peterrec.model.training.evaluation import EVALUATION_ROWS
from peterrec.model.training.finetune.finetune import learnable_examples, prepare_examples
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.intervals import Ints
from peterrec.model.training.objectives import Objective
from peterrec.patches.bundle.bundle import Manifest
from peterrec.service.jobs.packing import UnpackedTask
from peterrec.service.jobs.report.linear import linear_logits

PRIOR, LINEAR = "no history", "linear"
"""Names of the baselines: the best answer that ignores the history, and a linear model of the
items that a user has."""

TOP = 20
"""Best items of a catalog that are kept of each user."""


@dataclass(frozen=True, slots=True)
class RecordedTraining:
    """What a manifest's notes say about the training; empty where they say nothing.

    ``reading`` says how its data were read (``service/jobs/task_data.py``).
    """

    settings: Mapping[str, Any]  # Any: JSON, written by whoever made the bundle
    data: Mapping[str, Any]  # Any: JSON
    best_epoch: int | None
    seconds: float | None
    reading: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON

    def split_settings(self, kind: KindName) -> FinetuneSettings:
        """The settings that decide which users are in which part; defaults where unknown."""
        chosen = FinetuneSettings(kind=kind)
        return replace(
            chosen,
            validation_share=self._number("validation_share", 0.9, chosen.validation_share),
            test_share=self._number("test_share", 0.9, chosen.test_share),
            max_unknown_share=self._number("max_unknown_share", 1.0, chosen.max_unknown_share),
            min_label_count=int(self._number("min_label_count", 1 << 31, chosen.min_label_count)),
        )

    def _number(self, name: str, largest: float, default: float) -> float:
        value = self.settings.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return default
        return float(value) if 0 <= value <= largest else default


def recorded_training(manifest: Manifest) -> RecordedTraining:
    """Read a manifest's notes, which may be anybody's text."""
    try:
        notes = json.loads(manifest.provenance.notes or "{}")
    except ValueError:
        notes = {}
    notes = notes if isinstance(notes, dict) else {}
    settings, data, reading = (notes.get(name) for name in ("settings", "data", "reading"))
    best, seconds = notes.get("best_epoch"), notes.get("seconds")
    return RecordedTraining(
        settings if isinstance(settings, dict) else {},
        data if isinstance(data, dict) else {},
        best if isinstance(best, int) else None,
        float(seconds) if isinstance(seconds, int | float) else None,
        reading if isinstance(reading, dict) else {},
    )


@dataclass(frozen=True, slots=True)
class MeasuredTask:
    """A task's users, their right answers, and what the task and the baselines answer.

    ``rows`` are the examples that are measured. ``predictions`` has what the objective's metrics
    need, in the order of the rows, for the task and for each baseline by name; those of a value
    task are its answers. ``scores`` [N, K] are logits divided by the temperature; of a catalog,
    [N, TOP] are those of the best items that a user has not had, and ``best`` [N, TOP] their places
    in it.
    """

    kind: str
    outputs: tuple[str, ...]
    temperature: float
    threshold: float
    examples: Examples
    objective: Objective
    split: UserSplit
    rows: Ints
    predictions: Tensor
    baselines: Mapping[str, Tensor]
    scores: Tensor
    best: Tensor | None

    @property
    def lengths(self) -> Ints:
        """Items in the history of each measured user."""
        return self.examples.lengths[self.rows]

    @property
    def answers(self) -> list[tuple[str, ...]]:
        """The right answers of the measured users."""
        return [self.examples.answers[row] for row in self.rows.tolist()]

    def train_counts(self) -> Mapping[str, int]:
        """How many training users have each answer."""
        counts: dict[str, int] = {}
        for row in self.split.train.tolist():
            for answer in self.examples.answers[row]:
                counts[answer] = counts.get(answer, 0) + 1
        return counts


def examples_of(
    loaded: LoadedBackbone, histories: Histories, labels: UserLabels, settings: FinetuneSettings
) -> Examples:
    """The users of some files that have a history and an answer."""
    examples = prepare_examples(loaded, histories, labels, settings.max_unknown_share)
    return learnable_examples(settings.kind, examples, settings.min_label_count)


def measure_task(
    task: UnpackedTask, examples: Examples, is_test_part: bool, on_progress: OnProgress
) -> MeasuredTask:
    """Answer the users with the task and the baselines.

    The parts are those of the recorded settings; ``is_test_part`` measures the test part alone,
    otherwise all users are measured. Baselines are learned on the training part.
    """
    manifest = task.bundle.manifest
    settings = recorded_training(manifest).split_settings(manifest.kind)
    split = split_users(
        examples.users, settings.validation_share, settings.test_share, manifest.provenance.seed
    )
    everybody = np.arange(len(examples.users), dtype=np.int64)
    rows = split.test if is_test_part and len(split.test) else everybody
    tested = measure_users(task, examples, split, rows, on_progress)
    on_progress(Progress("learning the baselines"))
    baselines = _baselines(manifest.kind, examples, tested.objective, split.train, rows)
    return replace(tested, baselines=baselines)


def measure_users(
    task: UnpackedTask, examples: Examples, split: UserSplit, rows: Ints, on_progress: OnProgress
) -> MeasuredTask:
    """Answer the users at these rows with the task alone, without baselines."""
    manifest = task.bundle.manifest
    objective = task.objective(examples)
    answered = _answered(task, examples, objective, rows, on_progress)
    return MeasuredTask(
        kind=manifest.kind,
        outputs=task.outputs,
        temperature=manifest.head.temperature,
        threshold=manifest.head.threshold,
        examples=examples,
        objective=objective,
        split=split,
        rows=rows,
        predictions=answered.predictions,
        baselines={},
        scores=answered.scores,
        best=answered.best,
    )


@dataclass(frozen=True, slots=True)
class _Answered:
    """What the task answers to the rows: see ``MeasuredTask``."""

    predictions: Tensor
    scores: Tensor
    best: Tensor | None


@torch.no_grad()
def _answered(
    task: UnpackedTask,
    examples: Examples,
    objective: Objective,
    rows: Ints,
    on_progress: OnProgress,
) -> _Answered:
    manifest = task.bundle.manifest
    predictions, scores, best = [], [], []
    for start in range(0, len(rows), EVALUATION_ROWS):
        on_progress(Progress("answering", start, len(rows), unit="users"))
        part = torch.from_numpy(rows[start : start + EVALUATION_ROWS])
        logits = task.model.logits([examples.rows[i] for i in part.tolist()])
        predictions.append(objective.predictions(logits, part))
        scaled = logits.double() / manifest.head.temperature
        if manifest.described_kind.has_catalog:
            scaled, places = _best_unseen(scaled, objective, part)
            best.append(places)
        scores.append(scaled)
    on_progress(Progress("answering", len(rows), len(rows), unit="users"))
    joined = torch.cat(best) if best else None
    return _Answered(torch.cat(predictions), torch.cat(scores), joined)


def _best_unseen(scores: Tensor, objective: Objective, part: Tensor) -> tuple[Tensor, Tensor]:
    """The best scores [B, TOP] and places of the items that each user has not had."""
    seen: list[Tensor] = getattr(objective, "seen", [])
    for own, row in zip(scores, part.tolist(), strict=True) if seen else ():
        own[seen[row]] = -torch.inf
    found = torch.topk(scores, min(TOP, scores.shape[1]), dim=1)
    return found.values, found.indices


@torch.no_grad()
def _baselines(
    kind: str, examples: Examples, objective: Objective, train: Ints, rows: Ints
) -> dict[str, Tensor]:
    measured = torch.from_numpy(rows)
    prior = objective.prior(torch.from_numpy(train))
    parts = torch.split(measured, EVALUATION_ROWS)
    found = {PRIOR: torch.cat([objective.predictions(prior.expand(len(p), -1), p) for p in parts])}
    linear = linear_logits(kind, examples, objective, train, rows)
    if linear is not None:
        pairs = zip(torch.split(linear, EVALUATION_ROWS), parts, strict=True)
        found[LINEAR] = torch.cat([objective.predictions(logits, p) for logits, p in pairs])
    return found
