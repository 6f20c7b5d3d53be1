"""The training run of one encoder with its head or heads: batches, optimiser, validation."""

import math
from functools import partial

import numpy as np
import torch
from torch import nn

from peterrec.model.data.examples import Examples
from peterrec.model.data.splits import UserSplit
from peterrec.model.errors import SplitEmpty
from peterrec.model.progress import OnProgress
from peterrec.model.training.batches import TokenRow, bucketed_batches, drop_items, seeded
from peterrec.model.training.events import TrainingListener, report_epochs, unheard
from peterrec.model.training.finetune.encoders import Encoder, UserRows
from peterrec.model.training.finetune.objective_of_head import TrainedObjective
from peterrec.model.training.finetune.settings import LoopSettings
from peterrec.model.training.loop import (
    EpochPlan,
    Epochs,
    RunProgress,
    backward,
    current_rate,
    falling,
    require_finite,
    schedule,
)

VALIDATION_ROWS = 256
"""Users in one forward without gradients."""


class FinetuneRun:
    """Trains the trainable part of an encoder, and the heads of an objective.

    With ``variants``, item dropout repeats its draws: epoch e uses those of variant e modulo their
    number. With 0 every epoch draws anew.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: TrainedObjective,
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
                hint="Give a positive `validation_share` and `test_share`.",
            )
        objective.head.to(encoder.device)
        self._encoder = encoder
        self._objective = objective
        self._examples = examples
        self._split = split
        self._settings = settings
        self._variants = variants
        self._tracks_metrics = tracks_metrics
        trained = nn.ModuleList([encoder.trained, objective.head])
        self.epochs = Epochs(trained, settings.epochs, settings.patience)
        self._optimizer = torch.optim.Adam(
            [
                {"params": encoder.trained.parameters(), "lr": settings.learning_rate},
                *objective.groups(settings.head_learning_rate),
            ],
            fused=True,
        )
        shape = falling(settings.epochs * math.ceil(len(split.train) / settings.batch_size))
        self._rates = schedule(self._optimizer, [shape] * len(self._optimizer.param_groups))
        objective.prepare(torch.from_numpy(split.train))

    def train(self, on_progress: OnProgress, listener: TrainingListener = unheard) -> None:
        """Run the epochs and keep the best one's weights."""
        settings, split = self._settings, self._split
        batches = math.ceil(len(split.train) / settings.batch_size)
        validation_batches = math.ceil(len(split.validation) / VALIDATION_ROWS)
        progress = RunProgress(
            "fine-tuning", settings.epochs, batches, validation_batches, on_progress
        )
        plan = EpochPlan(
            partial(self._train_epoch, progress),
            partial(self._validate, progress),
            len(self._split.train),
            len(self._split.validation),
            self._optimizer,
        )
        self.epochs.run(plan, lambda: report_epochs(listener, self.epochs.records[-1:]))

    def _train_epoch(self, progress: RunProgress) -> float:
        """Make one pass over the training users; returns the mean loss per user."""
        epoch, settings = len(self.epochs), self._settings
        generator = seeded(settings.seed, "finetune", epoch)
        rows, train = self._training_rows(epoch, generator), torch.from_numpy(self._split.train)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        batches = bucketed_batches(lengths, settings.batch_size, generator)
        total, users = 0.0, 0
        progress.training(epoch, 0)
        for done, batch in enumerate(batches):
            examples = train[batch]
            vectors = self._encoder.user_vectors(UserRows([rows[i] for i in batch], examples))
            loss = self._objective.loss(vectors, examples, generator)
            step = epoch * len(batches) + done
            value = require_finite(loss, step, current_rate(self._optimizer))
            self._optimizer.zero_grad()
            backward(loss + self._objective.penalty())
            self._optimizer.step()
            self._rates.step()
            total, users = total + value * len(batch), users + len(batch)
            progress.training(epoch, done + 1, total / users)
        return total / users

    def _training_rows(self, epoch: int, generator: torch.Generator) -> list[TokenRow]:
        """Training histories' newest items after item dropout.

        The dropped items are drawn anew, or from the epoch's variant if there are variants.
        """
        newest = [self._examples.rows[i][-self._encoder.max_len :] for i in self._split.train]
        if self._variants:
            generator = seeded(self._settings.seed, "variant", epoch % self._variants)
        return drop_items(newest, self._settings.item_dropout, generator)

    @torch.no_grad()
    def _validate(self, progress: RunProgress) -> tuple[float, dict[str, float]]:
        """Mean loss per validation user, on whole histories, and metrics if they are tracked."""
        generator = seeded(self._settings.seed, "validate")  # the same negatives in every epoch
        rows = self._split.validation
        ordered = torch.from_numpy(rows[np.argsort(self._examples.lengths[rows], kind="stable")])
        total, vectors = 0.0, []
        for done, part in enumerate(torch.split(ordered, VALIDATION_ROWS)):
            users = UserRows([self._examples.rows[i] for i in part.tolist()], part)
            vectors.append(self._encoder.user_vectors(users))
            total += self._objective.loss(vectors[-1], part, generator).item() * len(part)
            progress.validating(len(self.epochs), done + 1)
        metrics = (
            self._objective.metrics(torch.cat(vectors), ordered) if self._tracks_metrics else {}
        )
        return total / len(rows), metrics
