"""Training and validation data of pretraining: windows of users' histories."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from peterrec.model.data.histories import Histories
from peterrec.model.data.splits import split_users
from peterrec.model.data.vocabulary import (
    TokenHistories,
    Vocabulary,
    build_vocabulary,
    tokenize,
)
from peterrec.model.documents import Document
from peterrec.model.training.batches import bucketed_batches
from peterrec.model.training.next_items import UNKNOWN, hold_out
from peterrec.model.training.options import LossName
from peterrec.model.training.pretrain.doubts import (
    doubts_of_corpus,
    require_events_left,
    require_items,
    require_newest_items,
    require_sequences,
    require_successions,
)
from peterrec.model.training.pretrain.examples import TokenRow, Windows, cut_windows, newest_items
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

    def cut_anew(self, max_len: int, generator: torch.Generator) -> Self:
        """A part of the same users whose long rows are cut at other places, in as many windows."""
        return type(self)(self.rows, cut_windows(self.rows, max_len, generator))

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
    """Training and validation windows, cut after validation users or items were taken out.

    If each user's newest item is validated on, a validation window ends with it, and only it is
    predicted.
    """

    vocabulary: Vocabulary
    train: Part
    validation: Part
    loss: LossName
    metadata: Document


def known_items(histories: Histories, settings: PretrainSettings) -> Vocabulary:
    """The items that a backbone pretrained on these histories knows, without pretraining it."""
    seen, _ = _parts(histories.without_newest(settings.leave_out_last), settings)
    return build_vocabulary(seen, settings.min_count)


def _parts(histories: Histories, settings: PretrainSettings) -> tuple[Histories, Histories]:
    """Histories to learn from, and histories to choose the best epoch with."""
    if settings.validation_share == 0:
        return histories.without_newest(1), histories
    split = split_users(histories.users, settings.validation_share, 0.0, settings.seed)
    return histories.select(split.train), histories.select(split.validation)


def prepare_corpus(histories: Histories, settings: PretrainSettings) -> Corpus:
    """Split before anything is counted: validation adds no item and no frequency.

    The newest events that the settings leave out are gone before that.
    """
    given, histories = histories, histories.without_newest(settings.leave_out_last)
    require_events_left(given, histories, settings.leave_out_last)
    require_successions(histories)
    seen, others = _parts(histories, settings)
    vocabulary = build_vocabulary(seen, settings.min_count)
    require_items(vocabulary)
    known = tokenize(seen, vocabulary)
    train = Part.of(known.rows, settings.max_len)
    if settings.validation_share == 0:
        held_out, most = (
            _newest_items(others, vocabulary, settings.max_len),
            MOST_VALIDATION_WINDOWS,
        )
        require_newest_items(held_out)
    else:
        held_out = tokenize(others, vocabulary)
        most = VALIDATION_LOGITS // (len(vocabulary) * settings.max_len)
        most = min(MOST_VALIDATION_WINDOWS, max(FEWEST_VALIDATION_WINDOWS, most))
    require_sequences(known, held_out)
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


def _newest_items(histories: Histories, vocabulary: Vocabulary, max_len: int) -> TokenHistories:
    """Each user's newest item behind the items that it is predicted from: one window each."""
    asked = hold_out(histories, vocabulary, "test", MOST_VALIDATION_WINDOWS)
    rows = [row[-max_len - 1 :] for row in newest_items(asked)]
    unknown = int((asked.targets == UNKNOWN).sum())
    return TokenHistories(histories.users, rows, len(asked.rows), unknown)
