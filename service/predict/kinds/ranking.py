"""Answers of ranking tasks: the best items of the bundle's catalog."""

from array import array
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from peterrec.service.predict.item_ids import ItemId
from peterrec.service.predict.kinds.descriptor import (
    AnswerKind,
    Measure,
    Prediction,
    Subject,
    scores_of,
    used_fields,
)
from peterrec.service.protocol.messages import RowResult

OVERLAP_AT = 10
"""Best items of two rankings that are compared: the number that a request gets by default."""


class RankedItem(Struct, frozen=True):
    """An item of the catalog; the score orders, it is not a probability."""

    id: str
    score: float


class RankingPrediction(Prediction, frozen=True, kw_only=True, tag="ranking"):
    """Answer of a ranking task."""

    items: Annotated[list[RankedItem], Meta(description="Best first.")]
    filtered: Annotated[
        int, Meta(description="How many items were held back because they were seen or excluded.")
    ]
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
    return RankingPrediction(
        items=[
            RankedItem(catalog[index], score)
            for index, score in zip(indices, scores_of(result), strict=True)
        ],
        filtered=selection.filtered,
        unknown_candidates=selection.unknown_candidates or UNSET,
        **used_fields(subject),
    )


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
)
