"""Answers of tags tasks: the tags that apply and every tag's probability."""

from typing import Annotated

from msgspec import Meta, Struct

from peterrec.service.predict.kinds.descriptor import (
    AnswerKind,
    Measure,
    Prediction,
    Subject,
    scores_of,
    used_fields,
)
from peterrec.service.protocol.messages import RowResult


class Tag(Struct, frozen=True):
    """A tag that applies."""

    label: str
    score: float


class TagsPrediction(Prediction, frozen=True, kw_only=True, tag="tags"):
    """Answer of a tags task: independent probabilities."""

    tags: Annotated[list[Tag], Meta(description="Tags at or above the threshold, best first.")]
    scores: dict[str, float]
    threshold: float


def _decode(subject: Subject, result: RowResult) -> TagsPrediction:
    bundle = subject.bundle
    scores = dict(zip(bundle.labels, scores_of(result), strict=True))
    best_first = sorted(scores.items(), key=lambda pair: -pair[1])
    return TagsPrediction(
        tags=[Tag(label, score) for label, score in best_first if score >= bundle.threshold],
        scores=scores,
        threshold=bundle.threshold,
        **used_fields(subject),
    )


def _divergence(first: TagsPrediction, second: TagsPrediction) -> float:
    """Share of both answers' tags that apply in one answer and not in the other."""
    one, other = ({tag.label for tag in answer.tags} for answer in (first, second))
    return len(one ^ other) / max(1, len(first.scores.keys() | second.scores.keys()))


def _rests_on(answer: TagsPrediction) -> list[str]:
    """The tags that apply; if none does, the one that is nearest to it."""
    applying = [tag.label for tag in answer.tags]
    return applying or [max(answer.scores, key=lambda label: answer.scores[label])]


KIND = AnswerKind(
    prediction=TagsPrediction,
    decode=_decode,
    divergence=_divergence,
    divergence_text="share of tags that one has and the other has not",
    text=lambda answer: ", ".join(tag.label for tag in answer.tags) or "none",
    measure=Measure(unit="log-odds", rests_on=_rests_on),
)
