"""The best items of a catalog, learned from each user's target items: softmax over the catalog."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from peterrec.model.data.examples import Examples
from peterrec.model.errors import TooFewClasses
from peterrec.model.network.heads import Head
from peterrec.model.spec import FIRST_ITEM, HeadSpec
from peterrec.model.training.metrics import rank_metrics
from peterrec.model.training.objectives.objective import Rows, label_indices
from peterrec.model.training.objectives.summary import AnswerSummary, counted, listed
from peterrec.model.training.softmax import choose_loss, sampled_softmax_loss

LISTED_ITEMS = 3
"""Target items that a summary lists, the most frequent first."""

HEAD_RATE_SHARE = 0.1
"""Share of the head's learning rate that a ranking's head takes. Adam makes full steps for items
whose gradients are tiny, and with a catalog's thousands of rare items these are mostly noise."""

HEAD_RIDGE = 150.0
"""Ridge of the head's weights, in training targets (decision 0110 has the figures)."""

OUTSIDE = -1
"""Catalog index of an item that the catalog does not have."""


@dataclass(frozen=True, slots=True)
class RankingObjective:
    """``targets[i]`` and ``seen[i]`` are catalog indices int64 [n] of user i's items.

    The catalog is what the training users took, the most popular first. A target outside the
    catalog is OUTSIDE: it counts as never found.
    """

    primary_metric: ClassVar[str] = "mrr@5"
    head_rate_share: ClassVar[float] = HEAD_RATE_SHARE

    head_spec: HeadSpec
    targets: list[Tensor]
    seen: list[Tensor]

    @classmethod
    def learn_outputs(cls, examples: Examples, train: Rows) -> tuple[str, ...]:
        counts = examples.counts(train.tolist())
        if len(counts) == 1:
            (item,) = counts
            raise TooFewClasses(
                f"{examples.source}: the training users have one target item, {item!r}.",
                hint="A ranking needs two items; check the target column.",
            )
        return tuple(sorted(counts, key=lambda item: (-counts[item], item)))

    @classmethod
    def summary(cls, examples: Examples, rows: Rows) -> AnswerSummary:
        counts = examples.counts(rows.tolist())
        lengths = np.array([len(examples.answers[i]) for i in rows.tolist()])
        text = (
            f"{examples.source}: {counted(len(rows), 'user')} with {counts.total():,} targets, "
            f"{np.median(lengths):g} each in the median and at most {lengths.max():,}, of "
            f"{counted(len(counts), 'item')}: {listed(counts, len(rows), LISTED_ITEMS)}."
        )
        return AnswerSummary(text, tuple(_doubts(examples, rows)))

    @classmethod
    def of(cls, outputs: tuple[str, ...], examples: Examples) -> Self:
        index = label_indices(outputs)
        catalog_of_item = np.array([index.get(item, OUTSIDE) for item in examples.items])
        seen = [catalog_of_item[np.unique(row) - FIRST_ITEM] for row in examples.rows]
        return cls(
            HeadSpec("ranking", len(outputs)),
            targets=[
                torch.tensor([index.get(item, OUTSIDE) for item in answer], dtype=torch.int64)
                for answer in examples.answers
            ],
            seen=[torch.from_numpy(own[own != OUTSIDE]) for own in seen],
        )

    def prior(self, rows: Tensor) -> Tensor:
        """Log popularity of each item, smoothed by one half."""
        _, wanted = self._pairs(rows)
        counts = torch.bincount(wanted, minlength=self.head_spec.outputs)
        return torch.log_softmax((counts + 0.5).log(), 0)

    def loss(self, head: Head, users: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Softmax over the whole catalog for every (user, target) pair; sampled if it is large."""
        at, wanted = (pairs.to(users.device) for pairs in self._pairs(rows))
        if not len(at):
            return users.sum() * 0
        if choose_loss("auto", self.head_spec.outputs) == "sampled":
            assert head.bias is not None
            return sampled_softmax_loss(users[at], head.weight, head.bias, wanted, generator)
        log_shares = torch.log_softmax(head.logits(users), 1)  # [B, K]
        return -log_shares[at, wanted].mean()

    def head_ridge(self, rows: Tensor) -> float:
        """``HEAD_RIDGE`` over the number of targets: the more targets, the less is restrained."""
        _, wanted = self._pairs(rows)
        return HEAD_RIDGE / max(1, len(wanted))

    def predictions(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Rank of every target among the items that the user has neither seen nor as a target."""
        return torch.cat([self._ranks(*pair) for pair in zip(logits, rows.tolist(), strict=True)])

    def metrics(self, predictions: Tensor, rows: Tensor) -> dict[str, float]:
        """MRR, hit rate and NDCG over all (user, target) pairs, at 5 and 20."""
        return {**rank_metrics(predictions, 5), **rank_metrics(predictions, 20)}

    def _ranks(self, logits: Tensor, row: int) -> Tensor:
        targets = self.targets[row]
        found = targets[targets != OUTSIDE]
        rivals = logits.clone()
        rivals[self.seen[row]] = -torch.inf
        rivals[found] = -torch.inf
        ranks = torch.full_like(targets, len(logits))
        ranks[targets != OUTSIDE] = (rivals >= logits[found].unsqueeze(1)).sum(1)  # [n, K] -> [n]
        return ranks

    def _pairs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Position in ``rows`` and catalog index of every target in the catalog, both [P]."""
        targets = [self.targets[row] for row in rows.tolist()]
        at = torch.repeat_interleave(torch.tensor([len(t) for t in targets]))
        wanted = torch.cat(targets)
        return at[wanted != OUTSIDE], wanted[wanted != OUTSIDE]


def _doubts(examples: Examples, rows: Rows) -> Iterator[str]:
    counts, known = examples.counts(rows.tolist()), set(examples.items)
    if known.isdisjoint(counts):
        yield (
            f"None of the target items, such as {next(iter(counts))!r}, is among the backbone's "
            f"items, such as {examples.items[0]!r}. That is right if the targets are of another "
            "domain; otherwise the ids are written differently."
        )
    if 2 * sum(n == 1 for n in counts.values()) > len(counts):
        yield "More than half of the target items are those of a single user each."
    taken = sum(map(len, map(partial(_taken, examples), rows.tolist())))
    if 2 * taken > counts.total():
        yield (
            f"{taken / counts.total():.0%} of the targets are in the same user's history, so the "
            "answer is given away: histories must end before the targets begin."
        )


def _taken(examples: Examples, row: int) -> set[str]:
    """Those of a user's targets that are in the history."""
    own = {examples.items[token - FIRST_ITEM] for token in np.unique(examples.rows[row]).tolist()}
    return own.intersection(examples.answers[row])


KIND = RankingObjective
