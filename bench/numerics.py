"""Errors of the mixed forward relative to the plain float32 reference, on a trained backbone.

A backbone is pretrained and tasks are fine-tuned on the bundled sample data, or on MovieLens if its
folder is given. Then mixed batches compute every task for users of the test parts. Errors are
relative to the largest logit of a task.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bench.report import Report
from peterrec.model.data.convert.movielens import convert_movielens
from peterrec.model.data.histories import UserLabels
from peterrec.model.data.interactions import InteractionSource, read_histories, read_targets
from peterrec.model.data.labels import LabelSource, read_labels
from peterrec.model.data.sample_data import write_sample_data
from peterrec.model.data.tables import TableSource
from peterrec.model.files.backbone_folder import LoadedBackbone, load_backbone, save_backbone
from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.forward import mixed_forward
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.network.collate import Tokens
from peterrec.model.spec import HeadKind
from peterrec.model.training.evaluation import TaskModel
from peterrec.model.training.finetune.finetune import FinetunedTask, FinetuneSettings, finetune
from peterrec.model.training.pretrain.pretrain import PretrainSettings, pretrain

Row = TypeVar("Row")

SAMPLE_LABELS, MOVIELENS_LABELS = ("gender", "age_group"), ("gender", "age", "occupation")
BATCH = 128
ALONE = 256
TOP = 10

PRECISIONS = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "bf16_states": (torch.bfloat16, torch.float32),
    "bf16_patches": (torch.float32, torch.bfloat16),
}
"""Number types of products and of patches, by the name of the precision."""


@dataclass(frozen=True, slots=True)
class Trained:
    """One task, and the reference's logits [n, K] for some users."""

    name: str
    kind: HeadKind
    task: FinetunedTask
    rows: Sequence[Tokens]
    logits: Tensor


def main(arguments: list[str]) -> None:
    """``python -m bench numerics``."""
    parser = argparse.ArgumentParser(prog="python -m bench numerics", description=__doc__)
    parser.add_argument("--movielens", type=Path, help="folder of MovieLens 1M or 100K")
    parser.add_argument("--users", type=int, default=4000, help="users of the sample data")
    parser.add_argument("--rows", type=int, default=2000, help="most users per task")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3, help="for pretraining and each task")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Train a backbone and tasks, compute logits in each precision, and compare them."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        folder = Path(scratch)
        if options.movielens:
            convert_movielens(options.movielens, folder)
        else:
            write_sample_data(folder, options.users)
        source = InteractionSource(TableSource(folder / "histories.parquet"))
        histories = read_histories(source)
        settings = PretrainSettings(channels=options.channels, epochs=options.epochs)
        trained = pretrain(histories, settings)
        items = list(trained.vocabulary.items)
        save_backbone(folder / "backbone", trained.backbone, items, trained.record)
        loaded = load_backbone(folder / "backbone")
        tasks = []
        for name, kind, labels in _labels(options, folder):
            chosen = FinetuneSettings(kind, epochs=options.epochs)
            task = finetune(loaded, histories, labels, chosen)
            tasks.append(_answered(name, kind, task, loaded, options.rows))
    figures = _judged(tasks, loaded)
    rows = [[t.name, t.kind, str(len(t.rows)), *_qualities(t.task)] for t in tasks]
    shown = {**vars(options), "movielens": bool(options.movielens), "threads": 1}
    columns = ("task", "kind", "users judged", "a metric", "its baseline")
    return Report("numerics", figures, shown, columns, rows)


@torch.inference_mode()
def _judged(tasks: Sequence[Trained], loaded: LoadedBackbone) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, (states, patches) in PRECISIONS.items():
        found = _mixed_logits(tasks, loaded, states, patches)
        figures[f"{name}_error"] = max(
            _relative(ours, task.logits) for ours, task in zip(found, tasks, strict=True)
        )
        classes = [(o, t.logits) for o, t in zip(found, tasks, strict=True) if t.kind != "ranking"]
        ranked = [(o, t.logits) for o, t in zip(found, tasks, strict=True) if t.kind == "ranking"]
        agreeing = [o.argmax(1) == t.argmax(1) for o, t in classes]
        figures[f"{name}_class_agreement"] = torch.cat(agreeing).double().mean().item()
        margins = [_margin(t)[~same] for (_, t), same in zip(classes, agreeing, strict=True)]
        figures[f"{name}_undecided"] = max(torch.cat(margins).tolist(), default=0.0)
        for task, same in zip((t for t in tasks if t.kind != "ranking"), agreeing, strict=True):
            figures[f"{name}_class_agreement_{task.name}"] = same.double().mean().item()
        overlaps = torch.cat([_overlap(o, t) for o, t in ranked])
        figures[f"{name}_top10_overlap"] = overlaps.mean().item()
    figures["same_bits_alone"] = _same_bits(tasks, loaded)
    return figures


def _labels(
    options: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, HeadKind, UserLabels]]:
    table = TableSource(folder / "users.parquet")
    for column in MOVIELENS_LABELS if options.movielens else SAMPLE_LABELS:
        yield column, "classification", read_labels(LabelSource(table, column))
    targets = InteractionSource(TableSource(folder / "targets.parquet"))
    yield "targets", "ranking", read_targets(targets)


@torch.inference_mode()
def _answered(
    name: str, kind: HeadKind, task: FinetunedTask, loaded: LoadedBackbone, most: int
) -> Trained:
    """Choose users of the test part first, then others if there are too few of them."""
    split = task.split
    order = np.concatenate([split.test, split.validation, split.train])[:most]
    rows = [task.examples.rows[i] for i in order]
    model = TaskModel(loaded.backbone, task.patch_weights, task.head)
    return Trained(name, kind, task, rows, torch.cat([model.logits(b) for b in _batches(rows)]))


def _mixed_logits(
    tasks: Sequence[Trained], loaded: LoadedBackbone, states: torch.dtype, patches: torch.dtype
) -> list[Tensor]:
    """Compute the logits [n, K] of each task in batches that mix the rows of all tasks."""
    forward = mixed_forward(loaded.backbone, states)
    refs = _refs(tasks, loaded, patches)
    mixed = [
        (task, row)
        for row in range(max(len(t.rows) for t in tasks))
        for task in range(len(tasks))
        if row < len(tasks[task].rows)
    ]
    users = torch.cat(
        [
            forward.user_vectors([tasks[t].rows[r] for t, r in b], [refs[t] for t, _ in b])
            for b in _batches(mixed)
        ]
    )  # [all rows, C]
    owner = torch.tensor([task for task, _ in mixed])
    return [task.task.head.logits(users[owner == at]) for at, task in enumerate(tasks)]


def _refs(tasks: Sequence[Trained], loaded: LoadedBackbone, dtype: torch.dtype) -> list[SlotRef]:
    geometry = tasks[0].task.geometry
    shapes = geometry.shapes(loaded.backbone.spec.channels)
    pool = WeightPool(shapes, torch.device("cpu"), dtype, capacity=len(tasks))
    slots = [pool.write(task.task.patch_weights.named()) for task in tasks]
    return [SlotRef(geometry, pool, slot) for slot in slots]


def _same_bits(tasks: Sequence[Trained], loaded: LoadedBackbone) -> float:
    """Return the share of rows whose float32 user vector has the same bits alone and in a batch."""
    forward, refs = mixed_forward(loaded.backbone), _refs(tasks, loaded, torch.float32)
    rows = tasks[0].rows[:ALONE]
    chosen = [refs[row % len(refs)] for row in range(len(rows))]
    batch = forward.user_vectors(rows, chosen)
    alone = torch.cat(
        [forward.user_vectors([row], [ref]) for row, ref in zip(rows, chosen, strict=True)]
    )
    return (batch == alone).all(1).double().mean().item()


def _batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH)):
        yield batch


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _margin(logits: Tensor) -> Tensor:
    """Subtract the second highest class probability of each row from the highest: [n]."""
    best = torch.softmax(logits, 1).topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def _overlap(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the share [n] of each row's ten best items that are in both rankings."""
    mine, reference = (logits.topk(TOP, dim=1).indices for logits in (ours, theirs))
    return (mine.unsqueeze(2) == reference.unsqueeze(1)).any(2).double().mean(1)


def _qualities(task: FinetunedTask) -> list[str]:
    metrics: Mapping[str, float] = task.metrics
    name = next(name for name in metrics if f"baseline_{name}" in metrics)
    return [f"{name} {metrics[name]:.3f}", f"{metrics[f'baseline_{name}']:.3f}"]
