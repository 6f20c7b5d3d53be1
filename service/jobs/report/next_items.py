"""How well a backbone predicts the last item of users it was not trained on."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from peterrec.model.data.histories import Histories
from peterrec.model.data.splits import split_users
from peterrec.model.data.vocabulary import Vocabulary, tokenize
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.progress import OnProgress
from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.intervals import Ints
from peterrec.model.training.next_items import (
    HeldOutItems,
    Ranking,
    by_backbone,
    by_popularity,
    popularity_of,
    rank_all,
)

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


def predict_last_items(
    loaded: LoadedBackbone,
    output: dict[str, Tensor],
    histories: Histories,
    on_progress: OnProgress,
) -> NextItems | None:
    """Rank the last item of each validation user among all items; None if there are no such users.

    The validation users are those of the recorded share and seed; all users if their newest items
    were validated on. Histories lack their last item, as it is what must be predicted.
    """
    settings = loaded.record.get("settings", {})
    share, seed = settings.get("validation_share", 0.05), settings.get("seed", 0)
    split = split_users(histories.users, share, 0.0, seed)
    known = tokenize(histories, Vocabulary(tuple(loaded.items)))
    asked_of = split.validation if share else split.train
    popularity = popularity_of([known.rows[i] for i in split.train.tolist()], len(loaded.items))
    rows = [known.rows[i] for i in asked_of.tolist() if len(known.rows[i]) > 1]
    if not rows:
        return None
    rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, MOST_USERS).astype(int))]
    targets = np.array([int(row[-1]) - FIRST_ITEM for row in rows])
    asked = HeldOutItems([row[:-1] for row in rows], targets)
    ranking, output_layer = Ranking(len(loaded.items)), (output["weight"], output["bias"])
    own, popular = (
        rank_all(asked, scores, ranking, on_progress, "predicting")
        for scores in (by_backbone(loaded.backbone, *output_layer), by_popularity(popularity))
    )
    return NextItems(
        ranks=own,
        by_popularity=popular,
        targets=targets,
        lengths=np.array([len(row) - 1 for row in rows]),
        popularity=popularity,
        unknown_share=known.unknown_share,
    )
