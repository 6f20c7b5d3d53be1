"""Answers of ranking tasks."""

from msgspec import Struct

from peterrec_client.kinds.prediction import ItemId, Prediction


class RankedItem(Struct, frozen=True):
    """An item of the catalog; the score orders within one answer, it is not a probability."""

    id: str
    score: float


class RankingPrediction(Prediction, frozen=True, kw_only=True, tag="ranking"):
    """The best items, best first.

    ``filtered`` items of the catalog were held back because the user has seen them or the request
    excluded them. ``unknown_candidates`` are the first ten candidates that the catalog does not
    have.
    """

    items: tuple[RankedItem, ...]
    filtered: int = 0
    unknown_candidates: tuple[ItemId, ...] = ()


KIND = RankingPrediction
