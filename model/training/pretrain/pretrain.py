"""Pretraining: one backbone learns users' sequences without labels."""

import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from peterrec.model.data.histories import Histories
from peterrec.model.data.vocabulary import Vocabulary
from peterrec.model.documents import Document
from peterrec.model.network.backbone import Backbone
from peterrec.model.progress import Notice, OnProgress, Progress, no_notice, no_progress
from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.batches import seeded
from peterrec.model.training.data_parallel import ALONE, Workers
from peterrec.model.training.events import (
    TrainingEnded,
    TrainingListener,
    TrainingStarted,
    machine_of,
    report_epochs,
    unheard,
)
from peterrec.model.training.loop import EpochPlan, RunProgress, rising_then_falling, schedule
from peterrec.model.training.metrics import rank_metrics, ranks_of
from peterrec.model.training.pretrain.corpus import Corpus, Part, prepare_corpus
from peterrec.model.training.pretrain.examples import (
    batch_maker,
    newest_item_batch,
    second_views,
    shorten,
)
from peterrec.model.training.pretrain.packed_blocks import (
    NO_DROPOUT,
    Dropout,
    pack,
    packed_states,
    sent,
)
from peterrec.model.training.pretrain.settings import Precision, PretrainSettings
from peterrec.model.training.pretrain.spectral import spectral_embedding
from peterrec.model.training.pretrain.state import (
    PretrainingState,
    require_room,
    restore_checkpoint,
    save_checkpoint,
)
from peterrec.model.training.pretrain.step import StepContext, Views, predicting, train_step
from peterrec.model.training.products import chunk_rows, product
from peterrec.model.training.softmax import (
    OutputLayer,
    start_at_popularity,
)

__all__ = ["PretrainSettings", "PretrainedBackbone", "pretrain"]

CPU = torch.device("cpu")

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    listener: TrainingListener = unheard,
    workers: Workers = ALONE,
    device: torch.device = CPU,
    notice: Notice = no_notice,
) -> PretrainedBackbone:
    """Train a backbone; the epoch with the lowest validation loss wins. The result is on the CPU.

    With a ``checkpoints`` folder, every epoch leaves a checkpoint there; ``resume`` continues from
    it and gives the result of the uninterrupted run, bit for bit on the same machine. With several
    ``workers`` each of them makes this call, and each returns the same result; the ``listener`` of
    the first one hears of the run. What is doubtful about the histories is told before training
    begins.
    """
    started = time.perf_counter()
    on_progress(Progress("cutting histories into sequences"))
    corpus = prepare_corpus(histories, settings)
    for warning in corpus.metadata["warnings"]:
        notice(warning)
    on_progress(Progress("making the first weights"))
    state = _new_state(corpus, settings, device)
    if checkpoints is not None and workers.writes:
        require_room(checkpoints, state)
    identity = _identity(settings, corpus)
    if resume and checkpoints is not None:
        restore_checkpoint(checkpoints, state, identity)
    run = _Run(state, corpus, settings, on_progress, workers)

    heard = listener if workers.writes else unheard
    about = _started(state, corpus, settings, workers)
    heard(about)
    report_epochs(heard, state.epochs.records)

    def after_epoch() -> None:
        report_epochs(heard, state.epochs.records[-1:])
        if checkpoints is not None and workers.writes:
            save_checkpoint(checkpoints, state, identity)

    state.epochs.run(run.plan(), after_epoch)
    seconds = round(time.perf_counter() - started, 3)
    ended = TrainingEnded(state.epochs.best + 1, len(state.epochs), seconds)
    heard(ended)
    state.to(CPU)
    state.backbone.requires_grad_(False).eval()
    record = {
        **_record(state, corpus, settings),
        "machine": about.machine,
        "started_at": about.time,
        "ended_at": ended.time,
    }
    return PretrainedBackbone(state.backbone, state.output, corpus.vocabulary, record)


def _started(
    state: PretrainingState, corpus: Corpus, settings: PretrainSettings, workers: Workers
) -> TrainingStarted:
    return TrainingStarted(
        "pretrain",
        settings=_plain(settings),
        data={**corpus.metadata, "loss": corpus.loss},
        machine=machine_of(state.device, workers.count),
        epochs_done=len(state.epochs),
    )


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
        seed = seeded(settings.seed, "spectral").initial_seed()
        vectors = spectral_embedding(corpus.train.rows, items, settings.channels, seed)
        with torch.no_grad():  # if there are fewer factors than channels, the rest stays random
            backbone.embedding.weight[FIRST_ITEM:, : vectors.shape[1]] = vectors
    return PretrainingState(backbone.to(device), output.to(device), settings)


class _Run:
    """Trains and validates single epochs of a pretraining run."""

    def __init__(
        self,
        state: PretrainingState,
        corpus: Corpus,
        settings: PretrainSettings,
        on_progress: OnProgress,
        workers: Workers,
    ) -> None:
        self._state = state
        self._corpus = corpus
        self._settings = settings
        self._workers = workers
        steps = math.ceil(len(corpus.train.windows) / settings.batch_size)
        validation = math.ceil(len(corpus.validation.windows) / settings.batch_size)
        self._progress = RunProgress("pretraining", settings.epochs, steps, validation, on_progress)
        shape = rising_then_falling(settings.epochs * steps)
        self._rates = schedule(state.optimizer, [shape], len(state.epochs) * steps)

    def plan(self) -> EpochPlan:
        """How the run makes its epochs."""
        return EpochPlan(
            self.train_epoch,
            self.validate,
            len(self._corpus.train.windows),
            len(self._corpus.validation.windows),
            self._state.optimizer,
        )

    def train_epoch(self) -> float:
        """Make one pass over the training windows; returns the mean item loss per target."""
        settings, spec = self._settings, self._state.backbone.spec
        epoch = len(self._state.epochs)
        generator = seeded(settings.seed, "pretrain", epoch)
        part = self._corpus.train.cut_anew(settings.max_len, generator)
        batches = part.batches(settings.batch_size, generator)
        total, targets = 0.0, 0
        self._progress.training(epoch, 0)
        for done, indices in enumerate(batches):
            step = epoch * len(batches) + done
            context = StepContext(
                step, generator, self._dropout(step), DTYPES[settings.precision], self._workers
            )
            rows = shorten(part.take(indices), settings.item_dropout, generator)
            batch = batch_maker(spec)(rows, spec, generator)
            views = self._views(part, indices, generator)
            loss = train_step(self._state, batch, views, self._corpus.loss, context)
            self._rates.step()
            total, targets = total + loss.items * loss.targets, targets + loss.targets
            self._progress.training(epoch, done + 1, total / targets)
        return total / targets

    def _dropout(self, step: int) -> Dropout:
        """A step's dropout; each of several workers draws its own."""
        share = self._settings.dropout
        if share == 0:
            return NO_DROPOUT
        drawn = seeded(self._settings.seed, "dropout", step, self._workers.rank).initial_seed()
        return Dropout(share, torch.Generator(self._state.device).manual_seed(drawn))

    def _views(self, part: Part, indices: Tensor, generator: torch.Generator) -> Views | None:
        """Second views of the windows' users; None without the contrastive loss."""
        if self._settings.contrast_weight == 0:
            return None
        users = torch.from_numpy(part.windows[indices.numpy(), 0])  # [B]
        rows = [part.rows[user] for user in users.tolist()]
        tokens = second_views(rows, self._state.backbone.spec, generator)
        return Views(tokens, users, self._settings.contrast_weight)

    @torch.no_grad()
    def validate(self) -> tuple[float, dict[str, float]]:
        """Exact loss per target, and rank metrics over all items at the predicting positions."""
        generator = seeded(self._settings.seed, "validate")  # the same masks in every epoch
        spec, output, device = self._state.backbone.spec, self._state.output, self._state.device
        part, asks_newest = self._corpus.validation, self._settings.validation_share == 0
        make_batch = newest_item_batch if asks_newest else batch_maker(spec)
        losses, ranks = [], []
        for done, indices in enumerate(part.batches(self._settings.batch_size, generator)):
            batch = make_batch(part.take(indices), spec, generator)
            packing = pack(batch.tokens, spec, device)
            tokens = sent(batch.tokens.flatten()[packing.places], device)  # [B, T] -> [N]
            embedded = self._state.backbone.embedding(tokens)  # [N, C]
            states = packed_states(self._state.backbone, embedded, packing)  # [1 + N, C]
            rows = chunk_rows(len(output.bias), device)
            chunks = (torch.split(x, rows) for x in predicting(states, batch, packing))
            for hidden, wanted in zip(*chunks, strict=True):
                logits = product(hidden, output.weight, output.bias)  # [M, C] -> [M, K]
                losses.append(cross_entropy(logits, wanted, reduction="none"))
                ranks.append(ranks_of(logits, wanted))
            self._progress.validating(len(self._state.epochs), done + 1)
        loss = self._workers.of_first(torch.cat(losses).mean().item(), device)
        return loss, rank_metrics(torch.cat(ranks), 5)


def _record(state: PretrainingState, corpus: Corpus, settings: PretrainSettings) -> Document:
    return {
        "settings": _plain(settings),
        "data": corpus.metadata,
        "loss": corpus.loss,
        "best_epoch": state.epochs.best,
        "epochs": [asdict(record) for record in state.epochs.records],
        "seconds": round(sum(record.seconds for record in state.epochs.records), 3),
        "software": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _identity(settings: PretrainSettings, corpus: Corpus) -> Document:
    """What a resumed run must have in common with the one that wrote the checkpoint.

    The digest of the data tells what was left out of it. Dropout is named if there is any:
    checkpoints of versions that had none lack it.
    """
    plain = _plain(settings)
    del plain["leave_out_last"]
    for name in ("dropout", "item_dropout"):
        if not plain[name]:
            del plain[name]
    return {**plain, "data_digest": corpus.metadata["data_digest"]}


def _plain(settings: PretrainSettings) -> Document:
    return {**asdict(settings), "dilations": list(settings.dilations)}
