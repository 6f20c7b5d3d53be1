"""Pretraining: one backbone learns users' sequences without labels."""

import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from peterrec.model.data.histories import Histories
from peterrec.model.data.vocabulary import Vocabulary
from peterrec.model.network.backbone import Backbone
from peterrec.model.progress import OnProgress, Progress, no_progress
from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.batches import seeded
from peterrec.model.training.data_parallel import ALONE, Workers
from peterrec.model.training.metrics import rank_metrics, ranks_of
from peterrec.model.training.pretrain.corpus import Corpus, Part, prepare_corpus
from peterrec.model.training.pretrain.examples import (
    batch_maker,
    second_views,
)
from peterrec.model.training.pretrain.packed_blocks import pack, packed_states
from peterrec.model.training.pretrain.settings import DTYPES, PretrainSettings
from peterrec.model.training.pretrain.spectral import spectral_embedding
from peterrec.model.training.pretrain.state import (
    Document,
    EpochRecord,
    PretrainingState,
    restore_checkpoint,
    save_checkpoint,
)
from peterrec.model.training.pretrain.step import Moment, Views, predicting, train_step
from peterrec.model.training.products import chunk_rows, product
from peterrec.model.training.softmax import (
    OutputLayer,
    start_at_popularity,
)

__all__ = ["PretrainSettings", "PretrainedBackbone", "pretrain"]

CPU = torch.device("cpu")

WARM_UP_SHARE = 0.02
"""Share of all steps in which the learning rate rises from 0, before it falls back to 0."""


@dataclass(frozen=True, slots=True)
class PretrainedBackbone:
    """A trained backbone in evaluation mode, its output layer and the record of its training."""

    backbone: Backbone
    output: OutputLayer
    vocabulary: Vocabulary
    record: Document


def pretrain(
    histories: Histories,
    settings: PretrainSettings,
    *,
    checkpoints: Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = no_progress,
    workers: Workers = ALONE,
    device: torch.device = CPU,
) -> PretrainedBackbone:
    """Train a backbone; the epoch with the lowest validation loss wins. The result is on the CPU.

    With a ``checkpoints`` folder, every epoch leaves a checkpoint there; ``resume`` continues from
    it with the result of the uninterrupted run, bit for bit on the same machine. With several
    ``workers`` every one of them makes this call, and gets the same result.
    """
    corpus = prepare_corpus(histories, settings)
    state = _new_state(corpus, settings, device)
    identity = {**_plain(settings), "data_digest": corpus.facts["data_digest"]}
    if resume and checkpoints is not None:
        restore_checkpoint(checkpoints, state, identity)
    while len(state.epochs) < settings.epochs and not state.should_stop(settings.patience):
        state.finish_epoch(_run_epoch(state, corpus, settings, on_progress, workers))
        if checkpoints is not None and workers.writes:
            save_checkpoint(checkpoints, state, identity)
    state.take_best()
    state.to(CPU)
    state.backbone.requires_grad_(False).eval()
    record = _record(state, corpus, settings)
    return PretrainedBackbone(state.backbone, state.output, corpus.vocabulary, record)


def _new_state(
    corpus: Corpus, settings: PretrainSettings, device: torch.device
) -> PretrainingState:
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
    return PretrainingState(backbone.to(device), output.to(device), settings.learning_rate)


def _run_epoch(
    state: PretrainingState,
    corpus: Corpus,
    settings: PretrainSettings,
    on_progress: OnProgress,
    workers: Workers,
) -> EpochRecord:
    epoch = len(state.epochs)
    started = time.perf_counter()
    train_loss = _train_epoch(state, corpus, settings, on_progress, workers)
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
    state: PretrainingState,
    corpus: Corpus,
    settings: PretrainSettings,
    on_progress: OnProgress,
    workers: Workers,
) -> float:
    """One pass over the training windows; the mean item loss per target."""
    epoch, part, spec = len(state.epochs), corpus.train, state.backbone.spec
    generator = seeded(settings.seed, "pretrain", epoch)
    batches = part.batches(settings.batch_size, generator)
    phase, total, targets = f"pretrain epoch {epoch + 1}/{settings.epochs}", 0.0, 0
    for done, indices in enumerate(batches):
        step = epoch * len(batches) + done
        rate = _schedule(settings, step, settings.epochs * len(batches))
        at = Moment(step, rate, generator, DTYPES[settings.precision], workers)
        batch = batch_maker(spec)(part.take(indices), spec, generator).to(state.device)
        views = _views(part, indices, settings, generator, state.device)
        loss = train_step(state, batch, views, corpus.loss, at)
        total, targets = total + loss.items * loss.targets, targets + loss.targets
        on_progress(Progress(phase, done + 1, len(batches), f"loss {total / targets:.3f}"))
    return total / targets


def _schedule(settings: PretrainSettings, step: int, steps: int) -> float:
    """The learning rate: a short linear rise, then a linear fall to 0 at the end."""
    warm_up = max(1, round(steps * WARM_UP_SHARE))
    rising = (step + 1) / warm_up
    falling = (steps - step) / max(1, steps - warm_up)
    return settings.learning_rate * min(1.0, rising, falling)


def _views(
    part: Part,
    indices: Tensor,
    settings: PretrainSettings,
    generator: torch.Generator,
    device: torch.device,
) -> Views | None:
    """Second views of the windows' users, if the contrastive loss is wanted."""
    if settings.contrast_weight == 0:
        return None
    users = torch.from_numpy(part.windows[indices.numpy(), 0])  # [B]
    rows = [part.rows[user] for user in users.tolist()]
    spec = settings.backbone_spec(1)
    tokens = second_views(rows, spec, generator).to(device)
    return Views(tokens, users.to(device), settings.contrast_weight)


@torch.no_grad()
def _validate(
    state: PretrainingState, corpus: Corpus, settings: PretrainSettings
) -> tuple[float, dict[str, float]]:
    """Exact loss per target, and rank metrics over all items at the predicting positions."""
    generator = seeded(settings.seed, "validate")  # the same masks in every epoch
    spec, output = state.backbone.spec, state.output
    losses, ranks = [], []
    for indices in corpus.validation.batches(settings.batch_size, generator):
        batch = batch_maker(spec)(corpus.validation.take(indices), spec, generator)
        batch = batch.to(state.device)
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


def _record(state: PretrainingState, corpus: Corpus, settings: PretrainSettings) -> Document:
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
