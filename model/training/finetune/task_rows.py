"""The histories of many tasks: each is computed once below the patches, and found by its slot."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peterrec.model.data.examples import Examples
from peterrec.model.data.splits import UserSplit
from peterrec.model.training.batches import TokenRow, drop_items, seeded
from peterrec.model.training.finetune.activation_cache import ActivationCache
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.objectives import Objective


@dataclass(frozen=True, slots=True)
class TaskRows:
    """Cache slots of one task: ``train`` int64 [variants, train users], ``whole`` [examples].

    ``whole`` is -1 for training users: their histories are read after item dropout only.
    """

    train: Tensor
    whole: Tensor


@dataclass(frozen=True, slots=True)
class TaskUsers:
    """One task's users, split into parts, what is learned of them, and how."""

    examples: Examples
    split: UserSplit
    settings: FinetuneSettings
    objective: Objective


def variant_count(settings: FinetuneSettings) -> int:
    """Variants of each training history: 1 without item dropout, else at most one per epoch."""
    if not settings.item_dropout:
        return 1
    return min(settings.trunk_variants or settings.epochs, settings.epochs)


def distinct_histories(tasks: Sequence[TaskUsers], max_len: int) -> int:
    """Upper bound on the distinct histories that training, validation and test read."""
    dropouts: dict[tuple[float, int, int], set[bytes]] = {}
    whole: set[bytes] = set()
    for task in tasks:
        keys = [row[-max_len:].tobytes() for row in task.examples.rows]
        dropouts.setdefault(_dropout(task.settings), set()).update(
            keys[i] for i in task.split.train
        )
        whole.update(keys[i] for part in _held_out(task.split) for i in part)
    return len(whole) + sum(len(keys) * variants for (*_, variants), keys in dropouts.items())


def find_rows(cache: ActivationCache, tasks: Sequence[TaskUsers], max_len: int) -> list[TaskRows]:
    """Compute every history's activations once, and find the slots of each task.

    Tasks with the same seed and item dropout share the variants of the histories they share.
    """
    variants: dict[tuple[float, int, int], dict[bytes, Tensor]] = {}
    for key in {_dropout(task.settings) for task in tasks}:
        sharing = [task for task in tasks if _dropout(task.settings) == key]
        variants[key] = _variant_slots(cache, _training_rows(sharing, max_len), *key)
    found = []
    for task in tasks:
        slots_of = variants[_dropout(task.settings)]
        rows = task.examples.rows
        train = [slots_of[rows[i][-max_len:].tobytes()] for i in task.split.train]
        whole = torch.full((len(rows),), -1, dtype=torch.int64)
        for part in _held_out(task.split):
            whole[torch.from_numpy(part)] = cache.slots([rows[i] for i in part]).cpu()
        found.append(TaskRows(torch.stack(train, 1), whole))
    return found


def _held_out(split: UserSplit) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return split.validation, split.test


def _dropout(settings: FinetuneSettings) -> tuple[float, int, int]:
    return settings.item_dropout, settings.seed, variant_count(settings)


def _training_rows(tasks: Sequence[TaskUsers], max_len: int) -> dict[bytes, TokenRow]:
    """The distinct training histories, cut to the items that the network reads."""
    newest = (task.examples.rows[i][-max_len:] for task in tasks for i in task.split.train)
    return {row.tobytes(): row for row in newest}


def _variant_slots(
    cache: ActivationCache, rows: dict[bytes, TokenRow], dropout: float, seed: int, variants: int
) -> dict[bytes, Tensor]:
    """Slots int64 [variants] of each history after each variant's item dropout."""
    slots = [
        cache.slots(drop_items(list(rows.values()), dropout, seeded(seed, "variant", variant)))
        for variant in range(variants)
    ]
    return dict(zip(rows, torch.stack(slots, 1).cpu(), strict=True))
