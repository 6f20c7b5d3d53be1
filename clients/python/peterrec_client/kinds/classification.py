"""Answers of classification tasks."""

from collections.abc import Mapping

from peterrec_client.kinds.prediction import Prediction


class ClassificationPrediction(Prediction, frozen=True, kw_only=True, tag="classification"):
    """One label of several; ``scores`` has every label's probability and sums to 1."""

    label: str
    scores: Mapping[str, float]


KIND = ClassificationPrediction
