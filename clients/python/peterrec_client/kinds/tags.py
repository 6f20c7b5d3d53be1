"""Answers of tags tasks."""

from collections.abc import Mapping

from msgspec import Struct

from peterrec_client.kinds.prediction import Prediction


class Tag(Struct, frozen=True):
    """A tag that applies, with its probability."""

    label: str
    score: float


class TagsPrediction(Prediction, frozen=True, kw_only=True, tag="tags"):
    """Independent labels: ``tags`` are at or above ``threshold``, best first."""

    tags: tuple[Tag, ...]
    scores: Mapping[str, float]
    threshold: float


KIND = TagsPrediction
