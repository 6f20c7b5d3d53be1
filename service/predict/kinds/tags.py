"""Answers of tags tasks: the tags that apply and every tag's probability."""

from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from peterrec.service.predict.columns import Column
from peterrec.service.predict.kinds.descriptor import (
    AnswerKind,
    ArrowColumns,
    Measure,
    Prediction,
    Sampled,
    Scores,
    Subject,
    every_score,
    scores_as_table,
    scores_of,
    used_fields,
)
from peterrec.service.protocol.messages import BundleEntry, RowResult


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


def _bulk(bundle: BundleEntry, scores: Scores) -> ArrowColumns:
    """The tags that apply, best first, and the probabilities of all tags."""
    import pyarrow as pa

    order = np.argsort(-scores, axis=1, kind="stable").astype(np.int32)  # [N, K]
    best_first = np.take_along_axis(scores, order, 1).astype(np.float64)
    applies = best_first >= bundle.threshold
    tags = pa.array(bundle.labels, pa.string()).take(pa.array(order[applies]))
    ends = np.concatenate([[0], np.cumsum(applies.sum(1))]).astype(np.int32)
    return {"tags": pa.ListArray.from_arrays(ends, tags), **every_score(bundle, scores)}


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
    columns=(
        Column(
            "applies",
            "BOOL",
            lambda answer: {
                label: score >= answer.threshold for label, score in answer.scores.items()
            },
            "Whether each tag applies, in the order of `labels`.",
            "labels",
        ),
        Column(
            "probabilities",
            "FP32",
            lambda answer: answer.scores,
            "The probability of every tag, in the order of `labels`.",
            "labels",
        ),
    ),
    sampled=Sampled(
        says=lambda answer: [tag.label for tag in answer.tags],
        score=lambda answer: max(answer.scores.values()),
        form="overlap",
    ),
    bulk=_bulk,
    table=scores_as_table(_bulk),
)
