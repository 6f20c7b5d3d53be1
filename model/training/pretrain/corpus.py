"""Training and validation data of pretraining: windows of users' histories."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from peterrec.model.data.histories import Histories
from peterrec.model.data.splits import UserSplit, split_users
from peterrec.model.data.vocabulary import Vocabulary, build_vocabulary, tokenize
from peterrec.model.documents import Document
from peterrec.model.training.batches import bucketed_batches
from peterrec.model.training.options import LossName
from peterrec.model.training.pretrain.doubts import (
    doubts_of_corpus,
    require_events_left,
    require_items,
    require_sequences,
)
from peterrec.model.training.pretrain.examples import TokenRow, Windows, cut_windows
from peterrec.model.training.pretrain.settings import PretrainSettings
from peterrec.model.training.softmax import PRETRAINING_LIMIT, choose_loss

MOST_VALIDATION_WINDOWS = 2_000
"""Upper bound on validation windows, so that validating after each epoch stays short."""

FEWEST_VALIDATION_WINDOWS = 64
"""Windows that are validated on even if they need more than ``VALIDATION_LOGITS``."""

VALIDATION_LOGITS = 2_000_000_000
"""Upper bound on item scores computed in one validation, about 10 seconds."""


@dataclass(frozen=True, slots=True)
class Part:
    """Users' token rows and the windows cut from them."""

    rows: list[TokenRow]
    windows: Windows

    @classmethod
    def of(cls, rows: list[TokenRow], max_len: int, most: int | None = None) -> Self:
        return cls(rows, cut_windows(rows, max_len)[:most])

    def take(self, indices: Tensor) -> list[TokenRow]:
        """The token rows of some windows."""
        chosen = self.windows[indices.numpy()]  # a tensor of one index would count as a number
        return [self.rows[user][start:end] for user, start, end in chosen.tolist()]

    def batches(self, batch_size: int, generator: torch.Generator) -> list[Tensor]:
        """Indices of windows, in batches of windows of similar length."""
        lengths = self.windows[:, 2] - self.windows[:, 1]
        return bucketed_batches(lengths, batch_size, generator)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training and validation windows, cut after the split by user."""

    vocabulary: Vocabulary
    train: Part
    validation: Part
    loss: LossName
    metadata: Document


def known_items(histories: Histories, settings: PretrainSettings) -> Vocabulary:
    """The items that a backbone pretrained on these histories knows, without pretraining it."""
    histories = histories.without_newest(settings.leave_out_last)
    seen = histories.select(_split(histories, settings).train)
    return build_vocabulary(seen, settings.min_count)


def _split(histories: Histories, settings: PretrainSettings) -> UserSplit:
    return split_users(histories.users, settings.validation_share, 0.0, settings.seed)


def prepare_corpus(histories: Histories, settings: PretrainSettings) -> Corpus:
    """Split by user before anything is counted: validation users add no item and no frequency.

    The newest events that the settings leave out are gone before that.
    """
    given, histories = histories, histories.without_newest(settings.leave_out_last)
    require_events_left(given, histories, settings.leave_out_last)
    split = _split(histories, settings)
    seen = histories.select(split.train)
    vocabulary = build_vocabulary(seen, settings.min_count)
    require_items(vocabulary)
    known = tokenize(seen, vocabulary)
    train = Part.of(known.rows, settings.max_len)
    held_out = tokenize(histories.select(split.validation), vocabulary)
    require_sequences(known, held_out, histories)
    most = VALIDATION_LOGITS // (len(vocabulary) * settings.max_len)
    most = min(MOST_VALIDATION_WINDOWS, max(FEWEST_VALIDATION_WINDOWS, most))
    validation = Part.of(held_out.rows, settings.max_len, most)
    metadata = {
        "data_digest": histories.digest(),
        "users": len(histories.users),
        "events": len(histories.codes),
        "left_out_events": len(given.codes) - len(histories.codes),
        "left_out_users": len(given.users) - len(histories.users),
        "items": len(vocabulary),
        "train_sequences": len(train.windows),
        "validation_sequences": len(validation.windows),
        "unknown_share": known.unknown_share,
        "validation_unknown_share": held_out.unknown_share,
        "warnings": list(doubts_of_corpus(known, vocabulary, len(validation.windows))),
    }
    loss = choose_loss(settings.loss, len(vocabulary), PRETRAINING_LIMIT)
    return Corpus(vocabulary, train, validation, loss, metadata)
