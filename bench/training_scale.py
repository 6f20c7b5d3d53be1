"""Training of many tasks in one run, and with a million items."""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.training_data import random_labels
from peterrec.model.data.histories import Histories
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.training.finetune.finetune import FinetunedTask, finetune
from peterrec.model.training.finetune.many_tasks import TaskToTrain, finetune_many
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.pretrain.pretrain import PretrainSettings, pretrain

MILLION = 1_000_000
WINDOW = 100
WINDOWS = 12_000
"""Number of training sequences: enough to contain each of a million items at least once."""


def measure_many_tasks(
    loaded: LoadedBackbone, histories: Histories, options: argparse.Namespace
) -> dict[str, float]:
    """Measure the training of tasks in one run and one by one, in the top two blocks."""
    settings = FinetuneSettings(
        "classification",
        parts="blocks",
        blocks=(6, 7),
        epochs=6,
        batch_size=options.batch,
        max_unknown_share=1.0,
        patience=6,
    )
    answers = [random_labels(histories, seed) for seed in range(options.tasks)]
    started = time.perf_counter()
    together = finetune_many(loaded, histories, [TaskToTrain(a, settings) for a in answers])
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    alone = [finetune(loaded, histories, labels, settings) for labels in answers]
    seconds_alone = time.perf_counter() - started
    return {
        "many_tasks_s": seconds,
        "many_tasks_one_by_one_s": seconds_alone,
        "many_tasks_share": seconds / seconds_alone,
        "many_tasks_loss_ratio": _mean_loss(together) / _mean_loss(alone),
    }


def _mean_loss(tasks: list[FinetunedTask]) -> float:
    """Average the validation loss of the tasks' best epochs."""
    return statistics.mean(
        min(float(epoch["validation_loss"]) for epoch in task.record["epochs"]) for task in tasks
    )


def measure_many_items() -> dict[str, float]:
    """Pretrain with a million items and a checkpoint, in a separate process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_pretrain_a_million)


def _pretrain_a_million() -> dict[str, float]:
    import resource  # not on every system; nothing else needs it

    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    codes = np.concatenate([np.arange(MILLION), random.zipf(1.2, WINDOWS * WINDOW)]) % MILLION
    random.shuffle(codes)
    count = len(codes) // WINDOW
    histories = Histories(
        users=tuple(f"u{user}" for user in range(count)),
        items=tuple(f"i{item}" for item in range(MILLION)),
        codes=codes[: count * WINDOW].astype(np.int64),
        offsets=np.arange(count + 1) * WINDOW,
    )
    settings = PretrainSettings(max_len=WINDOW, epochs=1, batch_size=32, validation_share=0.01)
    with tempfile.TemporaryDirectory() as folder:
        record = pretrain(histories, settings, checkpoints=Path(folder)).record
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "items_1m_peak_gib": peak / 2**20,
        "items_1m_vocabulary": record["data"]["items"],
        "items_1m_sequences_per_s": record["epochs"][0]["sequences_per_second"],
    }
