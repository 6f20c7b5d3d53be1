"""How a fine-tuned task answers users that its training held out: what serving is compared with."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.kinds import KINDS
from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.evaluation import TaskModel
from peterrec.model.training.finetune.finetune import FinetunedTask
from peterrec.patches.bundle.manifest import ManifestPrior

MOST_USERS = 2000
"""Users that are asked at most, evenly spread over the test users: an index of 0.01 is then known
to a third of itself, and a bundle's packing takes a second longer."""

ROWS = 64
"""Users in one forward: with a large catalog, their scores are what takes memory."""

GROUPS = 10
"""Groups of scores of about the same size: the usual number for this index."""

Floats = npt.NDArray[np.float64]


@torch.no_grad()
def prior_of(task: FinetunedTask, loaded: LoadedBackbone) -> ManifestPrior | None:
    """Ask the task about test users; None if none of them has a history.

    A ranking leaves out what a user has seen, as it does for requests that say nothing else.
    """
    rows = [task.examples.rows[user] for user in task.split.test.tolist()]
    rows = [row for row in rows if len(row)]
    if not rows:
        return None
    rows = [rows[at] for at in np.unique(np.linspace(0, len(rows) - 1, MOST_USERS).astype(int))]
    model = TaskModel(loaded.backbone, task.patch_weights, task.head, task.table)
    kind = KINDS[task.head.spec.kind]
    output_of = _output_of_token(task, loaded) if kind.has_catalog else None
    counts = np.zeros(task.head.spec.outputs if kind.has_labels else 0, dtype=np.int64)
    best: list[Floats] = []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        logits = model.logits(part) / task.temperature  # [B, K]
        scores: Floats = kind.scores(logits).double().cpu().numpy()
        if output_of is not None:
            _leave_out_seen(scores, part, output_of)
        best.append(scores.max(1))  # [B, K] -> [B]
        if kind.has_threshold:
            counts += (scores >= THRESHOLD).sum(0)
        elif kind.has_labels:
            counts += np.bincount(scores.argmax(1), minlength=len(counts))
    found = np.concatenate(best)
    found = found[np.isfinite(found)]  # a user may have seen the whole catalog
    if kind.outputs == "number":
        found = found * task.scale.scale + task.scale.shift
    bounds = _bounds(found)
    if not len(found):
        return None
    groups = np.bincount(np.searchsorted(bounds, found, side="right"), minlength=len(bounds) + 1)
    return ManifestPrior(
        users=len(found),
        outputs=tuple(counts.tolist()),
        bounds=tuple(bounds.tolist()),
        scores=tuple(groups.tolist()),
    )


def _output_of_token(task: FinetunedTask, loaded: LoadedBackbone) -> npt.NDArray[np.int64]:
    """The output of each token's item, -1 where the catalog does not have it."""
    numbers = {item: number for number, item in enumerate(task.outputs)}
    found = [numbers.get(item, -1) for item in loaded.items]
    return np.array([-1] * FIRST_ITEM + found)


def _leave_out_seen(
    scores: Floats, rows: Sequence[npt.NDArray[np.int64]], output_of: npt.NDArray[np.int64]
) -> None:
    for at, row in enumerate(rows):
        outputs = output_of[row]
        scores[at, outputs[outputs >= 0]] = -np.inf


THRESHOLD = 0.5
"""The threshold of the tags of a bundle that was just packed."""


def _bounds(scores: Floats) -> Floats:
    """Divide scores into groups of about the same size.

    A bound lies halfway between two neighbours, so that no rounding moves an answer across it.
    """
    different = np.unique(scores)
    wanted = np.quantile(scores, np.arange(1, GROUPS) / GROUPS, method="lower")
    above = np.searchsorted(different, wanted, side="right")
    above = np.unique(above[above < len(different)])
    found: Floats = np.unique((different[above - 1] + different[above]) / 2)
    return found
