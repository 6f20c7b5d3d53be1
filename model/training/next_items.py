"""Which item comes next: the ranks of users' held-out items among all items.

The protocol is leave-one-out. Of each user with three events or more the newest event is the test
item and the one before it the validation item; older events may be trained on. A method reads all
that is older than the item it must predict, so the validation item is read for the test. Every
item that the backbone knows is ranked, also the user's own earlier ones, unless these are left out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from peterrec.model.data.histories import Histories
from peterrec.model.data.vocabulary import Vocabulary
from peterrec.model.documents import Document
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import frame_histories
from peterrec.model.progress import OnProgress, Progress
from peterrec.model.spec import FIRST_ITEM, MASK, UNK
from peterrec.model.training.batches import TokenRow
from peterrec.model.training.evaluation import EVALUATION_ROWS
from peterrec.model.training.intervals import Floats, Ints, Metric, mean_of
from peterrec.model.training.metrics import ranks_of
from peterrec.model.training.products import product

HeldOutPart = Literal["test", "validation"]

NEWEST: dict[HeldOutPart, int] = {"test": 1, "validation": 2}
"""How many events of a user are not older than the item to predict."""

HELD_OUT = 2
"""Newest events of each user that the protocol keeps from training."""

FEWEST_EVENTS = HELD_OUT + 1

UNKNOWN = -1
"""The target of a user whose next item the backbone does not know."""

MISSED = 1 << 62
"""The rank of an item that cannot be recommended."""

MOST_SCORES = 20_000_000
"""Scores of one batch: 160 MB in float64."""

ScoreItems = Callable[[Sequence[TokenRow]], Tensor]
"""Gives scores [B, V] of all items for histories of token ids, oldest first."""


@dataclass(frozen=True, slots=True)
class HeldOutItems:
    """What users had taken, ``rows`` in token ids without unknown items, and what they took next.

    ``targets`` int64 [N] are item indices or UNKNOWN. ``too_short`` counts the users who have too
    few events to be asked about.
    """

    rows: list[TokenRow]
    targets: Ints
    too_short: int = 0


def hold_out(
    histories: Histories, vocabulary: Vocabulary, part: HeldOutPart, most: int | None = None
) -> HeldOutItems:
    """The held-out items of the test or of validation; of more than ``most`` users, evenly spaced.

    A user is asked about in both parts or in none.
    """
    tokens = vocabulary.tokens(histories.items)[histories.codes]  # [events]
    asked = np.flatnonzero(np.diff(histories.offsets) >= FEWEST_EVENTS)
    too_short = len(histories.users) - len(asked)
    if most is not None and len(asked) > most:
        asked = asked[np.linspace(0, len(asked) - 1, most).astype(np.int64)]
    ends = histories.offsets[asked + 1] - NEWEST[part]
    begins = histories.offsets[asked]
    before = [tokens[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
    wanted = tokens[ends]
    targets = np.where(wanted == UNK, UNKNOWN, wanted - FIRST_ITEM)
    return HeldOutItems([row[row != UNK] for row in before], targets, too_short)


@dataclass(frozen=True, slots=True)
class Ranking:
    """How items are ranked: among how many, and whether the user's own earlier ones are left out.

    A target that is left out is missed: nobody would have recommended it.
    """

    items: int
    without_seen: bool = False

    def ranks(self, scores: Tensor, rows: Sequence[TokenRow], targets: Tensor) -> Tensor:
        """Ranks [B] of targets int64 [B] in scores [B, K] of users who had taken ``rows``."""
        if not self.without_seen:
            return ranks_of(scores, targets)
        is_seen = torch.zeros(scores.shape, dtype=torch.bool)
        for own, row in zip(is_seen, rows, strict=True):
            own[torch.from_numpy(row - FIRST_ITEM)] = True
        ranks = ranks_of(scores.masked_fill(is_seen, float("-inf")), targets)
        is_missed = is_seen.gather(1, targets.unsqueeze(1)).squeeze(1)  # [B, K] -> [B]
        return ranks.masked_fill(is_missed, MISSED)


@torch.no_grad()
def rank_all(
    held_out: HeldOutItems, scores: ScoreItems, ranking: Ranking, on_progress: OnProgress, name: str
) -> Ints:
    """Ranks (0 = best) int64 [N] of the targets; of equal scores a target is last.

    Unknown targets are missed. ``name`` is the phase that progress is reported as.
    """
    ranks = np.full(len(held_out.rows), MISSED, dtype=np.int64)
    known = np.flatnonzero(held_out.targets != UNKNOWN)
    lengths = np.array([len(held_out.rows[i]) for i in known.tolist()], dtype=np.int64)
    order = known[np.argsort(lengths, kind="stable")]  # rows of similar length together
    size = max(1, min(EVALUATION_ROWS, MOST_SCORES // ranking.items))
    for start in range(0, len(order), size):
        on_progress(Progress(name, start, len(order), unit="users"))
        part = order[start : start + size]
        rows = [held_out.rows[i] for i in part.tolist()]
        targets = torch.from_numpy(held_out.targets[part])
        ranks[part] = ranking.ranks(scores(rows), rows, targets).numpy()
    on_progress(Progress(name, len(order), len(order), unit="users"))
    return ranks


def by_backbone(backbone: Backbone, weight: Tensor, bias: Tensor) -> ScoreItems:
    """The scores that pretraining learned, with its output layer's weight [K, C] and bias [K].

    They are read from the newest item's state, from which almost all targets of a causal
    pretraining are predicted; a non-causal one predicts from a mask in the next item's place. The
    backbone and the layer may be on any device; scores are on the CPU.
    """

    def hidden_of(rows: Sequence[TokenRow]) -> Tensor:
        return backbone.hidden(frame_histories(rows, backbone.spec).to(weight.device))

    def states(rows: Sequence[TokenRow]) -> Tensor:
        """States [B, C] that predict the next items."""
        if backbone.spec.is_causal:
            hidden = hidden_of(rows)  # [B, T, C]
            is_empty = torch.tensor([len(row) == 0 for row in rows], device=weight.device)  # [B]
            newest = hidden[:, max(0, hidden.shape[1] - 2)]  # in front of the last [CLS]
            return torch.where(is_empty.unsqueeze(1), hidden[:, -1], newest)
        masked = [np.append(row, MASK) for row in rows]
        return hidden_of(masked)[:, -2]  # [B, T, C] -> [B, C]

    return lambda rows: product(states(rows), weight, bias).cpu()  # [B, C] -> [B, K]


def by_user_vector(backbone: Backbone, weight: Tensor, bias: Tensor) -> ScoreItems:
    """The scores of a causal backbone's user vectors: the state of ``[CLS]``, which tasks read."""
    return lambda rows: product(
        backbone.user_vectors(frame_histories(rows, backbone.spec)), weight, bias
    )


def by_popularity(popularity: Ints) -> ScoreItems:
    """How often each item [K] was taken."""
    scores = torch.from_numpy(popularity.astype(np.float64))
    return lambda rows: scores.expand(len(rows), -1)  # [K] -> [B, K]


def by_last_item(rows: Sequence[TokenRow], items: int) -> ScoreItems:
    """A Markov chain: how often each item followed the user's last one, then popularity.

    Transitions are counted in ``rows``; unknown items are left out, so they join their neighbours.
    """
    moves = [(row[:-1] - FIRST_ITEM) * items + (row[1:] - FIRST_ITEM) for row in rows]
    keys, counts = np.unique(np.concatenate([_NONE, *moves]), return_counts=True)
    begins = np.searchsorted(keys, np.arange(items + 1) * items)
    popularity = popularity_of(rows, items)
    share = popularity / (popularity.sum() + 1)  # below 1: it decides between equal counts only

    def scores(histories: Sequence[TokenRow]) -> Tensor:
        found: Floats = np.tile(share, (len(histories), 1))
        for own, history in zip(found, histories, strict=True):
            if len(history):
                last = int(history[-1]) - FIRST_ITEM
                at = slice(begins[last], begins[last + 1])
                own[keys[at] - last * items] += counts[at]
        return torch.from_numpy(found)

    return scores


_NONE = np.empty(0, dtype=np.int64)


def popularity_of(rows: Sequence[TokenRow], items: int) -> Ints:
    """How often each item [K] occurs in some users' token ids."""
    return np.bincount(np.concatenate([_NONE, *rows]) - FIRST_ITEM, minlength=items)


def gains_of(ranks: Ints, cutoffs: Sequence[int]) -> dict[str, Metric]:
    """Hit rate, reciprocal rank and discounted gain of one target for each user."""
    found: dict[str, Floats] = {}
    for cutoff in cutoffs:
        hit = (ranks < cutoff).astype(np.float64)
        found[f"mrr@{cutoff}"] = hit / (ranks + 1.0)
        found[f"hr@{cutoff}"] = hit
        found[f"ndcg@{cutoff}"] = hit / np.log2(ranks + 2.0)
    return {name: mean_of(values) for name, values in found.items()}


def events_left_out(record: Document) -> int:
    """How many of each user's newest events a backbone's training left out, by its record."""
    return int(record.get("settings", {}).get("leave_out_last", 0))


def events_not_learned(record: Document) -> int:
    """How many of each user's newest events no step of a backbone's training learned from.

    Without validation users, the newest event that was read chose the best epoch and nothing else.
    """
    is_validated = record.get("settings", {}).get("validation_share") == 0
    return events_left_out(record) + int(is_validated)


def is_of_other_data(record: Document, histories: Histories) -> bool:
    """True if a backbone's record names other data than these histories, less what it left out."""
    digest = record.get("data", {}).get("data_digest")
    return digest is not None and (
        digest != histories.without_newest(events_left_out(record)).digest()
    )


def doubts_of_training(record: Document, histories: Histories, part: HeldOutPart) -> Iterator[str]:
    """A sentence if the training may have seen what a backbone is to predict in these histories."""
    asked = f"the {part} items"
    if "data_digest" not in record.get("data", {}):
        yield (
            "The backbone's folder has no record of its training: nobody knows whether it saw "
            f"{asked}."
        )
    elif is_of_other_data(record, histories):
        yield (
            "The backbone was trained on other data than these, by their digest: nobody knows "
            f"whether it saw {asked}."
        )
    elif (left_out := events_not_learned(record)) < NEWEST[part]:
        yield (
            f"The backbone was trained on {asked}, so these figures say nothing about new events: "
            f"its training left out the newest {left_out} events of each user, and "
            f"{NEWEST[part]} must be left out."
        )
    elif part == "test" and events_left_out(record) == 0:
        yield (
            "The best epoch of the backbone's training was chosen by the test items, so these "
            "figures are somewhat too good: `leave_out_last` 1 keeps them for the test."
        )
