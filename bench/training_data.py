"""Random histories and labels to train on."""

import argparse

import numpy as np

from bench.plain_network import CLASSES
from peterrec.model.data.histories import Histories, UserLabels


def random_histories(options: argparse.Namespace) -> Histories:
    """Make sequences of ``history`` + 1 items, drawn with Zipf-like popularity."""
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


def random_labels(histories: Histories, seed: int = 1) -> UserLabels:
    """Draw a random class for every user."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, CLASSES, len(histories.users)).tolist()
    return UserLabels(
        {u: (f"c{c}",) for u, c in zip(histories.users, classes, strict=True)}, source="random"
    )
