"""The parts of a task that the network computes, blocks and reader, trained with a head.

Every combination of the two is one *network*: both, one of them, or a head alone on the frozen
backbone's user vectors.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from peterrec.model.data.splits import UserSplit
from peterrec.model.network.backbone import Backbone, new_patch
from peterrec.model.network.patch import Patch
from peterrec.model.progress import OnProgress, no_progress
from peterrec.model.training.batches import seeded
from peterrec.model.training.events import TrainingListener, unheard
from peterrec.model.training.finetune.encoders import (
    CachedPatchedBackbone,
    Encoder,
    UserRows,
    patch_encoder,
)
from peterrec.model.training.finetune.folds import folds_of
from peterrec.model.training.finetune.objective_of_head import HeadObjective
from peterrec.model.training.finetune.run import VALIDATION_ROWS, FinetuneRun
from peterrec.model.training.finetune.settings import Part
from peterrec.model.training.finetune.task_rows import TaskUsers
from peterrec.model.training.loop import EpochRecord
from peterrec.model.training.objectives import ScaledObjective

NETWORKS: tuple[tuple[Part, ...], ...] = ((), ("reader",), ("blocks",), ("blocks", "reader"))
"""The networks that are tried, the smallest first."""

MOST_VALIDATION_SCORES = 1_000_000
"""Most scores (validation users times outputs) that metrics are computed from after every epoch.
A ranking takes 60 ms for as many. Above it, as with large catalogs, there is the loss alone."""


@dataclass(frozen=True, slots=True)
class Network:
    """An untrained patch with some of the parts blocks and reader, and its head."""

    parts: tuple[Part, ...]
    patch: Patch
    head_objective: HeadObjective

    @classmethod
    def of(cls, backbone: Backbone, task: TaskUsers, parts: tuple[Part, ...]) -> Self:
        """A new network; equal seeds start equal."""
        generator = seeded(task.settings.seed, "patch")
        geometry = task.settings.geometry(len(backbone.blocks), parts)
        patch = new_patch(backbone, geometry, generator)
        head = HeadObjective(task.objective, backbone.spec.channels, generator)
        return cls(parts, patch, head)

    @property
    def size_bytes(self) -> int:
        """Size of patch and head in a bundle."""
        tensors = [*self.patch.folded().values(), *self.head_objective.head.parameters()]
        return 4 * sum(tensor.numel() for tensor in tensors)


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network with the weights of its best epoch, and user vectors [N, C] on the CPU: of the
    validation users, and of the test users."""

    network: Network
    epochs: list[EpochRecord]
    best_epoch: int
    vectors: Tensor
    test_vectors: Tensor

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.network.parts

    @torch.no_grad()
    def logits(self, vectors: Tensor) -> Tensor:
        """Logits [N, K] of user vectors [N, C], on the CPU."""
        head = self.network.head_objective.head
        return head.logits(vectors.to(head.weight.device)).cpu()


def networks_to_try(task: TaskUsers) -> list[tuple[Part, ...]]:
    """The parts of each network that a task's settings ask for."""
    chosen = task.settings.chosen_parts
    if chosen is None:
        return list(NETWORKS)
    return [tuple(part for part in chosen if part != "table")]


def label_of(parts: Sequence[Part]) -> str:
    """What a combination of parts is called: ``blocks+reader``, or ``head``."""
    return "+".join(parts) or "head"


def names_of(networks: Sequence[tuple[Part, ...]]) -> tuple[str | None, ...]:
    """Names of the networks of one run; None if there is one alone."""
    return tuple(map(label_of, networks)) if len(networks) > 1 else (None,) * len(networks)


def tracks_metrics(task: TaskUsers) -> bool:
    """Whether metrics are computed after every epoch: not if they need too many scores."""
    outputs = task.objective.head_spec.outputs
    return len(task.split.validation) * outputs <= MOST_VALIDATION_SCORES


def train_network(
    backbone: Backbone,
    task: TaskUsers,
    parts: tuple[Part, ...],
    on_progress: OnProgress = no_progress,
    listener: TrainingListener = unheard,
) -> TrainedNetwork:
    """Train one network on a task, alone; the epoch with the lowest validation loss is kept."""
    network = Network.of(backbone, task, parts)
    settings, split = task.settings, task.split
    variants = settings.trunk_variants if settings.item_dropout else 1
    met = variants * len(split.train) + len(split.validation) + len(split.test)
    encoder = patch_encoder(backbone, network.patch, met if settings.trunk_variants else 0)
    run = FinetuneRun(
        encoder,
        network.head_objective,
        task.examples,
        split,
        settings,
        variants=variants if isinstance(encoder, CachedPatchedBackbone) else 0,
        tracks_metrics=tracks_metrics(task),
    )
    run.train(on_progress, listener)
    vectors, test_vectors = (
        vectors_of(encoder, task, torch.from_numpy(rows)) for rows in (split.validation, split.test)
    )
    return TrainedNetwork(network, run.epochs.records, run.epochs.best, vectors, test_vectors)


def fold_tasks(task: TaskUsers) -> list[TaskUsers]:
    """The task with a part of its training users; the others are the test users."""
    held = task.split.validation
    return [
        replace(task, split=UserSplit(kept, held, out), objective=copy(task.objective))
        for kept, out in folds_of(task.split.train)
    ]


def cross_logits(task: TaskUsers, folds: Sequence[TrainedNetwork]) -> Tensor:
    """Logits float64 [N, K] of the training users, ascending, from networks trained on folds."""
    rows = torch.cat([torch.from_numpy(fold.split.test) for fold in fold_tasks(task)])
    found = [_on_scale_of(task, fold) for fold in folds]
    return torch.cat(found)[rows.argsort()]


def _on_scale_of(task: TaskUsers, fold: TrainedNetwork) -> Tensor:
    """Logits float64 [N, K] of a fold's test users; targets are standardised as in the task."""
    logits = fold.logits(fold.test_vectors).double()
    own, whole = fold.network.head_objective.objective, task.objective
    if isinstance(own, ScaledObjective) and isinstance(whole, ScaledObjective):
        return (own.scale.apply(logits) - whole.scale.shift) / whole.scale.scale
    return logits


@torch.no_grad()
def vectors_of(encoder: Encoder, task: TaskUsers, rows: Tensor) -> Tensor:
    """User vectors [N, C] of whole histories, on the CPU."""
    return torch.cat(
        [
            encoder.user_vectors(UserRows([task.examples.rows[i] for i in part.tolist()], part))
            for part in torch.split(rows, VALIDATION_ROWS)
        ]
    ).cpu()
