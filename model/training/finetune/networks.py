"""The parts of a task that the network computes, blocks and reader, trained with a head.

Every combination of the two is one *network*: both, one of them, or a head alone on the frozen
backbone's user vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from peterrec.model.network.backbone import Backbone, new_patch
from peterrec.model.network.patch import Patch
from peterrec.model.progress import OnProgress
from peterrec.model.training.batches import seeded
from peterrec.model.training.events import TrainingListener
from peterrec.model.training.finetune.encoders import (
    CachedPatchedBackbone,
    Encoder,
    UserRows,
    patch_encoder,
)
from peterrec.model.training.finetune.objective_of_head import HeadObjective
from peterrec.model.training.finetune.run import VALIDATION_ROWS, FinetuneRun
from peterrec.model.training.finetune.settings import Part
from peterrec.model.training.finetune.task_rows import TaskUsers
from peterrec.model.training.loop import EpochRecord

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
        """Size of the patch in a bundle; every network has a head of the same size."""
        return 4 * sum(tensor.numel() for tensor in self.patch.folded().values())


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network with the weights of its best epoch, and its user vectors [N, C] of the validation
    users, on the CPU.

    ``seconds`` is the time of its training.
    """

    network: Network
    epochs: list[EpochRecord]
    best_epoch: int
    vectors: Tensor
    seconds: float

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.network.parts


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
    on_progress: OnProgress,
    listener: TrainingListener,
) -> TrainedNetwork:
    """Train one network on a task, alone; the epoch with the lowest validation loss is kept."""
    network = Network.of(backbone, task, parts)
    settings, split = task.settings, task.split
    variants = settings.trunk_variants if settings.item_dropout else 1
    met = variants * len(split.train) + len(split.validation)
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
    vectors = _vectors(encoder, task, torch.from_numpy(split.validation))
    seconds = sum(each.seconds + (each.validation_seconds or 0) for each in run.epochs.records)
    return TrainedNetwork(network, run.epochs.records, run.epochs.best, vectors, seconds)


@torch.no_grad()
def _vectors(encoder: Encoder, task: TaskUsers, rows: Tensor) -> Tensor:
    """User vectors [N, C] of whole histories, on the CPU."""
    return torch.cat(
        [
            encoder.user_vectors(UserRows([task.examples.rows[i] for i in part.tolist()], part))
            for part in torch.split(rows, VALIDATION_ROWS)
        ]
    ).cpu()
