"""The histories that many tasks read, each computed once below the patches and found by slot."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peterrec.model.data.examples import Examples
from peterrec.model.data.splits import UserSplit
from peterrec.model.training.batches import seeded
from peterrec.model.training.finetune.frozen_trunk import FrozenTrunk
from peterrec.model.training.finetune.run import thinned
from peterrec.model.training.finetune.settings import FinetuneSettings

TokenRow = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TaskRows:
    """Slots of one task: ``train`` int64 [variants, train users], ``whole`` [examples].

    ``whole`` is -1 for training users, who are only met thinned.
    """

    train: Tensor
    whole: Tensor


@dataclass(frozen=True, slots=True)
class Wanted:
    """One task's users."""

    examples: Examples
    split: UserSplit
    settings: FinetuneSettings


def variant_count(settings: FinetuneSettings) -> int:
    """Thinned forms of each training history: one if nothing is left out, at most one an epoch."""
    if not settings.item_dropout:
        return 1
    return min(settings.trunk_variants or settings.epochs, settings.epochs)


def distinct_histories(tasks: Sequence[Wanted], max_len: int) -> int:
    """No more histories than this are met in training, validation and test."""
    thinnings: dict[tuple[float, int, int], set[bytes]] = {}
    whole: set[bytes] = set()
    for task in tasks:
        keys = [row[-max_len:].tobytes() for row in task.examples.rows]
        thinnings.setdefault(_thinning(task.settings), set()).update(
            keys[i] for i in task.split.train
        )
        whole.update(keys[i] for part in _held_out(task.split) for i in part)
    return len(whole) + sum(len(keys) * variants for (*_, variants), keys in thinnings.items())


def find_rows(trunk: FrozenTrunk, tasks: Sequence[Wanted], max_len: int) -> list[TaskRows]:
    """Compute every history's states once, and say where each task finds its own.

    Tasks with one seed and item dropout share the thinned forms of the histories they share.
    """
    forms: dict[tuple[float, int, int], dict[bytes, Tensor]] = {}
    for key in {_thinning(task.settings) for task in tasks}:
        sharing = [task for task in tasks if _thinning(task.settings) == key]
        forms[key] = _thinned_slots(trunk, _training_rows(sharing, max_len), *key)
    found = []
    for task in tasks:
        slots_of = forms[_thinning(task.settings)]
        rows = task.examples.rows
        train = [slots_of[rows[i][-max_len:].tobytes()] for i in task.split.train]
        whole = torch.full((len(rows),), -1, dtype=torch.int64)
        for part in _held_out(task.split):
            whole[torch.from_numpy(part)] = trunk.slots([rows[i] for i in part]).cpu()
        found.append(TaskRows(torch.stack(train, 1), whole))
    return found


def _held_out(split: UserSplit) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return split.validation, split.test


def _thinning(settings: FinetuneSettings) -> tuple[float, int, int]:
    return settings.item_dropout, settings.seed, variant_count(settings)


def _training_rows(tasks: Sequence[Wanted], max_len: int) -> dict[bytes, TokenRow]:
    """The distinct histories, as far as the network reads them."""
    newest = (task.examples.rows[i][-max_len:] for task in tasks for i in task.split.train)
    return {row.tobytes(): row for row in newest}


def _thinned_slots(
    trunk: FrozenTrunk, rows: dict[bytes, TokenRow], dropout: float, seed: int, variants: int
) -> dict[bytes, Tensor]:
    """Slots int64 [variants] of each history's thinned forms."""
    slots = [
        trunk.slots(thinned(list(rows.values()), dropout, seeded(seed, "variant", variant)))
        for variant in range(variants)
    ]
    return dict(zip(rows, torch.stack(slots, 1).cpu(), strict=True))
