"""Sequences per second in training on one thread, compared with a plain PyTorch step.

The plain step is a straightforward NextItNet: ``torch.nn.Conv1d``, padded rows, every position
predicted, full softmax, Adam over all parameters.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.plain_network import PlainNextItNet, plain_rate
from bench.report import Report
from bench.training_data import random_histories, random_labels
from bench.training_scale import measure_many_items, measure_many_tasks
from peterrec.model.data.histories import Histories
from peterrec.model.files.backbone_folder import LoadedBackbone, load_backbone, save_backbone
from peterrec.model.training.finetune.finetune import finetune
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.pretrain.pretrain import PretrainSettings, pretrain

TOP = (6, 7)
"""The numbers of the top two of eight blocks."""


def main(arguments: list[str]) -> None:
    """``python -m bench train``."""
    parser = argparse.ArgumentParser(prog="python -m bench train", description=__doc__)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--history", type=int, default=100, help="items per sequence")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--sequences", type=int, default=960)
    parser.add_argument(
        "--tasks", type=int, default=32, help="trained together and one by one; 0: skip"
    )
    parser.add_argument("--million", action="store_true", help="pretrain 1,000,000 items as well")
    parser.add_argument("--repeats", type=int, default=3, help="paired repeats; median counts")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure our training and the plain step alternately."""
    torch.set_num_threads(1)
    histories = random_histories(options)
    plain = PlainNextItNet(options.items, options.channels)
    loaded = _pretrained(histories, options)
    measured: dict[str, list[float]] = {}
    for repeat in range(options.repeats):
        rates = {
            "pretrain": _pretrain_rate(histories, options, seed=repeat),
            "plain_pretrain": plain_rate(plain, options, plain.pretraining_loss),
            "finetune_all": _finetune_rates(loaded, histories, options, None).steady,
            **_top_rates(loaded, histories, options),
            "plain_fine_all": plain_rate(plain, options, plain.class_loss),
        }
        for name, rate in rates.items():
            measured.setdefault(name, []).append(rate)
    figures = {f"{n}_sequences_per_s": statistics.median(rates) for n, rates in measured.items()}
    figures |= {
        "pretrain_vs_plain": _ratio(measured, "pretrain", "plain_pretrain"),
        "finetune_vs_plain_fine_all": _ratio(measured, "finetune_all", "plain_fine_all"),
        "top2_vs_plain_fine_all": _ratio(measured, "finetune_top2", "plain_fine_all"),
        "top2_with_trunk_vs_plain_fine_all": _ratio(
            measured, "finetune_top2_with_trunk", "plain_fine_all"
        ),
    }
    rows = [[name, f"{statistics.median(rates):.0f}"] for name, rates in measured.items()]
    if options.tasks:
        figures |= measure_many_tasks(loaded, histories, options)
    if options.million:
        figures |= measure_many_items()
    return Report(
        name="train",
        figures=figures,
        settings={**vars(options), "threads": 1},
        columns=("step", "sequences/s"),
        rows=rows,
    )


def _ratio(measured: dict[str, list[float]], ours: str, theirs: str) -> float:
    """Divide the rates within each repeat, where other load is alike; return the median."""
    pairs = zip(measured[ours], measured[theirs], strict=True)
    return statistics.median(one / other for one, other in pairs)


def _pretrain_settings(options: argparse.Namespace, seed: int) -> PretrainSettings:
    return PretrainSettings(
        channels=options.channels,
        max_len=options.history,
        epochs=1,
        batch_size=options.batch,
        seed=seed,
        start="random",
        contrast_weight=0.0,
    )


def _pretrained(histories: Histories, options: argparse.Namespace) -> LoadedBackbone:
    trained = pretrain(histories, _pretrain_settings(options, seed=0))
    with tempfile.TemporaryDirectory() as folder:
        items = list(trained.vocabulary.items)
        save_backbone(Path(folder), trained.backbone, items, record={})
        return load_backbone(Path(folder))


def _pretrain_rate(histories: Histories, options: argparse.Namespace, seed: int) -> float:
    record = pretrain(histories, _pretrain_settings(options, seed)).record
    return float(record["epochs"][0]["sequences_per_second"])


@dataclass(frozen=True, slots=True)
class Rates:
    """Measure the sequences per second of the median epoch and of all epochs together."""

    steady: float
    whole: float


def _top_rates(
    loaded: LoadedBackbone, histories: Histories, options: argparse.Namespace
) -> dict[str, float]:
    """Fine-tune the top two blocks; the first four epochs also compute the blocks below."""
    rates = _finetune_rates(loaded, histories, options, TOP)
    return {"finetune_top2": rates.steady, "finetune_top2_with_trunk": rates.whole}


def _finetune_rates(
    loaded: LoadedBackbone,
    histories: Histories,
    options: argparse.Namespace,
    blocks: tuple[int, ...] | None,
) -> Rates:
    settings = FinetuneSettings(
        "classification",
        parts="blocks",
        blocks=blocks,
        epochs=2 if blocks is None else 12,
        batch_size=options.batch,
        max_unknown_share=1.0,
        patience=12,
    )
    task = finetune(loaded, histories, random_labels(histories), settings)
    epochs = task.record["epochs"]
    users, seconds = len(task.split.train), sum(epoch["seconds"] for epoch in epochs)
    steady = statistics.median(epoch["sequences_per_second"] for epoch in epochs)
    return Rates(float(steady), float(users * len(epochs) / seconds))
