"""The work of ``peterrec evaluate-backbone``: how well a backbone predicts users' next items."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.vocabulary import Vocabulary, tokenize
from peterrec.model.documents import Document
from peterrec.model.errors import BackboneFolderInvalid, HistoriesMissing
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.files.tensors import read_tensors, require_shapes
from peterrec.model.progress import Progress
from peterrec.model.training.intervals import Estimate, Ints, estimates
from peterrec.model.training.next_items import (
    FEWEST_EVENTS,
    HELD_OUT,
    UNKNOWN,
    HeldOutItems,
    HeldOutPart,
    Ranking,
    by_backbone,
    by_last_item,
    by_popularity,
    by_user_vector,
    doubts_of_training,
    gains_of,
    hold_out,
    popularity_of,
    rank_all,
)
from peterrec.service.jobs.train import OUTPUT_LAYER

CUTOFFS = (10, 5, 20)
"""Lengths of the list in which the next item must be; published figures are of ten."""


@dataclass(frozen=True, slots=True)
class EvaluateBackboneJob:
    """What to measure a backbone on; of more than ``max_users`` users, evenly spaced ones."""

    interactions: InteractionSource
    part: HeldOutPart = "test"
    without_seen: bool = False
    max_users: int | None = None


@dataclass(frozen=True, slots=True)
class NextItemQuality:
    """Metrics by name for each method by name, and what was asked of them.

    ``unknown`` users took an item next that the backbone does not know, which counts as a miss for
    every method; ``too_short`` ones have too few events and are not asked about. ``cold`` users
    have no item before that the backbone knows. ``doubts`` are sentences about the training.
    """

    part: HeldOutPart
    without_seen: bool
    users: int
    items: int
    unknown: int
    too_short: int
    cold: int
    metrics: Mapping[str, Mapping[str, Estimate]]
    doubts: tuple[str, ...]

    def to_json(self) -> Document:
        """All fields as JSON values."""
        counts = ("part", "without_seen", "users", "items", "unknown", "too_short", "cold")
        return {
            **{name: getattr(self, name) for name in counts},
            "doubts": list(self.doubts),
            "metrics": {
                method: {
                    name: {"value": each.value, "low": each.low, "high": each.high}
                    for name, each in found.items()
                }
                for method, found in self.metrics.items()
            },
        }


def read_output_layer(folder: Path, loaded: LoadedBackbone) -> dict[str, Tensor]:
    """The layer of a backbone's folder that scores all items: its weight [K, C] and bias [K]."""
    path, spec = folder / OUTPUT_LAYER, loaded.backbone.spec
    if not path.exists():
        raise BackboneFolderInvalid(
            f"{folder} has no {OUTPUT_LAYER}, which scores items.",
            hint="Take the whole folder that `peterrec pretrain` wrote.",
        )
    layer = read_tensors(path)
    shapes = {"weight": (spec.item_count, spec.channels), "bias": (spec.item_count,)}
    require_shapes(path, layer, shapes)
    return layer


def run_evaluate_backbone(
    loaded: LoadedBackbone,
    output: Mapping[str, Tensor],
    job: EvaluateBackboneJob,
    observer: ReadingObserver = SILENT,
) -> NextItemQuality:
    """Rank users' held-out items by the backbone and by simple references.

    The references count the events that the protocol leaves to training, of all users.
    """
    histories = read_histories(job.interactions, observer)
    vocabulary = Vocabulary(tuple(loaded.items))
    held_out = hold_out(histories, vocabulary, job.part, job.max_users)
    if not held_out.rows:
        raise HistoriesMissing(
            f"none of the {len(histories.users):,} users has {FEWEST_EVENTS} events or more.",
            hint="Check the user column, or give longer histories.",
        )
    doubts = tuple(doubts_of_training(loaded.record, histories, job.part))
    for doubt in doubts:
        observer.notice(doubt)
    trained = tokenize(histories.without_newest(HELD_OUT), vocabulary).rows
    items = len(vocabulary)
    parts = loaded.backbone, output["weight"], output["bias"]
    methods = {
        "backbone": by_backbone(*parts),
        **({"its [CLS]": by_user_vector(*parts)} if loaded.backbone.spec.is_causal else {}),
        "popularity": by_popularity(popularity_of(trained, items)),
        "last item": by_last_item(trained, items),
    }
    ranking = Ranking(items, job.without_seen)
    ranks = {
        name: rank_all(held_out, scores, ranking, observer.progress, f"ranking by {name}")
        for name, scores in methods.items()
    }
    observer.progress(Progress("computing intervals"))
    return NextItemQuality(
        part=job.part,
        without_seen=job.without_seen,
        users=len(held_out.rows),
        items=items,
        unknown=int((held_out.targets == UNKNOWN).sum()),
        too_short=held_out.too_short,
        cold=_cold(held_out),
        metrics=_metrics(ranks),
        doubts=doubts,
    )


def _cold(held_out: HeldOutItems) -> int:
    return sum(not len(row) for row in held_out.rows)


def _metrics(ranks: Mapping[str, Ints]) -> dict[str, dict[str, Estimate]]:
    """Every method's metrics; all of them are resampled by the same users."""
    gains = {method: gains_of(own, CUTOFFS) for method, own in ranks.items()}
    every = {(method, name): each for method, own in gains.items() for name, each in own.items()}
    users = len(next(iter(ranks.values())))
    found = estimates({f"{method} {name}": each for (method, name), each in every.items()}, users)
    return {
        method: {name: found[f"{method} {name}"] for name in own} for method, own in gains.items()
    }
