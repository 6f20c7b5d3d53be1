"""How well a backbone predicts the last item of users it was not trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peterrec.model.data.histories import Histories
from peterrec.model.data.splits import split_users
from peterrec.model.data.vocabulary import Vocabulary, tokenize
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.network.collate import frame_histories
from peterrec.model.progress import OnProgress, Progress
from peterrec.model.spec import FIRST_ITEM, MASK
from peterrec.model.training.batches import TokenRow
from peterrec.model.training.evaluation import EVALUATION_ROWS
from peterrec.model.training.intervals import Floats, Ints, Metric, mean_of
from peterrec.model.training.metrics import ranks_of
from peterrec.model.training.products import product

MOST_USERS = 2_000
"""Users that are measured; of more, evenly spaced ones."""

CUTOFFS = (5, 20)


@dataclass(frozen=True, slots=True)
class NextItems:
    """Ranks (0 = best) of the last items of some users, by the backbone and by popularity.

    ``popularity`` [V] is how often the training users have each item; ``unknown_share`` the share
    of all events whose item the backbone does not know.
    """

    ranks: Ints
    by_popularity: Ints
    targets: Ints
    lengths: Ints
    popularity: Ints
    unknown_share: float


@torch.no_grad()
def predict_last_items(
    loaded: LoadedBackbone,
    output: dict[str, Tensor],
    histories: Histories,
    on_progress: OnProgress,
) -> NextItems | None:
    """Rank the last item of each validation user among all items; None if there are no such users.

    The validation users are those of the recorded share and seed. Histories lack their last item,
    as it is what must be predicted.
    """
    settings = loaded.record.get("settings", {})
    share, seed = settings.get("validation_share", 0.05), settings.get("seed", 0)
    split = split_users(histories.users, share, 0.0, seed)
    known = tokenize(histories, Vocabulary(tuple(loaded.items)))
    popularity = _popularity([known.rows[i] for i in split.train.tolist()], len(loaded.items))
    rows = [known.rows[i] for i in split.validation.tolist() if len(known.rows[i]) > 1]
    if not rows:
        return None
    rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, MOST_USERS).astype(int))]
    rows.sort(key=len)
    targets = torch.tensor([int(row[-1]) - FIRST_ITEM for row in rows])
    ranks = []
    for start in range(0, len(rows), EVALUATION_ROWS):
        on_progress(Progress("predicting", start, len(rows), unit="users"))
        part = rows[start : start + EVALUATION_ROWS]
        logits = product(_states(loaded, part), output["weight"], output["bias"])
        ranks.append(ranks_of(logits, targets[start : start + EVALUATION_ROWS]))
    on_progress(Progress("predicting", len(rows), len(rows), unit="users"))
    return NextItems(
        ranks=torch.cat(ranks).numpy(),
        by_popularity=_ranks_by_popularity(popularity, targets.numpy()),
        targets=targets.numpy(),
        lengths=np.array([len(row) - 1 for row in rows]),
        popularity=popularity,
        unknown_share=known.unknown_share,
    )


def gains_of(ranks: Ints) -> dict[str, Metric]:
    """Hit rate, reciprocal rank and discounted gain of one target for each user."""
    found: dict[str, Floats] = {}
    for cutoff in CUTOFFS:
        hit = (ranks < cutoff).astype(np.float64)
        found[f"mrr@{cutoff}"] = hit / (ranks + 1.0)
        found[f"hr@{cutoff}"] = hit
        found[f"ndcg@{cutoff}"] = hit / np.log2(ranks + 2.0)
    return {name: mean_of(values) for name, values in found.items()}


def _states(loaded: LoadedBackbone, rows: list[TokenRow]) -> Tensor:
    """States [B, C] that predict the last item: of ``[CLS]``, or of a mask in the item's place."""
    backbone, spec = loaded.backbone, loaded.backbone.spec
    if spec.is_causal:
        return backbone.user_vectors(frame_histories([row[:-1] for row in rows], spec))
    hidden = [np.append(row[:-1], MASK) for row in rows]
    return backbone.hidden(frame_histories(hidden, spec))[:, -2]  # [B, T, C] -> [B, C]


def _popularity(rows: list[TokenRow], items: int) -> Ints:
    tokens = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
    return np.bincount(tokens - FIRST_ITEM, minlength=items)


def _ranks_by_popularity(popularity: Ints, targets: Ints) -> Ints:
    """Ranks as ``ranks_of`` gives them: of equally popular items, the target is last."""
    ordered = np.sort(popularity)
    below = np.searchsorted(ordered, popularity[targets], side="left")
    return (len(popularity) - below - 1).astype(np.int64)
