"""How a task's version for one backbone does beside that for another, on the same users.

Compared are users whom neither training has seen: those that both kept apart for the test. Both
splits are by the same seed, but near its cuts they differ, as a backbone knows other items and so
has other users with a history.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from peterrec.model.data.examples import Examples
from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.data.splits import UserSplit, split_users
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.progress import OnProgress, Progress
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.intervals import Ints, difference, estimates
from peterrec.model.training.objectives import OBJECTIVES
from peterrec.service.errors import NothingHeldOut
from peterrec.service.jobs.packing import unpack_task
from peterrec.service.jobs.report.kinds import REPORTS
from peterrec.service.jobs.report.measured import MeasuredTask, examples_of, measure_users


@dataclass(frozen=True, slots=True)
class Comparison:
    """A metric of both versions on some users; more is better.

    ``low`` and ``high`` are the ends of the difference's 95 % interval by the bootstrap, paired by
    user; None if it has none.
    """

    metric: str
    users: int
    old: float
    new: float
    low: float | None = None
    high: float | None = None

    @property
    def difference(self) -> float:
        """How much the new version is better."""
        return self.new - self.old

    def is_worse(self, tolerance: float) -> bool:
        """True if the metric fell by more than this share of what it was."""
        return not self.difference >= -tolerance * abs(self.old)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two versions: its backbone, its bundle, and the settings that split its users."""

    loaded: LoadedBackbone
    bundle: bytes
    settings: FinetuneSettings


@dataclass(frozen=True, slots=True)
class _Users:
    examples: Examples
    split: UserSplit

    @property
    def tested(self) -> dict[str, int]:
        """The rows of the users of the test part."""
        return {self.examples.users[row]: row for row in self.split.test.tolist()}


def compare_sides(
    old: Side, new: Side, histories: Histories, labels: UserLabels, on_progress: OnProgress
) -> Comparison:
    """Measure both versions on the users that neither has seen; NothingHeldOut without any."""
    both = [(side, _users(side, histories, labels)) for side in (old, new)]
    (_, first), (_, second) = both
    shared = [
        user
        for user, row in first.tested.items()
        if user in second.tested
        and first.examples.answers[row] == second.examples.answers[second.tested[user]]
    ]
    if not shared:
        raise NothingHeldOut
    measured = [_measured(side, users, shared, on_progress) for side, users in both]
    on_progress(Progress("computing intervals"))
    return _compared(*measured)


def _users(side: Side, histories: Histories, labels: UserLabels) -> _Users:
    settings = side.settings
    examples = examples_of(side.loaded, histories, labels, settings)
    shares = (settings.validation_share, settings.test_share)
    return _Users(examples, split_users(examples.users, *shares, settings.seed))


def _measured(
    side: Side, users: _Users, shared: list[str], on_progress: OnProgress
) -> MeasuredTask:
    rows: Ints = np.array([users.tested[user] for user in shared], dtype=np.int64)
    task = unpack_task(side.bundle, side.loaded)
    return measure_users(task, users.examples, users.split, rows, on_progress)


def _compared(old: MeasuredTask, new: MeasuredTask) -> Comparison:
    name, users = OBJECTIVES[new.kind].primary_metric, len(new.rows)
    if new.kind not in REPORTS:  # a kind whose metrics are not known as functions of weights
        return Comparison(name, users, _plain(old, name), _plain(new, name))
    first, second = (
        REPORTS[each.kind].metrics(each, each.predictions)[name] for each in (old, new)
    )
    found = estimates({"old": first, "new": second, "gap": difference(second, first)}, users)
    gap = found["gap"]
    return Comparison(name, users, found["old"].value, found["new"].value, gap.low, gap.high)


def _plain(measured: MeasuredTask, name: str) -> float:
    rows = torch.from_numpy(measured.rows)
    return measured.objective.metrics(measured.predictions, rows).get(name, math.nan)
