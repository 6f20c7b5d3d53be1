"""Sequences per second in training, one thread, against a plain PyTorch step in the same run.

The plain step is NextItNet as one would write it first: ``torch.nn.Conv1d``, every position padded
and predicted, full softmax, Adam over everything.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.report import Report
from model.backbone_folder import LoadedBackbone, load_backbone, save_backbone
from model.finetuning import finetune
from model.finetuning_settings import FinetuneSettings
from model.histories import Histories, UserLabels
from model.pretraining import PretrainSettings, pretrain

DILATIONS = (1, 4, 1, 4, 1, 4, 1, 4)
CLASSES = 5


def main(arguments: list[str]) -> None:
    """``python -m bench train``."""
    parser = argparse.ArgumentParser(prog="python -m bench train", description=__doc__)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--history", type=int, default=100, help="items per sequence")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--sequences", type=int, default=960)
    parser.add_argument("--repeats", type=int, default=3, help="paired; the median is reported")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure ours and the plain step in turn."""
    torch.set_num_threads(1)
    histories = random_histories(options)
    plain = PlainNextItNet(options.items, options.channels)
    loaded = _pretrained(histories, options)
    measured: dict[str, list[float]] = {
        "pretrain": [],
        "plain_pretrain": [],
        "finetune_all": [],
        "finetune_top2": [],
        "plain_fine_all": [],
    }
    for repeat in range(options.repeats):
        measured["pretrain"].append(_pretrain_rate(histories, options, seed=repeat))
        measured["plain_pretrain"].append(_plain_rate(plain, options, plain.pretraining_loss))
        measured["finetune_all"].append(_finetune_rate(loaded, histories, options, None))
        measured["finetune_top2"].append(_finetune_rate(loaded, histories, options, (6, 7)))
        measured["plain_fine_all"].append(_plain_rate(plain, options, plain.class_loss))
    rates = {name: statistics.median(values) for name, values in measured.items()}
    figures = {f"{name}_sequences_per_s": rate for name, rate in rates.items()}
    figures["pretrain_vs_plain"] = rates["pretrain"] / rates["plain_pretrain"]
    figures["finetune_vs_plain_fine_all"] = rates["finetune_all"] / rates["plain_fine_all"]
    figures["top2_vs_plain_fine_all"] = rates["finetune_top2"] / rates["plain_fine_all"]
    return Report(
        name="train",
        figures=figures,
        settings={**vars(options), "threads": 1},
        columns=("step", "sequences/s"),
        rows=[[name, f"{rate:.0f}"] for name, rate in rates.items()],
    )


def random_histories(options: argparse.Namespace) -> Histories:
    """Sequences of ``history`` + 1 items drawn with Zipf-like popularity."""
    random = np.random.default_rng(0)
    weights = 1 / np.arange(1, options.items + 1) ** 0.8
    length = options.history + 1
    codes = random.choice(
        options.items, options.sequences * length, p=weights / weights.sum()
    ).astype(np.int64)
    return Histories(
        users=tuple(f"u{user}" for user in range(options.sequences)),
        items=tuple(f"i{item}" for item in range(options.items)),
        codes=codes,
        offsets=np.arange(options.sequences + 1) * length,
    )


def random_labels(histories: Histories) -> UserLabels:
    """A random class for every user."""
    random = np.random.default_rng(1)
    classes = random.integers(0, CLASSES, len(histories.users)).tolist()
    return UserLabels(
        {u: (f"c{c}",) for u, c in zip(histories.users, classes, strict=True)}, source="random"
    )


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


def _finetune_rate(
    loaded: LoadedBackbone,
    histories: Histories,
    options: argparse.Namespace,
    blocks: tuple[int, ...] | None,
) -> float:
    settings = FinetuneSettings(
        "classification",
        blocks=blocks,
        epochs=2,
        batch_size=options.batch,
        max_unknown_share=1.0,
        item_dropout=0.0,
    )
    record = finetune(loaded, histories, random_labels(histories), settings).record
    return float(statistics.median(epoch["sequences_per_second"] for epoch in record["epochs"]))


class PlainNextItNet(nn.Module):
    """The first thing one would write: no cone, no packing, no sampling."""

    def __init__(self, items: int, channels: int) -> None:
        super().__init__()
        self.items = items
        self.embedding = nn.Embedding(items, channels)
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, 3, dilation=dilation * factor)
            for dilation in DILATIONS
            for factor in (1, 2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in self.convs)
        self.output = nn.Linear(channels, items)
        self.classes = nn.Linear(channels, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, T] -> hidden [B, T, C]."""
        x: Tensor = self.embedding(tokens)
        for block in range(0, len(self.convs), 2):
            y = x
            for conv, norm in zip(
                self.convs[block : block + 2], self.norms[block : block + 2], strict=True
            ):
                reach = 2 * int(conv.dilation[0])  # type: ignore[index]  # a Conv1d's
                padded = functional.pad(y.transpose(1, 2), (reach, 0))
                y = torch.relu(norm(conv(padded).transpose(1, 2)))
            x = x + y
        return x

    def pretraining_loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of the next item at every position, over all items."""
        logits = self.output(self(tokens[:, :-1]))  # [B, T, N]
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def class_loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of a class read at the last position; everything is trained."""
        return functional.cross_entropy(self.classes(self(tokens)[:, -1]), tokens[:, 0] % CLASSES)


def _plain_rate(
    network: PlainNextItNet, options: argparse.Namespace, loss_of: Callable[[Tensor], Tensor]
) -> float:
    """Sequences per second of whole steps, the first one not counted."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, options.history + 1)
    seconds = []
    for _ in range(6):
        tokens = torch.randint(options.items, shape, generator=generator)
        started = time.perf_counter()
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(tokens))
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return float(options.batch / statistics.median(seconds[1:]))
