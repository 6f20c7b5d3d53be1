"""Answers of ranking tasks."""

from msgspec import Struct

from peterrec_client.kinds.prediction import ItemId, Prediction


class RankedItem(Struct, frozen=True):
    """An item of the catalog; the score orders within one answer, it is not a probability.

    ``title`` is its display name, if the call asked for titles and the bundle has one.
    """

    id: str
    score: float
    title: str | None = None


class RankingPrediction(Prediction, frozen=True, kw_only=True, tag="ranking"):
    """The best items, best first.

    ``filtered`` items of the catalog were held back because the user has seen them or the request
    excluded them. ``unknown_candidates`` are the first ten candidates that the catalog does not
    have. ``matching`` is how many items of the catalog, or of the candidates, pass ``where`` and
    are available; None if nothing was filtered.
    """

    items: tuple[RankedItem, ...]
    filtered: int = 0
    matching: int | None = None
    unknown_candidates: tuple[ItemId, ...] = ()


KIND = RankingPrediction
