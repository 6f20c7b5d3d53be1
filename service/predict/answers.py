"""Numbers from the device → the prediction of each kind of head."""

from array import array
from collections.abc import Callable, Mapping
from typing import TypedDict

import msgspec
from msgspec import UNSET, UnsetType

from peterrec.service.predict.item_ids import Catalog, ItemId, MappedHistory, MappedSelection
from peterrec.service.predict.schemas import (
    ClassPrediction,
    Prediction,
    RankedItem,
    RankingPrediction,
    Tag,
    TagsPrediction,
    ValuePrediction,
)
from peterrec.service.protocol.messages import BundleEntry, RowResult


class Ranked(msgspec.Struct, frozen=True, gc=False):
    """What a ranking answer needs beside its numbers."""

    catalog: Catalog
    selection: MappedSelection


class Subject(msgspec.Struct, frozen=True, gc=False):
    """Whom and what an answer is about."""

    bundle: BundleEntry
    history: MappedHistory
    user_id: str | int | None
    ranked: Ranked | None


def _scores(result: RowResult) -> "array[float]":
    values = array("f")
    values.frombytes(result.values)
    return values


class _UsedFields(TypedDict):
    used_items: int
    unknown_items: int
    unknown: list[ItemId]
    truncated: bool
    cold: bool
    user_id: str | int | UnsetType


def _used(subject: Subject) -> _UsedFields:
    history = subject.history
    return {
        "used_items": history.used_items,
        "unknown_items": history.unknown_items,
        "unknown": history.unknown,
        "truncated": history.is_truncated,
        "cold": history.is_cold,
        "user_id": UNSET if subject.user_id is None else subject.user_id,
    }


def _classification(subject: Subject, result: RowResult) -> ClassPrediction:
    scores, labels = _scores(result), subject.bundle.labels
    return ClassPrediction(
        label=labels[scores.index(max(scores))],
        scores=dict(zip(labels, scores, strict=True)),
        **_used(subject),
    )


def _tags(subject: Subject, result: RowResult) -> TagsPrediction:
    bundle = subject.bundle
    scores = dict(zip(bundle.labels, _scores(result), strict=True))
    best_first = sorted(scores.items(), key=lambda pair: -pair[1])
    return TagsPrediction(
        tags=[Tag(label, score) for label, score in best_first if score >= bundle.threshold],
        scores=scores,
        threshold=bundle.threshold,
        **_used(subject),
    )


def _value(subject: Subject, result: RowResult) -> ValuePrediction:
    return ValuePrediction(
        value=_scores(result)[0],
        **_used(subject),
    )


def _ranking(subject: Subject, result: RowResult) -> RankingPrediction:
    ranked = subject.ranked
    assert ranked is not None
    indices = array("q")
    indices.frombytes(result.indices)
    catalog, selection = ranked.catalog, ranked.selection
    return RankingPrediction(
        items=[
            RankedItem(catalog[index], score)
            for index, score in zip(indices, _scores(result), strict=True)
        ],
        filtered=selection.filtered,
        unknown_candidates=selection.unknown_candidates or UNSET,
        **_used(subject),
    )


ANSWERS: Mapping[str, Callable[[Subject, RowResult], Prediction]] = {
    "classification": _classification,
    "tags": _tags,
    "value": _value,
    "ranking": _ranking,
}
"""By the head's kind; ``HEAD_KINDS`` has the same keys, but needs torch."""
