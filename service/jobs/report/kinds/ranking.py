"""The report of a task that ranks a catalog: metrics by popularity of the target, coverage."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from peterrec.model.training.intervals import Floats, Ints, estimates, mean_of
from peterrec.service.jobs.report.kinds.descriptor import (
    KindReport,
    Metrics,
    SampleAnswer,
    in_words,
    number,
)
from peterrec.service.jobs.report.measured import PRIOR, TOP, MeasuredTask
from peterrec.service.pages.page import Cell, Section, Table, table

CUTOFFS = (5, 10, 20)

POPULARITY = (("the most popular 1 %", 0.01), ("the next 9 %", 0.1), ("the other 90 %", 1.0))
"""Parts of the catalog, which is ordered by popularity among the training users, by their ends."""

OUTSIDE = "not in the catalog"

SHOWN_ITEMS = 5
"""Best items, and right ones, of a sample user."""


def _pairs(tested: MeasuredTask) -> Ints:
    """The place of the user of each (user, target) pair [P], in the order of the ranks."""
    return np.repeat(np.arange(len(tested.rows)), [len(answer) for answer in tested.answers])


def _gains(ranks: Ints, cutoff: int) -> dict[str, Floats]:
    """Hit, reciprocal rank and discounted gain of each pair [P]."""
    hit = (ranks < cutoff).astype(np.float64)
    return {
        f"mrr@{cutoff}": hit / (ranks + 1.0),
        f"hr@{cutoff}": hit,
        f"ndcg@{cutoff}": hit / np.log2(ranks + 2.0),
    }


def _sums(users: Ints, values: Floats, count: int) -> Floats:
    """Sums [N] over each user's pairs [P]."""
    return np.bincount(users, values, count).astype(np.float64)


def _metrics(tested: MeasuredTask, predictions: Tensor) -> Metrics:
    ranks, users, count = predictions.numpy(), _pairs(tested), len(tested.rows)
    pairs = np.bincount(users, minlength=count).astype(np.float64)
    return {
        name: mean_of(_sums(users, gains, count), pairs)
        for cutoff in CUTOFFS
        for name, gains in _gains(ranks, cutoff).items()
    }


def _sections(tested: MeasuredTask) -> Sequence[Section]:
    return [
        Section("By popularity of the target", [_by_popularity(tested)]),
        Section("How much of the catalog is recommended", [_coverage(tested)]),
    ]


def _by_popularity(tested: MeasuredTask) -> Table:
    """The catalog is stored the most popular first, as the training users took its items."""
    place = {item: at for at, item in enumerate(tested.outputs)}
    at = np.array([place.get(item, -1) for answer in tested.answers for item in answer])
    ends = np.array([np.ceil(share * len(tested.outputs)) for _, share in POPULARITY])
    group = np.where(at < 0, len(POPULARITY), np.searchsorted(ends, at, side="right"))
    names = [*(name for name, _ in POPULARITY), OUTSIDE]
    users, count = _pairs(tested), len(tested.rows)
    metrics = {}
    for who, ranks in (("task", tested.predictions), (PRIOR, tested.baselines[PRIOR])):
        for each in range(len(names)):
            own = (group == each).astype(np.float64)
            gains = _gains(ranks.numpy(), TOP)[f"hr@{TOP}"]
            sums = _sums(users, gains * own, count)
            metrics[f"{who}{each}"] = mean_of(sums, _sums(users, own, count))
    found = estimates(metrics, count)
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            int((group == each).sum()),
            *(in_words(found[f"{who}{each}"]) for who in ("task", PRIOR)),
        )
        for each, name in enumerate(names)
        if (group == each).any()
    ]
    header = ("target", "targets", f"found among the best {TOP}", "by popularity alone")
    return table("Targets by how popular they are among the training users", header, rows)


def coverage_of(tested: MeasuredTask, cutoff: int) -> float:
    """Share of the catalog that is among the best items of a measured user."""
    assert tested.best is not None
    return len(torch.unique(tested.best[:, :cutoff])) / len(tested.outputs)


def _coverage(tested: MeasuredTask) -> Table:
    rows = [
        (f"among the best {cutoff} of a user", number(coverage_of(tested, cutoff)))
        for cutoff in CUTOFFS
    ]
    note = f"{len(tested.rows):,} users, {len(tested.outputs):,} items in the catalog."
    return table("Share of the catalog that anybody is recommended", ("", "share"), rows, note)


def _answer(tested: MeasuredTask, at: int) -> SampleAnswer:
    assert tested.best is not None
    right, items = tested.answers[at], tested.best[at, :SHOWN_ITEMS].tolist()
    more = f" and {len(right) - SHOWN_ITEMS} more" if len(right) > SHOWN_ITEMS else ""
    given = ", ".join(tested.outputs[item] for item in items)
    return SampleAnswer(", ".join(right[:SHOWN_ITEMS]) + more, given)


KIND = KindReport(_metrics, _sections, _answer)
