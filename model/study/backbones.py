"""Backbones of a comparison: one for each corpus and direction, pretrained once and stored."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from peterrec.model.data.histories import Histories
from peterrec.model.data.vocabulary import build_vocabulary
from peterrec.model.files.backbone_folder import LoadedBackbone, load_backbone, save_backbone
from peterrec.model.files.backbone_info import SPEC
from peterrec.model.study.corpus import PreparedCorpus
from peterrec.model.study.settings import ComparisonSettings
from peterrec.model.training.pretrain.corpus import known_items
from peterrec.model.training.pretrain.pretrain import PretrainSettings, pretrain
from peterrec.model.training.pretrain.state import remove_checkpoint

CPU = torch.device("cpu")


def backbone_folder(
    work: Path, corpus: PreparedCorpus, settings: ComparisonSettings, is_causal: bool
) -> Path:
    """The backbone's folder; its name contains a digest of settings and data."""
    chosen = pretrain_settings(settings, is_causal)
    identity = [asdict(chosen), settings.pretrain_on, corpus.digest]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    kind = "causal" if is_causal else "noncausal"
    return work / "backbones" / f"{corpus.name}-{kind}-{digest[:12]}"


def pretrain_settings(settings: ComparisonSettings, is_causal: bool) -> PretrainSettings:
    """The settings of one backbone's pretraining; its seed is the comparison's first one."""
    return replace(settings.pretraining, is_causal=is_causal, seed=settings.first_seed)


def ensure_backbone(
    folder: Path,
    corpus: PreparedCorpus,
    settings: ComparisonSettings,
    is_causal: bool,
    device: torch.device = CPU,
) -> None:
    """Pretrain into the folder, or continue an unfinished run; do nothing if it is finished."""
    if (folder / SPEC).exists():
        return
    histories = pretraining_histories(corpus, settings)
    chosen = pretrain_settings(settings, is_causal)
    trained = pretrain(histories, chosen, checkpoints=folder, resume=True, device=device)
    save_backbone(folder, trained.backbone, list(trained.vocabulary.items), trained.record)
    remove_checkpoint(folder)


def pretraining_histories(corpus: PreparedCorpus, settings: ComparisonSettings) -> Histories:
    """The histories that pretraining may read: of training users, or of all if so configured.

    A corpus's separate sequences for pretraining are added, and replace the histories of users with
    the same id. Sequences of users who are held out are never added.
    """
    own, extra, split = corpus.histories, corpus.pretraining, corpus.split
    held_out = set[str]()
    if settings.pretrain_on == "train":
        parts = (split.validation, split.test)
        held_out = {own.users[i] for part in parts for i in part.tolist()}
        own = own.select(split.train)
    if extra is None:
        return own
    extra = _without(extra, held_out)
    return _joined(_without(own, set(extra.users)), extra)


def items_of(corpus: PreparedCorpus, settings: ComparisonSettings) -> tuple[str, ...]:
    """The items of the corpus's backbones, whether or not they are pretrained yet.

    Both have the same; a baseline needs no backbone.
    """
    histories = pretraining_histories(corpus, settings)
    return known_items(histories, pretrain_settings(settings, is_causal=True)).items


def further_items(
    corpus: PreparedCorpus, settings: ComparisonSettings, known: Sequence[str]
) -> tuple[str, ...]:
    """The items that training users have and the backbones do not know.

    Pretraining keeps some of the training users to choose its epoch with, and learns no item that
    they alone have. Nothing keeps a baseline from reading these.
    """
    own = corpus.histories.select(corpus.split.train)
    found = build_vocabulary(own, settings.pretraining.min_count).items
    is_known = set(known)
    return tuple(item for item in found if item not in is_known)


def _without(histories: Histories, users: set[str]) -> Histories:
    kept = np.flatnonzero([user not in users for user in histories.users])
    return histories.select(kept)


def _joined(one: Histories, other: Histories) -> Histories:
    index = {item: code for code, item in enumerate(one.items)}
    for item in other.items:
        index.setdefault(item, len(index))
    codes = np.array([index[item] for item in other.items], dtype=np.int64)[other.codes]
    return Histories(
        users=(*one.users, *other.users),
        items=tuple(index),
        codes=np.concatenate([one.codes, codes]),
        offsets=np.concatenate([one.offsets, one.offsets[-1] + other.offsets[1:]]),
    )


@lru_cache(maxsize=4)
def backbone_at(folder: Path) -> LoadedBackbone:
    """A finished backbone, read once in each process."""
    return load_backbone(folder)
