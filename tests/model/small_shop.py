"""A tiny data set in which the group of a user determines the items; training takes a second."""

from pathlib import Path

import numpy as np

from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.files.backbone_folder import LoadedBackbone, load_backbone, save_backbone
from peterrec.model.training.pretrain.pretrain import PretrainSettings, pretrain

GROUPS = ("even", "odd")

TINY = PretrainSettings(
    channels=8,
    dilations=(1, 2),
    max_len=8,
    epochs=2,
    batch_size=16,
    validation_share=0.1,
    seed=3,
)


def shop_histories(users: int = 120, items: int = 30, seed: int = 0) -> Histories:
    """Make histories: users of the even group take mostly even items, in runs of neighbours."""
    generator = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        length = int(generator.integers(4, 15))
        starts = generator.integers(0, items // 2, length)
        own = np.where(generator.random(length) < 0.9, user % 2, 1 - user % 2)
        rows.append(2 * starts + own)
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    names = tuple(f"item-{i:02d}" for i in range(items))
    ids = tuple(f"user-{i:03d}" for i in range(users))
    return Histories(ids, names, np.concatenate(rows).astype(np.int64), offsets)


def groups(users: int = 120) -> UserLabels:
    """Return the group of each user."""
    return UserLabels({f"user-{i:03d}": (GROUPS[i % 2],) for i in range(users)}, "users.csv")


def small_backbone(folder: Path, settings: PretrainSettings = TINY) -> LoadedBackbone:
    """Pretrain on the shop's histories and read the backbone back from a folder."""
    trained = pretrain(shop_histories(), settings)
    save_backbone(folder, trained.backbone, list(trained.vocabulary.items), trained.record)
    return load_backbone(folder)
