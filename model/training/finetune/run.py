"""Histories with items left out: what keeps fine-tuning from learning users by heart.

An encoder and a head in training: the loop, its optimiser, and the best weights so far.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from peterrec.model.data.examples import Examples
from peterrec.model.data.splits import UserSplit
from peterrec.model.errors import SplitEmpty
from peterrec.model.progress import OnProgress, Progress
from peterrec.model.training.batches import bucketed_batches, seeded
from peterrec.model.training.finetune.encoders import Encoder, TokenRow, UserRows
from peterrec.model.training.finetune.objective_of_head import TrainedObjective
from peterrec.model.training.finetune.settings import LoopSettings
from peterrec.model.training.loop import require_finite


def thinned(
    rows: Sequence[TokenRow], mean_share: float, generator: torch.Generator
) -> list[TokenRow]:
    """Each row without a random share of its items.

    The share is uniform from 0 to twice the mean, so nearly empty histories are learned too.
    """
    limit = 2 * mean_share
    if limit == 0 or not rows:
        return list(rows)
    lengths = torch.tensor([len(row) for row in rows])
    shares = torch.rand(len(rows), generator=generator) * limit
    draws = torch.rand(int(lengths.sum()), generator=generator)
    is_kept = torch.split(draws >= shares.repeat_interleave(lengths), lengths.tolist())
    return [row[kept.numpy()] for row, kept in zip(rows, is_kept, strict=True)]


VALIDATION_ROWS = 256


@dataclass(frozen=True, slots=True)
class FinetuneEpoch:
    """What one pass over the training users cost and brought; metrics only if they are tracked."""

    epoch: int
    train_loss: float
    validation_loss: float
    seconds: float
    sequences_per_second: float
    validation_metrics: dict[str, float] = field(default_factory=dict)


class FinetuneRun:
    """Trains what an encoder and a goal leave to be trained; all else is only read."""

    def __init__(
        self,
        encoder: Encoder,
        goal: TrainedObjective,
        examples: Examples,
        split: UserSplit,
        settings: LoopSettings,
        *,
        variants: int = 0,
        tracks_metrics: bool = False,
    ) -> None:
        if not len(split.validation) or not len(split.test):
            raise SplitEmpty(
                "fine-tuning needs users to validate with and to test with.",
                hint="Give positive --validation-share and --test-share.",
            )
        self.epochs: list[FinetuneEpoch] = []
        self._encoder = encoder
        self._goal = goal
        self._examples = examples
        self._split = split
        self._settings = settings
        self._variants = variants
        self._tracks_metrics = tracks_metrics
        goal.head.to(encoder.device)
        self._trained = nn.ModuleList([encoder.trained, goal.head])
        self._best_weights: dict[str, Tensor] = {}
        self._rates = (settings.learning_rate, settings.head_learning_rate)
        parts = (encoder.trained.parameters(), goal.head.parameters())
        self._optimizer = torch.optim.Adam([{"params": part} for part in parts], fused=True)
        goal.prepare(torch.from_numpy(split.train))

    @property
    def best_epoch(self) -> int:
        """Index of the epoch with the lowest validation loss, the first of equals; -1 if none."""
        losses = [epoch.validation_loss for epoch in self.epochs]
        return losses.index(min(losses)) if losses else -1

    def train(self, on_progress: OnProgress) -> None:
        """Run the epochs and keep the best one's weights, the head in its final form."""
        while len(self.epochs) < self._settings.epochs and not self._should_stop():
            self.epochs.append(self._run_epoch(on_progress))
            if self.best_epoch == len(self.epochs) - 1:
                weights = self._trained.state_dict()
                self._best_weights = {name: t.detach().clone() for name, t in weights.items()}
        self._trained.load_state_dict(self._best_weights)
        self._goal.finish()

    def _should_stop(self) -> bool:
        return len(self.epochs) - 1 - self.best_epoch >= self._settings.patience

    def _run_epoch(self, on_progress: OnProgress) -> FinetuneEpoch:
        started = time.perf_counter()
        train_loss = self._train_epoch(on_progress)
        seconds = time.perf_counter() - started
        validation_loss, metrics = self._validate()
        return FinetuneEpoch(
            epoch=len(self.epochs),
            train_loss=train_loss,
            validation_loss=validation_loss,
            seconds=round(seconds, 3),
            sequences_per_second=round(len(self._split.train) / seconds, 1),
            validation_metrics=metrics,
        )

    def _train_epoch(self, on_progress: OnProgress) -> float:
        """One pass over the training users; the mean loss per user."""
        epoch, settings = len(self.epochs), self._settings
        generator = seeded(settings.seed, "finetune", epoch)
        rows, train = self._thinned_rows(epoch, generator), torch.from_numpy(self._split.train)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        batches = bucketed_batches(lengths, settings.batch_size, generator)
        phase, total, users = f"fine-tune epoch {epoch + 1}/{settings.epochs}", 0.0, 0
        for done, batch in enumerate(batches):
            step = epoch * len(batches) + done
            self._set_rates(step / (settings.epochs * len(batches)))
            examples = train[batch]
            vectors = self._encoder.user_vectors(UserRows([rows[i] for i in batch], examples))
            loss = self._goal.loss(vectors, examples, generator)
            value = require_finite(loss, step, self._optimizer.param_groups[0]["lr"])
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            self._optimizer.step()
            total, users = total + value * len(batch), users + len(batch)
            on_progress(Progress(phase, done + 1, len(batches), f"loss {total / users:.3f}"))
        return total / users

    def _set_rates(self, done: float) -> None:
        """Linear from the full learning rates at the start to 0 at the last epoch's end."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * (1 - done)

    def _thinned_rows(self, epoch: int, generator: torch.Generator) -> list[TokenRow]:
        """Training histories' newest items, thinned anew or as the epoch's variant says."""
        newest = [self._examples.rows[i][-self._encoder.max_len :] for i in self._split.train]
        if self._variants:
            generator = seeded(self._settings.seed, "variant", epoch % self._variants)
        return thinned(newest, self._settings.item_dropout, generator)

    @torch.no_grad()
    def _validate(self) -> tuple[float, dict[str, float]]:
        """Mean loss per validation user, of whole histories, and metrics if they are tracked."""
        generator = seeded(self._settings.seed, "validate")  # the same negatives in every epoch
        rows = self._split.validation
        ordered = torch.from_numpy(rows[np.argsort(self._examples.lengths[rows], kind="stable")])
        total, vectors = 0.0, []
        for part in torch.split(ordered, VALIDATION_ROWS):
            users = UserRows([self._examples.rows[i] for i in part.tolist()], part)
            vectors.append(self._encoder.user_vectors(users))
            total += self._goal.loss(vectors[-1], part, generator).item() * len(part)
        metrics = self._goal.metrics(torch.cat(vectors), ordered) if self._tracks_metrics else {}
        return total / len(rows), metrics
