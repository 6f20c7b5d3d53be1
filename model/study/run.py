"""One run: one variant with one seed and one pair of learning rates, trained and evaluated."""

import hashlib
import json
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from peterrec.model.data.examples import Examples
from peterrec.model.data.splits import UserSplit
from peterrec.model.errors import BaselineTooLarge, TrainingDiverged
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.files.tensors import write_arrays
from peterrec.model.kinds import KINDS
from peterrec.model.network.heads import Head
from peterrec.model.network.item_table import ItemTable
from peterrec.model.network.patch import Patch
from peterrec.model.progress import no_progress
from peterrec.model.spec import HeadKind
from peterrec.model.study.backbones import (
    backbone_at,
    backbone_folder,
    further_items,
    items_of,
)
from peterrec.model.study.baselines import (
    BASELINES,
    PRIORS,
    Strength,
    bag_scorer,
    validation_loss,
)
from peterrec.model.study.corpus import PreparedCorpus, read_corpora
from peterrec.model.study.methods import (
    FINETUNED,
    METHODS,
    Material,
    Rates,
    Variant,
    random_backbone,
)
from peterrec.model.study.predictions import Predictions, predict, prior_scorer, scorer_of
from peterrec.model.study.results import Parameters, RunOutcome, RunResult
from peterrec.model.study.settings import PROTOCOL, ComparisonSettings
from peterrec.model.study.task_data import (
    JointObjective,
    TaskData,
    join_tasks,
    limit_labels,
    task_data,
)
from peterrec.model.training.batches import seeded
from peterrec.model.training.finetune.encoders import Encoder, PatchedBackbone
from peterrec.model.training.finetune.finetune import FinetunedTask
from peterrec.model.training.finetune.objective_of_head import HeadObjective, TrainedObjective
from peterrec.model.training.finetune.parts import fit_parts
from peterrec.model.training.finetune.run import FinetuneRun
from peterrec.model.training.finetune.settings import FinetuneSettings, LoopSettings
from peterrec.model.training.finetune.task_rows import TaskUsers

Pack = Callable[[FinetunedTask, LoadedBackbone, str], bytes]
"""Gives the bundle of a task by a name."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """The folders that a comparison reads and writes, its settings, and its device.

    ``pack`` makes the bundle of a fine-tuned task, whose size the tables have; None leaves it out.
    """

    prepared: Path
    out: Path
    settings: ComparisonSettings
    device: str = "cpu"
    pack: Pack | None = None


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What one run trains. It has several ``tasks`` only if the method trains them together."""

    corpus: str
    tasks: tuple[str, ...]
    variant: Variant
    seed: int
    rates: Rates | Strength

    @property
    def name(self) -> str:
        """The run in progress messages."""
        return f"{self.corpus}/{'+'.join(self.tasks)} {self.variant.label}"


@lru_cache(maxsize=2)
def corpora_at(folder: Path) -> dict[str, PreparedCorpus]:
    """A prepared folder's corpora by name, read once in each process."""
    return {corpus.name: corpus for corpus in read_corpora(folder)}


@lru_cache(maxsize=16)
def _items(prepared: Path, corpus: str, settings: ComparisonSettings) -> tuple[str, ...]:
    return items_of(corpora_at(prepared)[corpus], settings)


@lru_cache(maxsize=32)
def _task_data(
    prepared: Path, corpus: str, task: str, settings: ComparisonSettings, is_baseline: bool
) -> TaskData:
    items, own = _items(prepared, corpus, settings), corpora_at(prepared)[corpus]
    further = further_items(own, settings, items) if is_baseline else ()
    return task_data(own, task, items, settings.min_label_count, further)


def run_key(place: Workplace, spec: RunSpec) -> str:
    """The key by which a finished run is found: a digest of all that its result depends on.

    The device is not part of it.
    """
    settings = place.settings
    corpus = corpora_at(place.prepared)[spec.corpus]
    folder = backbone_folder(place.out, corpus, settings, spec.variant.is_causal)
    identity = {
        "protocol": PROTOCOL,
        "spec": asdict(spec),
        "loop": [settings.epochs, settings.patience, settings.batch_size],
        "item_dropout": [settings.item_dropout, settings.ranking_item_dropout],
        "min_label_count": settings.min_label_count,
        "backbone": folder.name,
        "data": corpus.digest,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def execute(place: Workplace, spec: RunSpec) -> RunResult:
    """Train and evaluate. Predictions are written to their own files."""
    started, cpu_started = time.perf_counter(), time.process_time()
    key = run_key(place, spec)
    outcome: RunOutcome
    try:
        outcome = _outcome(place, spec, key)
    except (TrainingDiverged, BaselineTooLarge) as error:
        outcome = {"failed": error.code, "reason": error.message}
    return {
        "key": key,
        "spec": asdict(spec),
        "label": spec.variant.label,
        **outcome,
        "wall_seconds": round(time.perf_counter() - started, 3),
        "cpu_seconds": round(time.process_time() - cpu_started, 3),
    }


def _outcome(place: Workplace, spec: RunSpec, key: str) -> RunOutcome:
    if spec.variant.method in PRIORS:
        return _prior(place, spec, key)
    if spec.variant.method in BASELINES:
        return _baseline(place, spec, key)
    if spec.variant.method in FINETUNED:
        return _finetuned(place, spec, key)
    return _trained(place, spec, key)


def _prior(place: Workplace, spec: RunSpec, key: str) -> RunOutcome:
    (data,) = _tasks_of(place, spec)
    split = limit_labels(data, spec.variant.label_share)
    predictions = predict(prior_scorer(data, split.train), data)
    return {
        "metrics": {data.name: _store(place, key, data, predictions)},
        "users": {data.name: _sizes(data, split)},
    }


def _baseline(place: Workplace, spec: RunSpec, key: str) -> RunOutcome:
    (data,) = _tasks_of(place, spec)
    split = limit_labels(data, spec.variant.label_share)
    assert isinstance(spec.rates, Strength)
    started = time.perf_counter()
    fit = BASELINES[spec.variant.method][data.kind].fit
    model = fit(data, split.train, spec.rates.value)
    seconds = time.perf_counter() - started
    scorer = bag_scorer(model)
    return {
        "validation_loss": validation_loss(scorer, data),
        "seconds": round(seconds, 3),
        "metrics": {data.name: _store(place, key, data, predict(scorer, data))},
        "users": {data.name: _sizes(data, split)},
        "parameters": {"trained": model.weights, "head": 0, "size_bytes": model.size_bytes},
        "device": "cpu",
    }


def _trained(place: Workplace, spec: RunSpec, key: str) -> RunOutcome:
    tasks = _tasks_of(place, spec)
    splits = [limit_labels(data, spec.variant.label_share) for data in tasks]
    generator = seeded(spec.seed, "patch")
    encoder = _encoder(place, spec, generator)
    objectives = [HeadObjective(data.objective, encoder.channels, generator) for data in tasks]
    examples, split, objective = _joint(tasks, splits, objectives)
    loop = _loop(place.settings, spec, tasks[0].kind)
    run = FinetuneRun(encoder, objective, examples, split, loop, tracks_metrics=True)
    run.train(no_progress)
    predictions = {
        data.name: predict(scorer_of(encoder, objective.head), data)
        for data, objective in zip(tasks, objectives, strict=True)
    }
    parameters = _parameters(encoder, objective.head, _backbone(place, spec))
    if isinstance(encoder, PatchedBackbone) and METHODS[spec.variant.method].start == "pretrained":
        own = _Packable(encoder.patch, objectives[0].head)
        _add_bundle_size(parameters, place, spec, tasks[0], own)
    return {
        "validation_loss": run.epochs.records[run.epochs.best].validation_loss,
        "best_epoch": run.epochs.best,
        "epochs": [asdict(epoch) for epoch in run.epochs.records],
        "seconds": round(sum(epoch.seconds for epoch in run.epochs.records), 3),
        "metrics": {data.name: _store(place, key, data, predictions[data.name]) for data in tasks},
        "users": {
            data.name: _sizes(data, split) for data, split in zip(tasks, splits, strict=True)
        },
        "parameters": parameters,
        "device": str(encoder.device),
    }


def _finetuned(place: Workplace, spec: RunSpec, key: str) -> RunOutcome:
    """Train the parts that ``peterrec finetune`` trains, with this comparison's split."""
    (data,) = _tasks_of(place, spec)
    split = limit_labels(data, spec.variant.label_share)
    folder = _backbone(place, spec)
    backbone = backbone_at(folder).backbone.to(place.device)
    settings = _finetune_settings(place.settings, spec, data.kind)
    started = time.perf_counter()
    fitted = fit_parts(backbone, TaskUsers(data.examples, split, settings, data.objective))
    seconds = time.perf_counter() - started
    patch, table = fitted.network.network.patch, fitted.table
    encoder = PatchedBackbone(backbone, patch)
    scorer = scorer_of(encoder, fitted.head, table)
    parameters = _parameters(encoder, fitted.head, folder)
    if table is not None:
        parameters["trained"] += table.codes.numel() + table.scale.numel()
    own = _Packable(encoder.patch, fitted.head, table)
    _add_bundle_size(parameters, place, spec, data, own)
    return {
        "validation_loss": fitted.validation_loss,
        "best_epoch": fitted.network.best_epoch,
        "epochs": [asdict(epoch) for epoch in fitted.network.epochs],
        "parts": list(fitted.parts),
        "seconds": round(seconds, 3),
        "metrics": {data.name: _store(place, key, data, predict(scorer, data))},
        "users": {data.name: _sizes(data, split)},
        "parameters": parameters,
        "device": str(encoder.device),
    }


@dataclass(frozen=True, slots=True)
class _Packable:
    """What a bundle has of a task."""

    patch: Patch
    head: Head
    table: ItemTable | None = None


def _add_bundle_size(
    parameters: Parameters, place: Workplace, spec: RunSpec, data: TaskData, own: _Packable
) -> None:
    """Add the size of the task's bundle, with its manifest and probes, if something packs it."""
    if place.pack is None:
        return
    loaded = backbone_at(_backbone(place, spec))
    backbone = loaded.backbone.to("cpu")
    corpus = corpora_at(place.prepared)[spec.corpus]
    task = FinetunedTask(
        geometry=own.patch.geometry,
        patch={name: tensor.cpu() for name, tensor in own.patch.folded().items()},
        head=deepcopy(own.head).cpu().requires_grad_(False),
        outputs=data.outputs,
        metrics={},
        examples=data.examples,
        split=data.split,
        record={
            "settings": {"seed": spec.seed, "unit": None},
            "data": {"histories_digest": corpus.digest, "labels_digest": data.name},
            "best_epoch": 0,
            "seconds": 0,
        },
        table=own.table,
    )
    parameters["size_bytes"] = len(place.pack(task, replace(loaded, backbone=backbone), data.name))
    backbone.to(place.device)


def _finetune_settings(
    settings: ComparisonSettings, spec: RunSpec, kind: HeadKind
) -> FinetuneSettings:
    loop = asdict(_loop(settings, spec, kind)) | {"item_dropout": LoopSettings().item_dropout}
    return FinetuneSettings(**loop, kind=kind, parts=spec.variant.method)


def _tasks_of(place: Workplace, spec: RunSpec) -> list[TaskData]:
    is_baseline = spec.variant.method in BASELINES
    return [
        _task_data(place.prepared, spec.corpus, task, place.settings, is_baseline)
        for task in spec.tasks
    ]


def _backbone(place: Workplace, spec: RunSpec) -> Path:
    corpus = corpora_at(place.prepared)[spec.corpus]
    return backbone_folder(place.out, corpus, place.settings, spec.variant.is_causal)


def _encoder(place: Workplace, spec: RunSpec, generator: torch.Generator) -> Encoder:
    method = METHODS[spec.variant.method]
    backbone = backbone_at(_backbone(place, spec)).backbone
    if method.start == "random":
        backbone = random_backbone(backbone.spec, spec.seed)
    return method.build(Material(backbone.to(place.device), spec.variant, generator))


def _joint(
    tasks: list[TaskData], splits: list[UserSplit], objectives: list[HeadObjective]
) -> tuple[Examples, UserSplit, TrainedObjective]:
    if len(tasks) == 1:
        return tasks[0].examples, splits[0], objectives[0]
    examples, split, rows = join_tasks(tasks, splits)
    return examples, split, JointObjective([data.name for data in tasks], objectives, rows)


def _loop(settings: ComparisonSettings, spec: RunSpec, kind: HeadKind) -> LoopSettings:
    assert isinstance(spec.rates, Rates)
    is_ranking = KINDS[kind].has_catalog
    return LoopSettings(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=spec.rates.encoder,
        head_learning_rate=spec.rates.head,
        item_dropout=settings.ranking_item_dropout if is_ranking else settings.item_dropout,
        seed=spec.seed,
        patience=settings.patience,
    )


def _store(
    place: Workplace, key: str, data: TaskData, predictions: Predictions
) -> dict[str, float]:
    """Write the predictions to disk; return the metrics computed from them."""
    write_arrays(place.out / "predictions" / f"{key}-{data.name}.safetensors", predictions.arrays)
    return predictions.metrics


def _sizes(data: TaskData, split: UserSplit) -> dict[str, int]:
    return {
        "train": len(split.train),
        "validation": len(split.validation),
        "test": len(split.test),
        "without_history": data.examples.without_history,
        "with_rare_answers": data.dropped,
        "outputs": len(data.outputs),
    }


def _parameters(encoder: Encoder, head: nn.Module, folder: Path) -> Parameters:
    backbone = backbone_at(folder).backbone
    return {
        "trained": sum(p.numel() for p in encoder.trained.parameters() if p.requires_grad),
        "head": sum(p.numel() for p in head.parameters()),
        "backbone": sum(p.numel() for p in backbone.parameters()),
        "backbone_blocks": sum(p.numel() for p in backbone.blocks.parameters()),
    }
