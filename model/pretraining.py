"""Pretraining: one backbone learns users' sequences without labels."""

import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from model.backbone import Backbone
from model.batches import bucketed_batches, seeded
from model.data_errors import SplitEmpty
from model.heads.ranks import rank_metrics, ranks_of
from model.histories import Histories
from model.pretraining_examples import (
    TokenRow,
    Windows,
    batch_maker,
    cut_windows,
    second_views,
)
from model.pretraining_state import (
    Document,
    EpochRecord,
    PretrainingState,
    restore_checkpoint,
    save_checkpoint,
)
from model.pretraining_step import Moment, Views, predicting, train_step
from model.progress import Progress, Watch, unwatched
from model.softmax_loss import (
    PRETRAINING_LIMIT,
    LossName,
    OutputLayer,
    choose_loss,
    start_at_popularity,
)
from model.spec import FIRST_ITEM, BackboneSpec
from model.spectral import spectral_embedding
from model.splits import split_users
from model.training_kernels.packed_blocks import packed_states
from model.training_kernels.packing import pack
from model.training_kernels.products import chunk_rows, product
from model.vocabulary import Vocabulary, build_vocabulary, tokenize

MOST_VALIDATION_WINDOWS = 2_000
"""Validation looks at no more windows than this, so that an epoch's check stays short."""

FEWEST_VALIDATION_WINDOWS = 64

VALIDATION_LOGITS = 2_000_000_000
"""Nor at more than this many scores of items, unless the fewest windows need them: 10 seconds."""

WARM_UP_SHARE = 0.02
"""Share of all steps in which the learning rate rises from 0, before it falls back to 0."""


Start = Literal["spectral", "random"]


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """Everything that shapes a pretraining run; saved with the backbone.

    ``start`` is where the item embedding begins: ``spectral`` (``model/spectral.py``) or
    ``random``. ``contrast_weight`` times the contrastive loss of user vectors is added to the
    items' loss; 0 leaves it out, as the paper does.
    """

    channels: int = 64
    dilations: tuple[int, ...] = (1, 4, 1, 4, 1, 4, 1, 4)
    kernel_size: int = 3
    is_causal: bool = True
    max_len: int = 50
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0
    validation_share: float = 0.05
    patience: int = 2
    min_count: int = 1
    loss: LossName | Literal["auto"] = "auto"
    start: Start = "spectral"
    contrast_weight: float = 0.5

    def backbone_spec(self, item_count: int) -> BackboneSpec:
        """The architecture for so many items."""
        return BackboneSpec(
            item_count=item_count,
            channels=self.channels,
            dilations=self.dilations,
            kernel_size=self.kernel_size,
            is_causal=self.is_causal,
            max_len=self.max_len,
        )


@dataclass(frozen=True, slots=True)
class PretrainedBackbone:
    """A trained backbone in evaluation mode, its output layer and the record of its training."""

    backbone: Backbone
    output: OutputLayer
    vocabulary: Vocabulary
    record: Document


@dataclass(frozen=True, slots=True)
class _Part:
    """Users' token rows and the windows cut from them."""

    rows: list[TokenRow]
    windows: Windows

    @classmethod
    def of(cls, rows: list[TokenRow], max_len: int, most: int | None = None) -> Self:
        return cls(rows, cut_windows(rows, max_len)[:most])

    def take(self, indices: Tensor) -> list[TokenRow]:
        """The token rows of some windows."""
        chosen = self.windows[indices.numpy()]  # a tensor of one index would be taken as a number
        return [self.rows[user][start:end] for user, start, end in chosen.tolist()]

    def batches(self, batch_size: int, generator: torch.Generator) -> list[Tensor]:
        """Indices of windows, in batches of similar length."""
        lengths = self.windows[:, 2] - self.windows[:, 1]
        return bucketed_batches(lengths, batch_size, generator)


@dataclass(frozen=True, slots=True)
class _Corpus:
    """What to learn from and what to check with, cut after the split by user."""

    vocabulary: Vocabulary
    train: _Part
    validation: _Part
    loss: LossName
    facts: Document


def pretrain(
    histories: Histories,
    settings: PretrainSettings,
    *,
    checkpoints: Path | None = None,
    resume: bool = False,
    watch: Watch = unwatched,
) -> PretrainedBackbone:
    """Train a backbone; the epoch with the lowest validation loss wins.

    With a ``checkpoints`` folder, every epoch leaves a checkpoint there; ``resume`` continues from
    it with the result of the uninterrupted run, bit for bit on the same machine.
    """
    corpus = _prepare(histories, settings)
    state = _new_state(corpus, settings)
    identity = {**_plain(settings), "data_digest": corpus.facts["data_digest"]}
    if resume and checkpoints is not None:
        restore_checkpoint(checkpoints, state, identity)
    while len(state.epochs) < settings.epochs and not state.should_stop(settings.patience):
        state.finish_epoch(_run_epoch(state, corpus, settings, watch))
        if checkpoints is not None:
            save_checkpoint(checkpoints, state, identity)
    state.take_best()
    state.backbone.requires_grad_(False).eval()
    record = _record(state, corpus, settings)
    return PretrainedBackbone(state.backbone, state.output, corpus.vocabulary, record)


def _prepare(histories: Histories, settings: PretrainSettings) -> _Corpus:
    """Split by user before anything is counted: validation users add no item and no frequency."""
    split = split_users(histories.users, settings.validation_share, 0.0, settings.seed)
    seen = histories.select(split.train)
    vocabulary = build_vocabulary(seen, settings.min_count)
    known = tokenize(seen, vocabulary)
    train = _Part.of(known.rows, settings.max_len)
    held_out = tokenize(histories.select(split.validation), vocabulary)
    most = VALIDATION_LOGITS // (len(vocabulary) * settings.max_len)
    most = min(MOST_VALIDATION_WINDOWS, max(FEWEST_VALIDATION_WINDOWS, most))
    validation = _Part.of(held_out.rows, settings.max_len, most)
    if not len(train.windows) or not len(validation.windows):
        raise SplitEmpty(
            f"{len(split.train)} training and {len(split.validation)} validation users give "
            f"{len(train.windows)} and {len(validation.windows)} sequences of two items or more.",
            hint="Give more users or longer histories, or another --validation-share.",
        )
    facts = {
        "data_digest": histories.digest(),
        "users": len(histories.users),
        "events": len(histories.codes),
        "items": len(vocabulary),
        "train_sequences": len(train.windows),
        "validation_sequences": len(validation.windows),
        "unknown_share": known.unknown_share,
        "validation_unknown_share": held_out.unknown_share,
    }
    loss = choose_loss(settings.loss, len(vocabulary), PRETRAINING_LIMIT)
    return _Corpus(vocabulary, train, validation, loss, facts)


def _new_state(corpus: _Corpus, settings: PretrainSettings) -> PretrainingState:
    items = len(corpus.vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        backbone = Backbone(settings.backbone_spec(items))
        output = OutputLayer(items, settings.channels)
    start_at_popularity(output, corpus.train.rows)
    if settings.start == "spectral":
        generator = seeded(settings.seed, "spectral")
        vectors = spectral_embedding(corpus.train.rows, items, settings.channels, generator)
        with torch.no_grad():  # fewer factors than channels leave the rest as it was
            backbone.embedding.weight[FIRST_ITEM:, : vectors.shape[1]] = vectors
    return PretrainingState(backbone, output, settings.learning_rate)


def _run_epoch(
    state: PretrainingState, corpus: _Corpus, settings: PretrainSettings, watch: Watch
) -> EpochRecord:
    epoch = len(state.epochs)
    started = time.perf_counter()
    train_loss = _train_epoch(state, corpus, settings, watch)
    seconds = time.perf_counter() - started
    validation_loss, metrics = _validate(state, corpus, settings)
    return EpochRecord(
        epoch=epoch,
        train_loss=train_loss,
        validation_loss=validation_loss,
        validation_metrics=metrics,
        seconds=round(seconds, 3),
        sequences_per_second=round(len(corpus.train.windows) / seconds, 1),
    )


def _train_epoch(
    state: PretrainingState, corpus: _Corpus, settings: PretrainSettings, watch: Watch
) -> float:
    """One pass over the training windows; the mean item loss per target."""
    epoch, part, spec = len(state.epochs), corpus.train, state.backbone.spec
    generator = seeded(settings.seed, "pretrain", epoch)
    batches = part.batches(settings.batch_size, generator)
    phase, total, targets = f"pretrain epoch {epoch + 1}/{settings.epochs}", 0.0, 0
    for done, indices in enumerate(batches):
        step = epoch * len(batches) + done
        at = Moment(step, _schedule(settings, step, settings.epochs * len(batches)), generator)
        batch = batch_maker(spec)(part.take(indices), spec, generator)
        views = _views(part, indices, settings, generator)
        loss = train_step(state, batch, views, corpus.loss, at)
        total, targets = total + loss.items * loss.targets, targets + loss.targets
        watch(Progress(phase, done + 1, len(batches), f"loss {total / targets:.3f}"))
    return total / targets


def _schedule(settings: PretrainSettings, step: int, steps: int) -> float:
    """The learning rate: a short linear rise, then a linear fall to 0 at the end."""
    warm_up = max(1, round(steps * WARM_UP_SHARE))
    rising = (step + 1) / warm_up
    falling = (steps - step) / max(1, steps - warm_up)
    return settings.learning_rate * min(1.0, rising, falling)


def _views(
    part: _Part, indices: Tensor, settings: PretrainSettings, generator: torch.Generator
) -> Views | None:
    """Second views of the windows' users, if the contrastive loss is wanted."""
    if settings.contrast_weight == 0:
        return None
    users = torch.from_numpy(part.windows[indices.numpy(), 0])  # [B]
    rows = [part.rows[user] for user in users.tolist()]
    spec = settings.backbone_spec(1)
    return Views(second_views(rows, spec, generator), users, settings.contrast_weight)


@torch.no_grad()
def _validate(
    state: PretrainingState, corpus: _Corpus, settings: PretrainSettings
) -> tuple[float, dict[str, float]]:
    """Exact loss per target, and rank metrics over all items at the predicting positions."""
    generator = seeded(settings.seed, "validate")  # the same masks in every epoch
    spec, output = state.backbone.spec, state.output
    losses, ranks = [], []
    for indices in corpus.validation.batches(settings.batch_size, generator):
        batch = batch_maker(spec)(corpus.validation.take(indices), spec, generator)
        packing = pack(batch.tokens, spec)
        embedded = state.backbone.embedding(batch.tokens.flatten()[packing.places])  # [N, C]
        states = packed_states(state.backbone, embedded, packing)  # [1 + N, C]
        rows = chunk_rows(len(output.bias))
        chunks = (torch.split(x, rows) for x in predicting(states, batch, packing))
        for part, wanted in zip(*chunks, strict=True):
            logits = product(part, output.weight, output.bias)  # [M, C] -> [M, K]
            losses.append(cross_entropy(logits, wanted, reduction="none"))
            ranks.append(ranks_of(logits, wanted))
    return torch.cat(losses).mean().item(), rank_metrics(torch.cat(ranks), 5)


def _record(state: PretrainingState, corpus: _Corpus, settings: PretrainSettings) -> Document:
    return {
        "settings": _plain(settings),
        "data": corpus.facts,
        "loss": corpus.loss,
        "best_epoch": state.best_epoch,
        "epochs": [asdict(epoch) for epoch in state.epochs],
        "seconds": round(sum(epoch.seconds for epoch in state.epochs), 3),
        "software": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _plain(settings: PretrainSettings) -> Document:
    return {**asdict(settings), "dilations": list(settings.dilations)}
