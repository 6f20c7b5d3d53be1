"""Answers of classification tasks: the most probable label and every label's probability."""

from typing import Annotated

from msgspec import Meta

from peterrec.service.predict.kinds.descriptor import (
    AnswerKind,
    Prediction,
    Subject,
    scores_of,
    used_fields,
)
from peterrec.service.protocol.messages import RowResult


class ClassPrediction(Prediction, frozen=True, kw_only=True, tag="classification"):
    """Answer of a classification task."""

    label: Annotated[str, Meta(description="The most probable label.")]
    scores: Annotated[dict[str, float], Meta(description="Probability of every label, in order.")]


def _decode(subject: Subject, result: RowResult) -> ClassPrediction:
    scores, labels = scores_of(result), subject.bundle.labels
    return ClassPrediction(
        label=labels[scores.index(max(scores))],
        scores=dict(zip(labels, scores, strict=True)),
        **used_fields(subject),
    )


def _divergence(first: ClassPrediction, second: ClassPrediction) -> float:
    """1 if the classes differ."""
    return float(first.label != second.label)


KIND = AnswerKind(
    prediction=ClassPrediction,
    decode=_decode,
    divergence=_divergence,
    divergence_text="share of histories with another class",
    text=lambda answer: answer.label,
)
