"""Answers of ranking tasks: the best items of the bundle's catalog."""

from array import array
from collections.abc import Sequence
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from peterrec.service.predict.columns import Column
from peterrec.service.predict.item_ids import ItemId
from peterrec.service.predict.kinds.descriptor import (
    AnswerKind,
    ArrowColumns,
    Measure,
    Prediction,
    Sampled,
    Subject,
    scores_of,
    used_fields,
)
from peterrec.service.protocol.messages import BundleEntry, RowResult

OVERLAP_AT = 10
"""Best items of two rankings that are compared: the number that a request gets by default."""


class RankedItem(Struct, frozen=True):
    """An item of the catalog; the score orders, it is not a probability."""

    id: str
    score: float
    title: Annotated[
        str | UnsetType, Meta(description="Display name, if asked for and if the item has one.")
    ] = UNSET


class RankingPrediction(Prediction, frozen=True, kw_only=True, tag="ranking"):
    """Answer of a ranking task."""

    items: Annotated[list[RankedItem], Meta(description="Best first.")]
    filtered: Annotated[
        int, Meta(description="How many items were held back because they were seen or excluded.")
    ]
    matching: Annotated[
        int | UnsetType,
        Meta(
            description="How many items of the catalog, or of the candidates, pass the filter and "
            "are available; left out if all do."
        ),
    ] = UNSET
    unknown_candidates: Annotated[
        list[ItemId] | UnsetType,
        Meta(description="The first ten candidates that are not in the catalog."),
    ] = UNSET


def _decode(subject: Subject, result: RowResult) -> RankingPrediction:
    ranked = subject.ranked
    assert ranked is not None
    indices = array("q")
    indices.frombytes(result.indices)
    catalog, selection = ranked.catalog, ranked.selection
    pairs = zip(indices, scores_of(result), strict=True)
    titles = catalog.titles if subject.has_titles else None
    if titles is None:
        items = [RankedItem(catalog[index], score) for index, score in pairs]
    else:
        items = [RankedItem(catalog[at], score, titles[at] or UNSET) for at, score in pairs]
    return RankingPrediction(
        items=items,
        filtered=selection.filtered,
        matching=UNSET if selection.matching is None else selection.matching,
        unknown_candidates=selection.unknown_candidates or UNSET,
        **used_fields(subject),
    )


def _table(bundle: BundleEntry, answers: Sequence[RankingPrediction]) -> ArrowColumns:
    """The items of each ranking, best first, and their scores."""
    import pyarrow as pa

    items = [[item.id for item in answer.items] for answer in answers]
    scores = [[item.score for item in answer.items] for answer in answers]
    return {
        "items": pa.array(items, pa.list_(pa.string())),
        "scores": pa.array(scores, pa.list_(pa.float32())),
    }


def _divergence(first: RankingPrediction, second: RankingPrediction) -> float:
    """1 - overlap@k of the two lists of the best items, in any order."""
    one, other = ([item.id for item in each.items[:OVERLAP_AT]] for each in (first, second))
    longest = max(len(one), len(other))
    return 1 - len(set(one) & set(other)) / longest if longest else 0.0


KIND = AnswerKind(
    prediction=RankingPrediction,
    decode=_decode,
    divergence=_divergence,
    divergence_text=f"1 - overlap of the best {OVERLAP_AT} items",
    text=lambda answer: ", ".join(item.id for item in answer.items) or "none",
    measure=Measure(unit="score", rests_on=lambda answer: [item.id for item in answer.items]),
    columns=(
        Column(
            "items",
            "BYTES",
            lambda answer: [item.id for item in answer.items],
            "The best items, best first.",
            "ranks",
        ),
        Column(
            "scores",
            "FP32",
            lambda answer: [item.score for item in answer.items],
            "The score of each of `items`; it orders, and is no probability.",
            "ranks",
        ),
        Column(
            "titles",
            "BYTES",
            lambda answer: ["" if item.title is UNSET else item.title for item in answer.items],
            "The display name of each of `items`, if asked for; empty if it has none.",
            "ranks",
        ),
    ),
    sampled=Sampled(
        says=lambda answer: [item.id for item in answer.items],
        score=lambda answer: answer.items[0].score if answer.items else None,
        form="any",
    ),
    table=_table,
)
